"""Where the figures of a benchmark come from: machine, versions, source and kernels, for the programs of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apts_mpi import provenance
from apts_mpi.native import extension


def origin() -> dict[str, Any]:
    """What stands in the JSON of every one of them; reads the source and asks git."""
    package = Path(provenance.__file__).parent
    return {
        "cpu": provenance.cpu(), "versions": provenance.versions(), "native": extension.state(),
        "source_sha256": provenance.source_sha256(package), "git_commit": provenance.commit(package),
    }  # fmt: skip
