"""Checkpoint files: every bit comes back, the order of writing, what counts, and a file from another hand."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from apts_mpi.regular import with_sum
from apts_mpi.storage import checkpoint as files
from apts_mpi.storage.checkpoint import Checkpoint, newest, read, sequences, set_aside, stem, write
from apts_mpi.storage.files import DataError

FACTS: dict[str, Any] = {
    "iteration": 7, "subdomains": 3, "settings": {"stop.target_loss": "-inf"}, "layout": "a", "data": "b", "arithmetic": "c",
    "accuracy": None, "messages": 5, "bytes": 6, "seconds": 0.5,
}  # fmt: skip


def sample(sequence: int = 1, seed: int = 0) -> Checkpoint:
    rng = np.random.default_rng(seed)
    theta = rng.standard_normal(1001).astype(np.float32)
    theta[:4] = -0.0, 1e-45, np.finfo(np.float32).max, -np.finfo(np.float32).tiny
    shared = {"radius": np.array(0.1), "pair0": rng.standard_normal((2, 1001)).astype(np.float32), "slots": np.array([0.0, 2.0, 1.0])}
    own = [{"radius": np.array([0.25])}, {}, {"radius": np.array([np.pi]), "momentum": rng.standard_normal(5)}]
    return Checkpoint(sequence, FACTS, theta, shared, own, b"iteration,loss\n0,0.5\n")


def same(one: Checkpoint, two: Checkpoint) -> bool:
    def plain(part: Checkpoint) -> Any:
        arrays = [{name: (value.dtype, value.shape, value.tobytes()) for name, value in each.items()} for each in (part.shared, *part.own)]
        return part.sequence, part.facts, part.theta.dtype, part.theta.tobytes(), arrays, part.records

    return bool(plain(one) == plain(two))


def test_every_bit_comes_back(tmp_path: Path) -> None:
    nbytes = write(tmp_path / "c", sample(), 2)
    assert same(read(tmp_path / "c", 1), sample()) and nbytes == (tmp_path / "c" / "000001.h5").stat().st_size


@pytest.mark.fault(65)
def test_the_order_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File: written, synced, renamed, folder synced; only then the same with its commit record."""
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(handle: int) -> None:
        calls.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        fsync(handle)

    def spy_replace(path: Path, target: Any) -> Path:
        calls.append(f"rename {Path(target).name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    (tmp_path / "c").mkdir()
    write(tmp_path / "c", sample(), 2)
    once = ["fsync .{}.tmp", "rename {}", "fsync c"]
    wanted = [step.format(name) for name in ("000001.h5", "000001.json") for step in once]
    assert calls == [f"fsync {tmp_path.name}", *wanted]


def test_newest_is_the_highest_number_whatever_the_clock_says(tmp_path: Path) -> None:
    for sequence in (1, 2, 3):
        write(tmp_path / "c", sample(sequence), 2)
        os.utime(tmp_path / "c" / f"{sequence:06d}.h5", (1e9 - sequence, 1e9 - sequence))
    assert sequences(tmp_path / "c") == [3, 2] and sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "000002.h5", "000002.json", "000003.h5", "000003.json",
    ]  # fmt: skip
    found, problems = newest(tmp_path / "c")
    assert found is not None and found.sequence == 3 and not problems


def test_a_file_without_its_record_does_not_count_and_is_cleared_away(tmp_path: Path) -> None:
    write(tmp_path / "c", sample(1), 2)
    for name in ("000002.h5", ".000002.json.tmp", ".000003.h5.tmp"):
        (tmp_path / "c" / name).write_bytes(b"half")
    found, problems = newest(tmp_path / "c")
    assert found is not None and found.sequence == 1 and not problems
    write(tmp_path / "c", sample(2, seed=5), 2)
    assert same(read(tmp_path / "c", 2), sample(2, seed=5))


def test_what_is_set_aside_stays_and_no_longer_counts(tmp_path: Path) -> None:
    for sequence in (1, 2):
        write(tmp_path / "c", sample(sequence), 2)
    data = bytearray((tmp_path / "c" / "000002.h5").read_bytes())
    data[2000] ^= 4
    (tmp_path / "c" / "000002.h5").write_bytes(data)
    found, problems = newest(tmp_path / "c")
    assert found is not None and found.sequence == 1 and list(problems) == [2] and "000002.h5" in problems[2]
    set_aside(tmp_path / "c", problems)
    write(tmp_path / "c", sample(3), 2)
    assert sequences(tmp_path / "c") == [3, 1] and (tmp_path / "c" / "000002.h5").read_bytes() == data


def test_a_folder_that_is_not_there_holds_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "c") == (None, {}) and sequences(tmp_path / "c") == []


def test_a_prune_that_fails_spoils_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(*args: object, **keys: object) -> None:
        raise OSError(30, "Read-only file system")

    for sequence in (1, 2):
        write(tmp_path / "c", sample(sequence), 1 if sequence == 1 else 2)
    monkeypatch.setattr(files, "_prune", stuck)
    write(tmp_path / "c", sample(3), 1)
    assert sequences(tmp_path / "c") == [3, 2, 1]


def text(**changes: Any) -> Any:
    """The facts with changes, as the file holds them."""
    return np.frombuffer(json.dumps({"format": "apts-mpi checkpoint", "format_version": 1, **FACTS, **changes}).encode(), np.uint8)


def foreign(folder: Path, **changes: Any) -> None:
    """Checkpoint 1 as the format describes it, by none of the package's own code."""
    image = io.BytesIO()
    with h5py.File(image, "w", userblock_size=512) as file:
        file["facts"] = text()
        file["theta"], file["records"] = np.arange(4, dtype="<f4"), np.frombuffer(b"iteration\n", np.uint8)
        file["shared/radius"] = 0.5
        file["own/radius/subdomains"], file["own/radius/values"] = np.array([0, 2], np.int64), np.array([[1.0], [2.0]])
        for name, value in changes.items():
            if name in file:
                del file[name]
            file[name] = value
    whole = bytearray(image.getvalue())
    seal = "apts-mpi sealed HDF5 file, version 1\nThe HDF5 file begins at byte 512; every HDF5 reader opens it.\n"
    seal += f"bytes {len(whole) - 512}\nsha256 {hashlib.sha256(whole[512:]).hexdigest()}\n"
    whole[:512] = seal.encode().ljust(511) + b"\n"
    folder.mkdir()
    (folder / "000001.h5").write_bytes(whole)
    record = {"format": "apts-mpi checkpoint", "format_version": 1, "sequence": 1, "iteration": 7, "bytes": len(whole)}
    (folder / "000001.json").write_text(json.dumps(with_sum({**record, "sha256": hashlib.sha256(whole).hexdigest()})))


@pytest.mark.fault(64)
def test_a_file_of_format_1_from_another_hand(tmp_path: Path) -> None:
    foreign(tmp_path / "c")
    found = read(tmp_path / "c", 1)
    assert found.facts == FACTS and found.theta.tolist() == [0, 1, 2, 3] and float(found.shared["radius"]) == 0.5
    assert [each["radius"].tolist() if each else [] for each in found.own] == [[1.0], [], [2.0]] and found.records == b"iteration\n"


@pytest.mark.parametrize(("name", "value"), [
    ("theta", np.array([0.0, np.nan])), ("theta", np.zeros(0)), ("theta", np.zeros((2, 2))), ("theta", np.arange(3)),
    ("own/radius/subdomains", np.array([0, 3])), ("own/radius/subdomains", np.array([2, 0])), ("own/radius/values", np.zeros(2)),
    ("facts", np.frombuffer(b"[1]", np.uint8)), ("facts", np.frombuffer(b'{"format": "x"}', np.uint8)),
    ("facts", text(messages="many")), ("facts", text(iteration=-1)), ("more", np.zeros(2)),
    ("shared/radius", np.array([1 + 2j])), ("shared/deep/radius", np.zeros(2)),
])  # fmt: skip
def test_contents_that_fit_no_checkpoint(tmp_path: Path, name: str, value: Any) -> None:
    foreign(tmp_path / "c", **{name: value})
    with pytest.raises(DataError, match="000001.h5"):
        read(tmp_path / "c", 1)


def test_a_record_of_another_file(tmp_path: Path) -> None:
    for sequence in (1, 2):
        write(tmp_path / "c", sample(sequence, seed=sequence), 2)
    one, two = (stem(tmp_path / "c", sequence).with_suffix(".h5") for sequence in (1, 2))
    two.write_bytes(one.read_bytes())
    with pytest.raises(DataError, match="is not the file that its commit record names"):
        read(tmp_path / "c", 2)
