"""Every evil file before every reader: a clean error that names it, nothing else opened, no memory beyond the cap."""

from __future__ import annotations

import ctypes
import io
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from box import Box
from checkpoint_cases import make_checkpoint
from evil import IN_FILE, LATEST, OF_FILE
from shard_cases import bless, make, patch_manifest
from test_records import filled

from apts_mpi.regular import SUM, with_sum
from apts_mpi.storage.parameters import write_parameters
from apts_mpi.storage.sealed import write_sealed


@dataclass(frozen=True)
class Target:
    """A kind of file, and how evil gets into it."""

    reader: str
    make: Callable[[Path], Path]  # a whole one in a folder; its HDF5 file
    dataset: str  # the one that is replaced
    pass_on: Callable[[Path], None]  # make the marks outside of the file agree with it
    argument: Callable[[Path], Path] = lambda path: path  # what the reader gets
    harmless: tuple[str, ...] = ()  # what gives the right values


def make_shards(folder: Path) -> Path:
    return make(folder)[0] / "train-00000-of-00003.h5"


def make_parameters(folder: Path) -> Path:
    write_parameters(folder / "parameters.h5", {"w": np.arange(6, dtype=np.float32), "b": np.zeros(2)})
    return folder / "parameters.h5"


def make_records(folder: Path) -> Path:
    return filled(folder / "run") / "records.h5"


def recommit(path: Path) -> None:
    """Seal a checkpoint again, and let its commit record agree."""
    nbytes, sha256 = write_sealed(path, io.BytesIO(path.read_bytes()))
    record = json.loads(path.with_suffix(".json").read_text()) | {"bytes": nbytes, "sha256": sha256}
    path.with_suffix(".json").write_text(json.dumps(with_sum({name: value for name, value in record.items() if name != SUM})))


def reseal(path: Path) -> None:
    write_sealed(path, io.BytesIO(path.read_bytes()))


def bless_first(path: Path) -> None:
    bless(path.parent)


UNREAD = ("attribute 500 deep",)
PLAIN = ("other byte order", "nan", "no dataset", "group instead", *UNREAD)
ATTRIBUTES = ("300 attributes", *UNREAD)  # a shard's are not looked at but for three
TARGETS = {
    "shards": Target("dataset", make_shards, "inputs", bless_first, lambda path: path.parent, ATTRIBUTES),
    "verify": Target("verified", make_shards, "inputs", bless_first, lambda path: path.parent, ATTRIBUTES),
    "parameters": Target("parameters", make_parameters, "w", reseal, harmless=("other byte order", *UNREAD)),
    "parameters of a run": Target(
        "parameters", lambda folder: filled(folder) / "parameters.h5", "b.weight", reseal, lambda path: path.parent,
        ("other byte order", *UNREAD),
    ),
    "checkpoint": Target("checkpoint", make_checkpoint, "theta", recommit, lambda path: path.parent, ("other byte order", *UNREAD)),
    "checkpoint's records": Target("checkpoint", make_checkpoint, "records", recommit, lambda path: path.parent, UNREAD),
    "records": Target("sealed", make_records, "loss", reseal, harmless=PLAIN),
}  # fmt: skip


# Readers that share their way in with another one meet a few.
FEW = ("external link", "gzip bomb", "never written", "record", "nan", "group instead", "no dataset")
INSIDE = [(name, case) for name in TARGETS for case in (IN_FILE if name in ("shards", "parameters", "checkpoint", "records") else FEW)]


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    box = Box("readers")
    yield box
    box.close()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of each kind one that is whole."""
    found = {}
    for name, target in TARGETS.items():
        folder = tmp_path_factory.mktemp("pristine")
        found[name] = target.make(folder).relative_to(folder)
        found[f"{name} folder"] = folder
    return found


class Watched:
    """A folder with a valid HDF5 file; the kernel tells of everybody who opens it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.secret = folder / "secret.h5"
        with h5py.File(self.secret, "w") as file:
            file["x"] = np.full(1000, 42.0)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._events = self._libc.inotify_init1(os.O_NONBLOCK)
        assert self._libc.inotify_add_watch(self._events, os.fsencode(folder), 0x20) >= 0  # IN_OPEN

    def opened(self) -> list[str]:
        """Names opened since the last time; empty: the folder itself."""
        names, raw = [], b""
        try:
            raw = os.read(self._events, 1 << 16)
        except BlockingIOError:
            pass
        while raw:
            size = struct.unpack_from("iIII", raw)[3]
            names.append(raw[16 : 16 + size].rstrip(b"\0").decode())
            raw = raw[16 + size :]
        return names

    def close(self) -> None:
        os.close(self._events)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path / "elsewhere")
    with watched.secret.open():
        assert watched.opened() == ["secret.h5"]  # the watch works
    yield watched
    watched.close()


def own(path: str) -> bool:
    """Whether a path belongs to Python and its libraries."""
    known = (sys.prefix, sys.base_prefix, "/usr/", "/proc/", "/sys/", "/etc/ld", str(Path(__file__).parents[2]))
    return path.startswith(known) or path.isdigit()


def refused(box: Box, target: Target, path: Path, folder: Path, watched: Watched, harmless: bool) -> None:
    watched.opened()
    answer = box.ask(target.reader, str(target.argument(path)))
    assert watched.opened() == [], "the file elsewhere was opened"
    strangers = [name for name in answer["opened"] if not own(name) and not Path(os.path.abspath(name)).is_relative_to(folder)]
    assert not strangers, strangers
    if harmless:
        assert "value" in answer, answer
        return
    assert "error" in answer, "it was read"
    assert {"DataError", "OSError"} & set(answer["error"]) or (target.reader == "verified" and answer["error"][0] == "ValueError"), answer
    assert str(path) in answer["text"] and "\n" not in answer["text"], answer
    assert len(answer["text"]) < 1500


def copied(name: str, pristine: dict[str, Path], tmp_path: Path) -> tuple[Path, Path]:
    folder = Path(shutil.copytree(pristine[f"{name} folder"], tmp_path / "case"))
    return folder, folder / pristine[name]


@pytest.mark.fault(35)
@pytest.mark.fault(36)
@pytest.mark.filterwarnings("ignore:The given chunk")
@pytest.mark.parametrize(("name", "case"), INSIDE)
def test_evil_inside_a_file(name: str, case: str, box: Box, pristine: dict[str, Path], tmp_path: Path, watched: Watched) -> None:
    target = TARGETS[name]
    folder, path = copied(name, pristine, tmp_path)
    with h5py.File(path, "r+", **LATEST) as file:
        marks = {name: value for name, value in file[target.dataset].attrs.items() if name in ("name", "index")}
        IN_FILE[case](file, target.dataset, watched.secret)
        if isinstance(file.get(target.dataset, getlink=True), h5py.HardLink):
            file[target.dataset].attrs.update(marks)
    target.pass_on(path)
    assert path.stat().st_size < 200 << 20
    refused(box, target, path, folder, watched, case in target.harmless)


UNSEALABLE = ("empty", "text", "zip")
AGREEABLE = ("half", "addresses that lie", *UNSEALABLE)  # cases that marks outside of the file can confirm
PLACED = [(name, case, False) for name in TARGETS for case in OF_FILE]
PLACED += [(name, case, True) for name in TARGETS for case in AGREEABLE if TARGETS[name].pass_on is bless_first or case not in UNSEALABLE]


@pytest.mark.fault(35)
@pytest.mark.parametrize(("name", "case", "passed_on"), PLACED)
def test_evil_in_place_of_a_file(
    name: str, case: str, passed_on: bool, box: Box, pristine: dict[str, Path], tmp_path: Path, watched: Watched
) -> None:
    target = TARGETS[name]
    folder, path = copied(name, pristine, tmp_path)
    OF_FILE[case](path, watched.secret)
    if passed_on:
        target.pass_on(path)
    if target.argument(path) == path and case in ("device", "symlink out of the folder"):  # what a person names may be a link
        answer = box.ask(target.reader, str(path))
        assert "error" in answer and str(path) in answer["text"]
        return
    refused(box, target, path, folder, watched, harmless=False)


ESCAPES = ["../elsewhere/secret.h5", "/etc/passwd", "train-00000-of-00003.h5/../../x", "train-00000-of-00003.h5\0x", "", ".", "a" * 5000]


@pytest.mark.fault(35)
@pytest.mark.fault(67)
@pytest.mark.parametrize("name", ESCAPES)
def test_a_manifest_cannot_name_a_file_elsewhere(name: str, box: Box, tmp_path: Path, watched: Watched) -> None:
    dest = make(tmp_path)[0]
    patch_manifest(dest, {"name": name}, 0)
    watched.opened()
    answer = box.ask("dataset", str(dest))
    assert "DataError" in answer["error"] and "manifest.json" in answer["text"]
    assert watched.opened() == []


@pytest.mark.fault(36)
@pytest.mark.parametrize(
    "content",
    [
        b"[" * 10**6, b'{"a":' * 10**5, b"1" * 10**6, b'{"format": 1e999}', b"NaN", b'"\\ud800"', b"\xff\xfe", b"{}", b"null",
        json.dumps({str(k): k for k in range(10**5)}).encode(),
    ],
    ids=range(10),
)  # fmt: skip
def test_a_manifest_of_any_content_is_refused(content: bytes, box: Box, tmp_path: Path) -> None:
    dest = make(tmp_path)[0]
    (dest / "manifest.json").write_bytes(content)
    answer = box.ask("dataset", str(dest))
    assert "DataError" in answer.get("error", ()) and "manifest.json" in answer["text"] and len(answer["text"]) < 3000, answer
