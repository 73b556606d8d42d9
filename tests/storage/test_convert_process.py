"""A conversion is deterministic, bounded in memory, never half-done, and goes on after any interruption."""

from __future__ import annotations

import collections
import errno
import fcntl
import json
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from shard_cases import make, numbered, save_npz

from apts_mpi.storage import convert as module
from apts_mpi.storage.convert import convert
from apts_mpi.storage.files import DataError, file_hash, replacing, write_json
from apts_mpi.storage.order import shuffled, spread
from apts_mpi.storage.shards import open_dataset
from apts_mpi.storage.verify import info, verify

SHARDS = {f"train-0000{k}-of-00003.h5" for k in range(3)} | {"test-00000-of-00001.h5"}


def hashes(dest: Path) -> dict[str, str]:
    return {path.name: file_hash(path) for path in dest.iterdir()}


def test_the_same_conversion_gives_the_same_bytes(tmp_path: Path) -> None:
    first, report = make(tmp_path, "first")
    second, _ = make(tmp_path, "second")
    assert hashes(first) == hashes(second)
    assert set(hashes(first)) == SHARDS | {"manifest.json"}  # and no scratch is left
    assert set(report.written) == SHARDS
    assert verify(first).problems == ()


def test_what_a_shard_says_of_itself(tmp_path: Path) -> None:
    dest, _ = make(tmp_path, seed=11)
    manifest = open_dataset(dest).manifest
    with h5py.File(dest / "train-00001-of-00003.h5") as file:
        marks = {key: value.decode() if isinstance(value, bytes) else value for key, value in file.attrs.items()}
        assert file["inputs"].fletcher32 and file["targets"].fletcher32
        assert file["inputs"].chunks == (13, 3, 2)
    assert marks["name"] == "train-00001-of-00003.h5"
    assert (marks["split"], marks["format"], marks["seed"], marks["classes"]) == ("train", "1", 11, 4)
    assert (marks["source"], marks["source_sha256"]) == ("raw.npz", file_hash(tmp_path / "raw.npz"))
    assert (marks["mean"], marks["std"], marks["scale"]) == (manifest.statistics.mean, manifest.statistics.std, 255.0)
    assert tuple(marks["channel_mean"]) == manifest.statistics.channel_mean


def test_chunks_are_whole_samples_of_one_to_four_mebibytes(tmp_path: Path) -> None:
    arrays = {"x": np.zeros((3000, 3, 32, 32), np.uint8), "y": np.zeros(3000, int)}
    convert("npz", save_npz(tmp_path / "raw.npz", **arrays), tmp_path / "set", shards=2)
    with h5py.File(tmp_path / "set" / "train-00000-of-00002.h5") as file:
        assert file["inputs"].chunks[1:] == (3, 32, 32)
        assert 1 << 20 <= np.prod(file["inputs"].chunks) <= 4 << 20


def test_the_shuffle_never_changes() -> None:
    """The order for a seed is part of the format; these values must stay for ever."""
    assert shuffled(8, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert shuffled(8, 12345).tolist() == [7, 0, 1, 5, 4, 6, 3, 2]
    assert not np.array_equal(shuffled(50, 0), shuffled(50, 1))


def test_stratified_blocks_hold_every_class_in_its_share(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 1000, p=[0.5, 0.3, 0.15, 0.05])
    order = spread(shuffled(1000, 0), labels)
    assert sorted(order) == list(range(1000))
    share = np.bincount(labels) / 1000
    for size in (40, 100, 250):
        for start in range(0, 1000 - size, 37):
            found = np.bincount(labels[order[start : start + size]], minlength=4)
            assert np.all(np.abs(found - size * share) <= 2), (start, size)
    arrays = {"x": rng.integers(0, 256, (1000, 4), dtype=np.uint8), "y": labels}
    report = convert("npz", save_npz(tmp_path / "raw.npz", **arrays), tmp_path / "set", shards=5, stratified=True)
    assert report.manifest is not None
    spreads = np.array([shard.histogram for shard in report.manifest.shards])
    assert np.all(np.abs(spreads - spreads.sum(axis=1, keepdims=True) * share) <= 1.5)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    dest, report = make(tmp_path, dry_run=True)
    assert not dest.exists()
    assert report.manifest is None
    assert any("40 samples in 3 files" in line for line in report.plan)


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_an_interrupted_run_goes_on(tmp_path: Path, stop: int) -> None:
    """Stopped after some shards: the folder is no data set; again: only the missing ones are written, same bytes."""
    whole, _ = make(tmp_path, "whole")

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "writing" and done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, "set", progress=interrupt)
    dest = tmp_path / "set"
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        open_dataset(dest)
    inodes = {path.name: path.stat().st_ino for path in dest.glob("*.h5")}
    _, report = make(tmp_path, "set")
    assert (len(report.kept), len(report.written)) == (stop, 4 - stop)
    assert {name: (dest / name).stat().st_ino for name in inodes} == inodes  # kept, not written again
    assert hashes(dest) == hashes(whole)


def test_interrupted_while_reading_it_starts_again(tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, progress=interrupt)
    dest, report = make(tmp_path)
    assert len(report.written) == 4
    assert verify(dest).problems == ()


def test_a_damaged_shard_alone_is_written_again(tmp_path: Path) -> None:
    dest, _ = make(tmp_path)
    before, path = hashes(dest), dest / "train-00001-of-00003.h5"
    assert make(tmp_path)[1].written == ()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (dest / "test-00000-of-00001.h5").unlink()
    assert verify(dest).problems
    _, report = make(tmp_path)
    assert set(report.written) == {path.name, "test-00000-of-00001.h5"}
    assert hashes(dest) == before


@pytest.mark.parametrize("other", [{"seed": 1}, {"shards": 2}, {"stratified": True}])
def test_another_data_set_is_not_overwritten(tmp_path: Path, other: dict[str, Any]) -> None:
    dest, _ = make(tmp_path)
    before = hashes(dest)
    with pytest.raises(DataError, match="add --force"):
        make(tmp_path, **other)
    assert hashes(dest) == before
    _, report = make(tmp_path, force=True, **other)
    assert verify(dest).problems == ()
    assert report.manifest is not None
    assert {path.name for path in dest.glob("*.h5")} == {shard.name for shard in report.manifest.shards}


def test_shards_of_an_unknown_origin_are_not_overwritten(tmp_path: Path) -> None:
    dest, _ = make(tmp_path)
    (dest / "manifest.json").write_text("damaged")
    with pytest.raises(DataError, match=r"manifest\.json: not a JSON file"):
        make(tmp_path)
    (dest / "manifest.json").unlink()
    with pytest.raises(DataError, match="add --force"):
        make(tmp_path)
    assert len(make(tmp_path, force=True)[1].written) == 4


def test_a_changed_source_is_another_data_set(tmp_path: Path) -> None:
    make(tmp_path)
    arrays = numbered()
    arrays["x_train"][0, 0, 0] ^= 1
    save_npz(tmp_path / "raw.npz", **arrays)
    with pytest.raises(DataError, match="add --force"):
        convert("npz", tmp_path / "raw.npz", tmp_path / "set", shards=3)


def test_two_conversions_at_once(tmp_path: Path) -> None:
    (tmp_path / "set" / ".partial").mkdir(parents=True)
    with (tmp_path / "set" / ".partial" / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another conversion is writing there"):
            make(tmp_path)
    assert len(make(tmp_path)[1].written) == 4


def test_killed_at_any_time_and_repeated_it_ends_right(tmp_path: Path) -> None:
    """kill -9: whatever is left, no reader takes it for a data set, and the next run ends with the same bytes."""
    whole, _ = make(tmp_path, "whole")
    code = (
        "import sys; from apts_mpi.storage.convert import convert; print('go', flush=True);"
        "convert('npz', sys.argv[1], sys.argv[2], shards=3)"
    )
    for number, delay in enumerate((0.0, 0.01, 0.03)):
        dest = tmp_path / str(number)
        with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "raw.npz"), str(dest)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(delay)
            child.send_signal(signal.SIGKILL)
        if not (dest / "manifest.json").exists():
            with pytest.raises(DataError):
                open_dataset(dest)
        make(tmp_path, str(number))
        assert hashes(dest) == hashes(whole)


def test_a_full_disk_is_noticed_before_and_during(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 100))
    with pytest.raises(OSError, match="are free") as caught:
        make(tmp_path)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("apts_mpi.storage.files.sync", full)
    with pytest.raises(OSError, match="No space left"):
        make(tmp_path)
    monkeypatch.undo()
    make(tmp_path)
    assert verify(tmp_path / "set").problems == ()


def test_a_file_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order: fsync of the file before the rename, fsync of the folder after it."""
    events: list[str] = []
    monkeypatch.setattr("apts_mpi.storage.files.sync", lambda path: events.append(f"sync {path.name}"))
    rename = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: (events.append("rename"), rename(self, target))[1])
    write_json(tmp_path / "a.json", {"one": 1})
    assert events == ["sync .a.json.tmp", "rename", f"sync {tmp_path.name}"]
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert json.loads((tmp_path / "a.json").read_text()) == {"one": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_memory_does_not_grow_with_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apts_mpi.storage.sources.BATCH_BYTES", 1 << 18)
    monkeypatch.setattr("apts_mpi.storage.writer.CHUNK_BYTES", 1 << 18)
    source = tmp_path / "raw"
    source.mkdir()
    np.save(source / "x.npy", np.zeros((24_000, 1024), np.uint8))  # 24 MB
    np.save(source / "y.npy", np.zeros(24_000, np.uint8))
    tracemalloc.start()
    try:
        convert("npz", source, tmp_path / "set", shards=2)
        assert tracemalloc.get_traced_memory()[1] < 12e6  # batches in float64 for the statistics, and 8 bytes a sample
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shards": 0}, "--shards must be in"), ({"shards": 41}, "--shards must be in"),
        ({"seed": -1}, "--seed must be in"), ({"seed": 1 << 63}, "--seed must be in"),
    ],
)  # fmt: skip
def test_impossible_options(tmp_path: Path, options: dict[str, int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        make(tmp_path, **options)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("options", [{"test_share": 1.0}, {"test_share": 0.0}, {"window": 0}, {"classes": -1}, {"image_size": (0, 3)}])
def test_impossible_options_of_a_format(options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="must be"):
        module.Options(**options)


def test_stratifying_needs_labels(tmp_path: Path) -> None:
    source = save_npz(tmp_path / "raw.npz", x=np.zeros((9, 2)), y=np.zeros(9))
    with pytest.raises(DataError, match="--stratified needs one class label"):
        convert("npz", source, tmp_path / "set", stratified=True)


def test_more_ranks_than_shards_and_the_sum_of_all_verdicts(tmp_path: Path) -> None:
    dest, _ = make(tmp_path)
    for size in (1, 2, 3, 7):
        verdicts = [verify(dest, rank, size) for rank in range(size)]
        assert sum(verdict.samples for verdict in verdicts) == 52
        assert sum(verdict.shards for verdict in verdicts) == 4
        assert not any(verdict.problems for verdict in verdicts)


def test_verify_finds_wrong_labels_and_counts(tmp_path: Path) -> None:
    """A shard whose own checksums are right but whose targets are not what the manifest counts."""
    from shard_cases import bless

    dest, _ = make(tmp_path)
    with h5py.File(dest / "train-00000-of-00003.h5", "r+") as file:
        file["targets"][3] = 9
    bless(dest)
    problem = verify(dest).problems[0]
    assert "target of sample 3 must be an integer in [0, 4), got 9" in problem
    with h5py.File(dest / "train-00000-of-00003.h5", "r+") as file:
        file["targets"][...] = 0
    bless(dest)
    assert "has (13, 0, 0, 0) targets per class" in verify(dest).problems[0]


@pytest.mark.fault(31)
def test_verify_finds_values_that_are_not_finite(tmp_path: Path) -> None:
    from shard_cases import bless

    convert("npz", save_npz(tmp_path / "raw.npz", x=np.ones((9, 2)), y=np.zeros(9)), tmp_path / "set")
    with h5py.File(tmp_path / "set" / "train-00000-of-00001.h5", "r+") as file:
        file["inputs"][4, 1] = np.nan
    bless(tmp_path / "set")
    assert "sample 4 has inputs that are nan" in verify(tmp_path / "set").problems[0]


def test_info_tells_the_essentials(tmp_path: Path) -> None:
    dest, _ = make(tmp_path)
    text = "\n".join(info(dest))
    for word in ("npz from raw.npz", "(3, 2) |u1", "40 samples in 3 files", "12 samples in 1 files", open_dataset(dest).fingerprint):
        assert word in text
