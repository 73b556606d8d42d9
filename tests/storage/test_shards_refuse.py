"""Files that are damaged or not ours are refused with their name, before a value is read and within bounded memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from shard_cases import bless, make, patch_manifest

from apts_mpi.storage.files import DataError
from apts_mpi.storage.shards import open_dataset
from apts_mpi.storage.verify import verify

SHARD = "train-00000-of-00003.h5"


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("pattern"))[0]


@pytest.fixture
def dest(tmp_path: Path, pattern: Path) -> Path:
    return Path(shutil.copytree(pattern, tmp_path / "set"))


def read(dest: Path) -> tuple[np.ndarray, np.ndarray]:
    split = open_dataset(dest).split("train")
    return split.read(0, split.samples)


def tampered(dest: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(dest / SHARD, "r+") as file:
        change(file)
    bless(dest)


def external_link(file: h5py.File) -> None:
    del file["inputs"]
    file["inputs"] = h5py.ExternalLink("train-00001-of-00003.h5", "/inputs")


def soft_loop(file: h5py.File) -> None:
    del file["inputs"]
    file["inputs"] = h5py.SoftLink("/inputs")


def soft_link(file: h5py.File) -> None:
    file.move("inputs", "other")
    del file["targets"]
    file["inputs"] = h5py.SoftLink("/other")


def external_storage(file: h5py.File) -> None:
    del file["inputs"]
    file.create_dataset("inputs", (13, 3, 2), "u1", external=[("/etc/passwd", 0, 78)])


def virtual(file: h5py.File) -> None:
    del file["inputs"]
    layout = h5py.VirtualLayout((13, 3, 2), "u1")
    layout[:] = h5py.VirtualSource("gone.h5", "inputs", (13, 3, 2))
    file.create_virtual_dataset("inputs", layout)


def replaced(**create: object) -> Callable[[h5py.File], None]:
    """The inputs made again with other properties."""
    plain = {"shape": (13, 3, 2), "dtype": "u1", "chunks": (13, 3, 2), "fletcher32": True}

    def change(file: h5py.File) -> None:
        del file["inputs"]
        data = file.create_dataset("inputs", **{**plain, **create})
        if data.nbytes < 1 << 20:
            data[...] = 0

    return change


def group(file: h5py.File) -> None:
    del file["inputs"]
    file.create_group("inputs")


def crowd(file: h5py.File) -> None:
    for index in range(3000):
        h5py.h5g.create(file.id, str(index).encode())


def attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file.attrs[name]
        file.attrs[name] = value

    return change


CASES = {
    "external link": (external_link, "soft or external link"),
    "soft-link loop": (soft_loop, "soft or external link"),
    "soft link": (soft_link, "soft or external link"),
    "external storage": (external_storage, "virtual, external or not in chunks"),
    "virtual data set": (virtual, "virtual, external or not in chunks"),
    "contiguous": (replaced(chunks=None, fletcher32=False), "virtual, external or not in chunks"),
    "gzip": (replaced(compression="gzip"), "fletcher32 and no other"),
    "gzip bomb": (replaced(shape=(1 << 30, 3, 2), compression="gzip"), "fletcher32 and no other"),
    "no checksum": (replaced(fletcher32=False), "fletcher32 and no other"),
    "shape bomb": (replaced(shape=(1 << 43, 3, 2)), "the manifest says"),
    "chunk bomb": (replaced(shape=(13, 3, 2), maxshape=(None, 3, 2), chunks=(1 << 20, 3, 2)), "chunks of inputs have"),
    "wrong type": (replaced(dtype="f4"), "the manifest says uint8"),
    "wrong byte order": (replaced(dtype=">u2"), "the manifest says uint8"),
    "wrong shape": (replaced(shape=(13, 2, 3), chunks=(13, 2, 3)), "the manifest says"),
    "group": (group, "is not a data set"),
    "too many objects": (crowd, "has 3002 objects"),
    "of another data set": (attribute("plan", np.bytes_(b"0" * 64)), "belongs to another data set"),
    "long attribute": (attribute("plan", np.zeros(1 << 12)), "not a short text"),
    "unbounded attribute": (attribute("plan", "text of any length"), "not a short text"),
}


@pytest.mark.fault(31)
@pytest.mark.fault(35)
@pytest.mark.fault(36)
@pytest.mark.filterwarnings("ignore:The given chunk")
@pytest.mark.parametrize("case", CASES)
def test_refused(dest: Path, case: str) -> None:
    change, words = CASES[case]
    tampered(dest, change)
    with pytest.raises(DataError, match=words) as caught:
        read(dest)
    assert SHARD in str(caught.value)
    assert "convert again" in str(caught.value)
    assert verify(dest).problems


def test_chunks_that_were_never_written_are_not_read_as_zeros(dest: Path) -> None:
    def change(file: h5py.File) -> None:
        del file["inputs"]
        file.create_dataset("inputs", (13, 3, 2), "u1", chunks=(1, 3, 2), fletcher32=True)[:5] = 1

    tampered(dest, change)
    with pytest.raises(DataError, match="claims 78 bytes and stores 50"):
        read(dest)


@pytest.mark.fault(36)
def test_bombs_need_no_memory(pattern: Path, tmp_path: Path) -> None:
    """Under an address-space limit the refusals still come, as refusals."""
    lines = ["import sys", "from apts_mpi.storage.verify import verify", "import resource"]
    limit = 1 << 30
    lines += [f"resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))", "[print(verify(p).problems[0]) for p in sys.argv[1:]]"]
    paths = []
    for number, case in enumerate(("shape bomb", "gzip bomb", "too many objects")):
        dest = Path(shutil.copytree(pattern, tmp_path / str(number)))
        tampered(dest, CASES[case][0])
        if case != "too many objects":  # and a manifest that joins in the lie
            samples = (1 << 43, 1 << 30)[number]
            patch_manifest(dest, {"samples": samples, "histogram": [samples, 0, 0, 0]}, 0)
        paths.append(str(dest))
    environ = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", "\n".join(lines), *paths], capture_output=True, text=True, env=environ, timeout=60)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert "claims" in first
    assert "fletcher32" in second
    assert "3002 objects" in third
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != limit


@pytest.mark.fault(33)
def test_a_flipped_bit_is_an_error_or_changes_nothing(dest: Path) -> None:
    """Data and metadata carry checksums: no flip anywhere may give other numbers."""
    path, expected = dest / SHARD, read(dest)
    raw, noticed, step = path.read_bytes(), 0, 1 if os.environ.get("APTS_NIGHTLY") else 23
    for position in range(0, len(raw), step):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ 1 << position % 8]) + raw[position + 1 :])
        try:
            got = read(dest)
        except DataError as error:
            assert SHARD in str(error)
            noticed += 1
        else:
            assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True)), position
    assert noticed > len(raw) / step / 2


@pytest.mark.fault(33)
def test_a_flip_in_the_values_is_found_by_reading_and_named(dest: Path) -> None:
    path = dest / SHARD
    raw = bytearray(path.read_bytes())
    place = raw.find(read(dest)[0][:13].tobytes())
    raw[place + 20] ^= 4
    path.write_bytes(raw)
    with pytest.raises(DataError, match=f"{SHARD}: cannot be read, the file is damaged"):
        open_dataset(dest).split("train").read(1, 5)
    with pytest.raises(DataError, match=f"{SHARD}: has not the manifest's SHA-256"):
        read(dest)


@pytest.mark.fault(33)
@pytest.mark.parametrize("size", [0, 1, 100, 2000])
@pytest.mark.parametrize("known", [False, True], ids=["size in the manifest", "blessed"])
def test_a_truncated_file_is_named(dest: Path, size: int, known: bool) -> None:
    path = dest / SHARD
    path.write_bytes(path.read_bytes()[:size])
    if known:
        bless(dest)
    with pytest.raises(DataError, match=SHARD):
        read(dest)
    assert any(SHARD in problem for problem in verify(dest).problems)


@pytest.mark.fault(35)
@pytest.mark.parametrize("name", ["../secret.h5", "/etc/passwd", "train-00000-of-00003.h5/../../x", "train-0-of-3.h5", ""])
def test_a_path_in_the_manifest_is_not_trusted(dest: Path, name: str) -> None:
    patch_manifest(dest, {"name": name}, 0)
    with pytest.raises(DataError, match=r"manifest\.json: shard name"):
        open_dataset(dest)


@pytest.mark.fault(35)
def test_a_symbolic_link_out_of_the_folder_is_refused(dest: Path, tmp_path: Path) -> None:
    (dest / SHARD).rename(tmp_path / "elsewhere.h5")
    (dest / SHARD).symlink_to(tmp_path / "elsewhere.h5")
    with pytest.raises(DataError, match=r"leads out of its folder"):
        read(dest)


def test_the_folder_itself_may_be_a_symbolic_link(dest: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(dest)
    assert np.array_equal(read(tmp_path / "link")[0], read(dest)[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "convert the data again"),
        ({"format": True}, "must be of type int"),
        ({"surprise": 1}, "exactly the keys"),
        ({"shards": []}, "list of train shards is incomplete"),
        ({"shards": {}}, "must be a list"),
        ({"seed": "0"}, "manifest.seed must be of type int"),
        ({"statistics": {"mean": 0.0, "std": 0.0, "channel_mean": [0.0], "channel_std": [1.0]}}, "finite and positive"),
        ({"statistics": {"mean": 0.0, "std": 1.0, "channel_mean": [0.0, 0.0], "channel_std": [1.0, 1.0]}}, "not those of 1 channels"),
    ],
)
def test_a_manifest_that_is_not_ours_is_named(dest: Path, change: dict[str, object], words: str) -> None:
    patch_manifest(dest, change)
    with pytest.raises(DataError, match=words) as caught:
        open_dataset(dest)
    assert "manifest.json" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"sample_shape": [1 << 40, 4]}, {"sample_shape": [0]}, {"input_dtype": "O"}, {"classes": 0}, {"classes": 5},
        {"scale": 0.0}, {"class_names": ["one"]}, {"target_dtype": "<f4"},
    ],
)  # fmt: skip
def test_an_impossible_layout_is_refused(dest: Path, change: dict[str, object]) -> None:
    layout = json.loads((dest / "manifest.json").read_text())["layout"]
    patch_manifest(dest, {"layout": {**layout, **change}})
    with pytest.raises(DataError, match=r"manifest\.json"):
        open_dataset(dest)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 100000])
def test_a_damaged_manifest_is_named(dest: Path, text: str) -> None:
    (dest / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"manifest\.json"):
        open_dataset(dest)


@pytest.mark.fault(37)
def test_a_file_that_a_writer_holds_is_named(dest: Path) -> None:
    with h5py.File(dest / SHARD, "r+", libver=("v110", "v110")) as file:
        file.flush()
        code = "import sys; from apts_mpi.storage.shards import open_dataset; open_dataset(sys.argv[1]).split('train').read(1, 5)"
        done = subprocess.run([sys.executable, "-c", code, str(dest)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"DataError: {dest / SHARD}: HDF5 cannot open it" in done.stderr
    assert "if no program is writing it" in done.stderr


@pytest.mark.fault(37)
def test_a_read_only_data_set_is_read_without_a_lock(dest: Path) -> None:
    """Readers neither write nor lock: two of them, one holding an exclusive lock, do not disturb each other."""
    for path in [*dest.iterdir(), dest]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        import fcntl

        with (dest / SHARD).open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            assert len(read(dest)[0]) == 40
    finally:
        dest.chmod(0o755)
