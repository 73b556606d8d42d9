"""The data commands as a user meets them: what they print, their exit codes, and what they do not import."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
from shard_cases import make, numbered, save_npz

from apts_mpi import data_cli
from apts_mpi.contracts import Communicator


def run(*argv: str | Path, comm: Communicator | None = None) -> int:
    parser = argparse.ArgumentParser()
    data_cli.add_data_parser(parser.add_subparsers(dest="command"))
    return data_cli.run_data(parser.parse_args(["data", *map(str, argv)]), comm)


class Peers:
    """A communicator whose other ranks have already found what ``rows`` says."""

    def __init__(self, rank: int, rows: list[list[float]]) -> None:
        self.rank, self.rows, self.size = rank, rows, len(rows) + 1

    def gather(self, values: list[float]) -> list[list[float]]:
        return [*self.rows[: self.rank], values, *self.rows[self.rank :]]


def test_convert_info_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, dest = save_npz(tmp_path / "raw.npz", **numbered()), tmp_path / "ein Ördner"
    command = ("convert", "npz", source, dest, "--shards", "2", "--seed", "5", "--stratified")
    assert run(*command, "--dry-run") == 0
    assert "dry run: nothing was written" in capsys.readouterr().out
    assert not dest.exists()
    assert run(*command) == 0
    assert "3 files written; look at it with: apts-mpi data info" in capsys.readouterr().out
    assert run(*command) == 0
    assert "0 files written, 3 kept from before" in capsys.readouterr().out
    assert run("info", dest) == 0
    assert "40 samples in 2 files" in capsys.readouterr().out
    assert run("verify", dest) == 0
    assert "3 files, 52 samples" in capsys.readouterr().out


def test_every_option_reaches_its_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("abc" * 100)
    assert run("convert", "text", tmp_path / "a.txt", tmp_path / "t", "--window", "10", "--test-share", "0.5", "--dry-run") == 0
    assert "samples (10,) |u1, 3 classes\ntrain: 15 samples" in capsys.readouterr().out
    assert run("convert", "digits", tmp_path / "d", "--dry-run") == 0
    assert "train: 1500 samples" in capsys.readouterr().out
    source = save_npz(tmp_path / "raw.npz", **numbered())
    assert run("convert", "npz", source, tmp_path / "n", "--classes", "9", "--dry-run") == 0
    assert "9 classes" in capsys.readouterr().out
    assert run("convert", "imagefolder", tmp_path, tmp_path / "i", "--image-size", "4", "5", "--gray") == 2
    assert "needs images as train/<class>/<file>" in capsys.readouterr().err


@pytest.mark.fault(30)
def test_a_warning_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("convert", "npz", save_npz(tmp_path / "raw.npz", **numbered()), tmp_path / "set", "--classes", "6") == 0
    assert "note: train has no sample of 2 of the classes: 4, 5" in capsys.readouterr().err


def test_bad_input_is_code_2_and_one_clear_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("convert", "mnist", tmp_path / "none", tmp_path / "set") == 2
    assert capsys.readouterr().err == f"apts-mpi data: source {tmp_path}/none does not exist\n"
    assert run("info", tmp_path / "mnist") == 2
    assert f"apts-mpi data convert mnist raw/mnist {tmp_path}/mnist --shards 4" in capsys.readouterr().err
    dest, _ = make(tmp_path)
    assert run("convert", "npz", tmp_path / "raw.npz", dest, "--seed", "9") == 2
    assert "add --force" in capsys.readouterr().err


def test_the_environment_is_code_4(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    source = save_npz(tmp_path / "raw.npz", **numbered())
    assert run("convert", "npz", source, tmp_path / "file" / "set") == 4
    assert "file" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert run("convert", "digits", tmp_path / "d") == 4
    assert "pip install 'apts_mpi[demo]'" in capsys.readouterr().err


def test_fetch_says_what_to_type_next(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apts_mpi.storage.fetch.SETS", {})
    monkeypatch.setattr("apts_mpi.storage.fetch.fetch", lambda name, dest, progress: [Path(dest, "a")])
    assert run("fetch", "fashion-mnist", tmp_path) == 0
    assert f"apts-mpi data convert mnist {tmp_path} data/fashion-mnist --shards 4" in capsys.readouterr().out


def test_verify_adds_up_over_the_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest, _ = make(tmp_path)
    fine = Peers(0, [[2.0, 25.0, 1e6, 0.0]])
    assert run("verify", dest, comm=cast(Communicator, fine)) == 0
    assert "4 files, 52 samples" in capsys.readouterr().out
    assert run("verify", dest, comm=cast(Communicator, Peers(1, [[2.0, 27.0, 1e6, 0.0]]))) == 0
    assert capsys.readouterr().out == ""  # rank 0 alone speaks
    assert run("verify", dest, comm=cast(Communicator, Peers(0, [[2.0, 25.0, 1e6, 1.0]]))) == 2  # the other found a problem
    assert capsys.readouterr().err == f"apts-mpi data: {dest}: 1 of 4 files is damaged\n"


def test_verify_names_a_damaged_file_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest, _ = make(tmp_path)
    path = dest / "train-00001-of-00003.h5"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    assert run("verify", dest) == 2
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"apts-mpi data: {path}: ") and last == f"apts-mpi data: {dest}: 1 of 4 files is damaged"
    (dest / "manifest.json").unlink()
    assert run("verify", dest) == 2
    assert capsys.readouterr().err.count("apts-mpi data: ") == 1


def test_verify_names_rank_and_file_and_reaches_the_sum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest, _ = make(tmp_path)
    (dest / "train-00001-of-00003.h5").unlink()
    assert run("verify", dest, comm=cast(Communicator, Peers(1, [[2.0, 27.0, 1e6, 0.0]]))) == 2
    assert f"rank 1: {dest}/train-00001-of-00003.h5: shard is missing" in capsys.readouterr().err
    (dest / "manifest.json").unlink()
    assert run("verify", dest, comm=cast(Communicator, Peers(1, [[2.0, 27.0, 1e6, 0.0]]))) == 2
    assert "rank 1: no data set at" in capsys.readouterr().err


def test_an_interrupt_says_that_it_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("apts_mpi.storage.fetch.fetch", interrupt)
    assert run("fetch", "mnist", tmp_path) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_only_verify_uses_all_ranks() -> None:
    asked = {action: data_cli.is_parallel(argparse.Namespace(action=action)) for action in ("verify", "convert", "info", "fetch")}
    assert [action for action, parallel in asked.items() if parallel] == ["verify"]


def test_a_bar_moves_where_a_person_watches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for bytes_ in (False, True):
        with data_cli._progress(bytes_) as progress:
            progress("reading", 5, 10)
            progress("reading", 10, 10)
    assert "reading" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["", "convert", "convert npz", "info", "fetch", "verify"])
def test_help_imports_nothing_heavy(action: str) -> None:
    code = """
import argparse, sys
from apts_mpi import data_cli
parser = argparse.ArgumentParser()
data_cli.add_data_parser(parser.add_subparsers())
try:
    parser.parse_args(sys.argv[1:])
except SystemExit:
    pass
print(sorted({"torch", "mpi4py", "h5py", "numpy", "rich", "PIL", "sklearn"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", code, "data", *action.split(), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "usage:" in done.stdout


def test_work_imports_neither_torch_nor_mpi(tmp_path: Path) -> None:
    dest, _ = make(tmp_path)
    code = """
import argparse, sys
from apts_mpi import data_cli
parser = argparse.ArgumentParser()
data_cli.add_data_parser(parser.add_subparsers())
for action in ("info", "verify"):
    assert data_cli.run_data(parser.parse_args(["data", action, sys.argv[1]])) == 0
print(sorted({"torch", "mpi4py"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code, str(dest)], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
