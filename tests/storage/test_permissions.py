"""Who may read what is written: as the umask says, on the way there too, and through no link that somebody planted."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from checkpoint_cases import make_checkpoint
from shard_cases import make
from test_records import extra, filled, info, start

from apts_mpi.regular import write_new
from apts_mpi.storage.files import replacing, write_json
from apts_mpi.storage.parameters import write_parameters
from apts_mpi.storage.plain import write_atomic
from apts_mpi.study.attempt import replace_file


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> set[tuple[bool, int]]:
    """(is a folder, mode) of everything under ``folder``, itself too."""
    found = [folder, *folder.rglob("*")]
    return {(path.is_dir(), stat.S_IMODE(path.lstat().st_mode)) for path in found}


def whole_run(folder: Path) -> Path:
    run = start(filled(folder / "run"))  # an earlier one beside it
    run.append(info(0), extra(0))
    run.save()
    run.close()
    return folder / "run"


WRITERS: dict[str, Callable[[Path], Path]] = {
    "run": whole_run,
    "data set": lambda folder: make(folder)[0],
    "checkpoints": lambda folder: make_checkpoint(folder).parent,
}


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o000])
@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_obeys_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, mask: int) -> None:
    """Every file, also under its temporary name, and every folder; nothing can be executed."""
    passing, replace = set[int](), Path.replace

    def watched(self: Path, target: Path) -> Path:
        passing.add(stat.S_IMODE(self.stat().st_mode))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    with umask(mask):
        found = modes(WRITERS[name](tmp_path))
    assert found == {(True, 0o777 & ~mask), (False, 0o666 & ~mask)}
    assert passing == {0o666 & ~mask}


def test_a_lock_obeys_the_umask(tmp_path: Path) -> None:
    with umask(0o027):
        run = start(tmp_path / "run")
    assert stat.S_IMODE((tmp_path / "run" / "lock").stat().st_mode) == 0o640
    run.close()


PLANTED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "any file": (".x.tmp", lambda folder: write_atomic(folder / "x", b"new")),
    "JSON": (".x.tmp", lambda folder: write_json(folder / "x", {})),
    "parameters": (".x.tmp", lambda folder: write_parameters(folder / "x", {"w": np.zeros(3)})),
    "attempt": (f"x.{os.getpid()}", lambda folder: replace_file(folder / "x", "new")),
    "bench": ("x.new", lambda folder: __import__("apts_mpi.bench.report", fromlist=["write"]).write(folder / "x", {})),
}


@pytest.mark.fault(67)
@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("name", PLANTED)
def test_a_link_at_the_temporary_name_is_not_followed(tmp_path: Path, name: str, dangling: bool) -> None:
    planted, write = PLANTED[name]
    victim = tmp_path / "victim"
    if not dangling:
        victim.write_text("important")
    (tmp_path / "x").write_text("old")
    (tmp_path / planted).symlink_to(victim)
    write(tmp_path)
    assert not victim.exists() if dangling else victim.read_text() == "important"
    assert (tmp_path / "x").is_file() and not (tmp_path / "x").is_symlink() and (tmp_path / "x").read_bytes() != b"old"


def test_a_link_planted_in_the_last_moment_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("important")
    unlink = Path.unlink

    def replanted(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok=missing_ok)
        self.symlink_to(victim)

    monkeypatch.setattr(Path, "unlink", replanted)
    with pytest.raises(FileExistsError, match=r"\.x\.tmp"), replacing(tmp_path / "x"):
        pass
    with pytest.raises(FileExistsError, match="y"):
        write_new(tmp_path / "y", b"new")
    assert victim.read_text() == "important"


def test_no_secret_of_the_environment_reaches_any_file(tmp_path: Path) -> None:
    """A whole run in a process of its own, with secrets around it."""
    secrets = {name: f"do-not-write-{name}" for name in ("SECRET", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "SLURM_JWT")}
    code = """
import sys, numpy as np, torch
from apts_mpi import train
x = np.random.default_rng(0).normal(size=(40, 3)).astype("f4")
keys = {"stop": {"epochs": 2}, "run": {"dir": sys.argv[1], "monitor": "none"}, "checkpoint": {"every": "1"}}
train(torch.nn.Linear(3, 2), x, (x[:, 0] > 0).astype("i8"), **keys)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], env={**os.environ, **secrets}, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    written = b"".join(path.read_bytes() for path in files)
    assert b"do-not-write" not in written and b"config_sha256" in written
