"""One thread per process, whatever is tested: ranks share the cores, and timings of neighbours must not matter."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # before anything imports torch or numpy
faults = os.environ.pop("APTS_FAULTS", "")  # where to write how the tests of the fault list end
for name in [name for name in os.environ if name.startswith("APTS_") and name not in ("APTS_NIGHTLY", "APTS_NATIVE")]:
    del os.environ[name]  # settings of the person who runs the tests


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.register_profile("suite", deadline=5000)  # ms: a busy machine is no finding
    hypothesis.settings.load_profile("suite")
    if faults:
        from faults.recording import Recorder

        config.pluginmanager.register(Recorder(Path(faults)), "faults")
