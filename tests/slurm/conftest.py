"""The folder that jobs are submitted from."""

from __future__ import annotations

from pathlib import Path

import pytest
from slurm_cases import furnish


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a user has it."""
    return furnish(tmp_path_factory.mktemp("slurm"))
