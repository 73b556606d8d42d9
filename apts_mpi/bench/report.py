"""What a benchmark leaves behind: its numbers with everything needed to judge them, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apts_mpi import provenance
from apts_mpi.bench.measure import Plan
from apts_mpi.contracts import Communicator
from apts_mpi.parallel.devices import crowds
from apts_mpi.regular import with_sum, write_new

FORMAT = "apts-mpi bench"
FORMAT_VERSION = 1


def oversubscribed(comm: Communicator, threads: int, allowed: bool) -> bool:
    """Whether some host has fewer cores than threads of ranks; ValueError on every rank unless that is ``allowed``.

    Every rank calls. Times of such a run say how ranks share cores, not how fast anything is.
    """
    found = crowds(comm, threads)
    if found and not allowed:
        host, ranks, cores = found[0]
        raise ValueError(
            f"{ranks} ranks of {threads} threads on the {cores} cores of {host}: start fewer, or --oversubscribe to mark the result"
        )
    return bool(found)


def document(
    comm: Communicator, name: str, options: Mapping[str, Any], plan: Plan, threads: int, crowded: bool, found: Mapping[str, Any]
) -> dict[str, Any]:
    """The whole JSON document; every rank calls."""
    facts = provenance.collect(
        config_sha256="", seed=0, data="", mpi_library=comm.library, hosts=comm.gather_text(comm.host), threads=threads,
        devices=["cpu"] * comm.size, n_params=int(found.get("n_params", 0)), subdomains=comm.size,
    )  # fmt: skip
    unused = ("config_sha256", "seed", "data_fingerprint", "n_params", "subdomains")
    facts = {key: value for key, value in facts.items() if key not in unused}
    return {
        "format": FORMAT, "format_version": FORMAT_VERSION, "bench": name, "options": dict(options), "ranks": comm.size,
        "oversubscribed": crowded, "repeats": plan.repeats, "warm_up_pairs": plan.warm_up,
        "statistics": "medians of the slowest rank's seconds; 95 % bootstrap intervals; ratios pair by pair, order alternating",
        **found, "provenance": facts,
    }  # fmt: skip


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write the whole document or nothing; OSError if that fails."""
    new = path.with_name(path.name + ".new")
    write_new(new, (json.dumps(with_sum(content), indent=2, allow_nan=False) + "\n").encode())
    new.replace(path)
