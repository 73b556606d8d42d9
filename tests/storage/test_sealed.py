"""Files with a seal: every damage is found before HDF5 sees a byte, and any HDF5 reader still opens them."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_records import PARAMETERS

from apts_mpi.storage import sealed
from apts_mpi.storage.files import DataError
from apts_mpi.storage.parameters import read_parameters, write_parameters
from apts_mpi.storage.plain import attribute, values
from apts_mpi.storage.sealed import is_sealed, new_file, open_sealed, write_sealed

GOLDEN = Path(__file__).parent / "golden"


def image(**arrays: np.ndarray) -> io.BytesIO:
    out = io.BytesIO()
    with new_file(out) as file:
        file.attrs.update({"format": "test", "number": 7})
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
    return out


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_sealed(tmp_path / "x.h5", image(a=np.arange(100.0), b=np.array([1, 2], ">i4")))
    return tmp_path / "x.h5"


def test_what_was_written_comes_back_and_is_described_in_text(path: Path) -> None:
    with open_sealed(path) as file:
        assert values(file, "a").tolist() == list(range(100))
        assert values(file, "b").tolist() == [1, 2] and values(file, "b").dtype == np.dtype("i4")
        assert attribute(file, "format") == "test" and attribute(file, "number") == 7
        with pytest.raises(DataError, match="/c is missing"):
            values(file, "c")
    raw = path.read_bytes()
    lines = raw[:512].decode("ascii").splitlines()
    assert lines[0] == "apts-mpi sealed HDF5 file, version 1"
    assert lines[2:4] == [f"bytes {len(raw) - 512}", f"sha256 {hashlib.sha256(raw[512:]).hexdigest()}"]
    assert write_sealed(path, image(a=np.zeros(3))) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    with h5py.File(path) as file:  # any reader
        assert file["a"][()].tolist() == [0, 0, 0]


@pytest.mark.fault(33)
def test_no_byte_can_change_unseen_and_hdf5_sees_none_of_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, opened = path.read_bytes(), list[Path]()
    monkeypatch.setattr(sealed, "reading", lambda path, handle: opened.append(path))
    damaged = [raw[:k] + bytes([raw[k] ^ 1 << k % 8]) + raw[k + 1 :] for k in range(0, len(raw), 3)]
    damaged += [raw[:k] for k in range(0, len(raw), 101)] + [raw + b"\0", raw[:512] + bytes(len(raw) - 512)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.h5: (has no seal|its seal speaks of|its SHA-256 is not)"), open_sealed(path):
            pass
    assert not opened


def test_a_true_seal_around_something_else_is_refused(path: Path) -> None:
    def resealed(content: bytes) -> None:
        path.write_bytes(sealed._seal(len(content), hashlib.sha256(content).hexdigest()) + content)

    inner = io.BytesIO()
    with h5py.File(inner, "w"):
        pass
    for content, words in ((b"", "holds no HDF5"), (b"text", "holds no HDF5"), (bytes(512) + inner.getvalue(), "holds no HDF5")):
        resealed(content)
        with pytest.raises(DataError, match=rf"x\.h5: {words}"), open_sealed(path):
            pass
    resealed(sealed.SIGNATURE + bytes(100))
    with pytest.raises(DataError, match=r"x\.h5: cannot be read as HDF5"), open_sealed(path):
        pass


@pytest.mark.fault(36)
def test_size_kind_and_place_are_checked_first(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="bytes are too many for this file .at most 100"), open_sealed(path, limit=100):
        pass
    with (tmp_path / "hole.h5").open("wb") as file:
        file.write(path.read_bytes()[:512])
        file.truncate(1 << 35)
    with pytest.raises(DataError, match=r"hole\.h5: 34359738368 bytes are too many"), open_sealed(tmp_path / "hole.h5"):
        pass
    os.mkfifo(tmp_path / "pipe.h5")
    for name in ("pipe.h5", "."):
        with pytest.raises(DataError, match="is no ordinary file"), open_sealed(tmp_path / name):
            pass
    with pytest.raises(FileNotFoundError, match=r"gone\.h5"), open_sealed(tmp_path / "gone.h5"):
        pass


def test_the_file_that_was_checked_is_the_one_that_is_read(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if another one takes its name in between."""
    write_sealed(tmp_path / "other.h5", image(a=np.full(100, -1.0)))
    check = sealed._check

    def swapped(name: Path, handle: io.BufferedReader) -> None:
        check(name, handle)
        (tmp_path / "other.h5").replace(path)

    monkeypatch.setattr(sealed, "_check", swapped)
    with open_sealed(path) as file:
        assert values(file, "a")[5] == 5


def test_what_goes_wrong_inside_names_the_file(path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.h5: cannot be read as HDF5.*doesn't exist"), open_sealed(path) as file:
        file["nothing"]
    with pytest.raises(DataError, match=r"x\.h5: ours$"), open_sealed(path):
        raise DataError("ours")


@pytest.mark.fault(64)
@pytest.mark.parametrize("version", [1, 2])
def test_parameters_of_every_format_are_read(version: int) -> None:
    found = read_parameters(GOLDEN / f"parameters-{version}.h5")
    assert list(found) == list(PARAMETERS) and is_sealed(GOLDEN / f"parameters-{version}.h5") == (version == 2)
    for name, array in PARAMETERS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


@pytest.mark.fault(64)
def test_parameters_of_a_format_to_come_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "parameters.h5"
    write_parameters(path, PARAMETERS)
    content = io.BytesIO(path.read_bytes())
    with h5py.File(content, "r+") as file:
        file.attrs["format_version"] = 3
    write_sealed(path, content)
    with pytest.raises(DataError, match=r"parameters\.h5 with a seal has format version 3"):
        read_parameters(path)
    path.write_bytes((GOLDEN / "parameters-2.h5").read_bytes().replace(b"apts-mpi sealed", b"apts-mpi Sealed", 1))
    with pytest.raises(DataError, match=r"parameters\.h5 without a seal has format version 2"):  # the damage was in the seal
        read_parameters(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a": np.array([1.0, np.nan])}, "parameter a holds nan"),
        ({"a": np.array([b"x"])}, "parameter a holds nan, inf or no numbers"),
        ({"a": np.zeros(3)}, "does not hold the 2 numbers"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(tmp_path: Path, change: dict[str, np.ndarray], words: str) -> None:
    path = tmp_path / "parameters.h5"
    write_parameters(path, {"a": np.zeros(2)})
    content = io.BytesIO(path.read_bytes())
    with h5py.File(content, "r+") as file:
        for name, array in change.items():
            del file[name]
            file.create_dataset(name, data=array).attrs.update({"name": name, "index": 0})
    write_sealed(path, content)
    with pytest.raises(DataError, match=words) as caught:
        read_parameters(path)
    assert str(path) in str(caught.value)
