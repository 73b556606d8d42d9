"""Any range of samples comes back exactly, whatever files it lies in."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from shard_cases import bless, make, numbered, save_npz

from apts_mpi.storage.convert import convert
from apts_mpi.storage.files import DataError
from apts_mpi.storage.manifest import load_manifest
from apts_mpi.storage.shards import Normalisation, open_dataset


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("whole"))[0]


@pytest.mark.parametrize(("lo", "hi"), [(0, 40), (0, 1), (12, 14), (13, 13), (5, 39), (39, 40), (40, 40), (26, 27)])
def test_a_range_equals_the_slice_of_everything(whole: Path, lo: int, hi: int) -> None:
    split = open_dataset(whole).split("train")
    inputs, targets = split.read(0, 40)
    part_inputs, part_targets = split.read(lo, hi)
    assert np.array_equal(part_inputs, inputs[lo:hi])
    assert np.array_equal(part_targets, targets[lo:hi])
    assert (part_inputs.dtype, part_targets.dtype) == (np.uint8, np.int64)
    assert part_inputs.flags.c_contiguous


def test_every_sample_comes_through_once_with_its_own_label(whole: Path) -> None:
    arrays = numbered()
    inputs, targets = open_dataset(whole).split("train").read(0, 40)
    label_of = {x.tobytes(): y for x, y in zip(arrays["x_train"], arrays["y_train"], strict=True)}
    assert [label_of[x.tobytes()] for x in inputs] == targets.tolist()
    assert len({x.tobytes() for x in inputs}) == 40
    test_inputs, test_targets = open_dataset(whole).split("test").read(0, 12)
    assert np.array_equal(test_inputs, arrays["x_test"])  # the test split keeps its order
    assert np.array_equal(test_targets, arrays["y_test"])


def test_what_a_split_says_of_itself(whole: Path) -> None:
    split = open_dataset(whole).split("train")
    scaled = numbered()["x_train"] / 255
    assert (split.samples, split.sample_shape, split.target_shape, split.classes) == (40, (3, 2), (), 4)
    assert (split.input_dtype, split.scale) == (np.uint8, 255.0)
    assert split.mean == pytest.approx(scaled.mean(), rel=1e-12)
    assert split.std == pytest.approx(scaled.std(), rel=1e-12)
    assert split.normalisation("scalar").mean == (split.mean,)
    assert split.normalisation("channel").std == split.channel_std
    assert split.normalisation("none") == Normalisation(1.0, (0.0,), (1.0,))
    with pytest.raises(DataError, match="scalar, channel or none"):
        split.normalisation("rows")


def test_statistics_per_channel_equal_those_of_the_arrays(tmp_path: Path) -> None:
    arrays = numbered(shape=(3, 4, 5))
    arrays["x_train"][:, 1] //= 3
    arrays["x_train"][:, 2] = 17  # constant: a standard deviation of 1 only shifts it
    convert("npz", save_npz(tmp_path / "raw.npz", **arrays), tmp_path / "set")
    split = open_dataset(tmp_path / "set").split("train")
    scaled = arrays["x_train"] / 255
    assert split.channel_mean == pytest.approx(scaled.mean(axis=(0, 2, 3)))
    assert split.channel_std[:2] == pytest.approx(scaled.std(axis=(0, 2, 3))[:2])
    assert split.channel_std[2] == 1.0
    assert split.std == pytest.approx(scaled.std())


@pytest.mark.parametrize(("lo", "hi"), [(-1, 3), (3, 2), (0, 41), (41, 41)])
def test_a_range_outside_is_refused(whole: Path, lo: int, hi: int) -> None:
    with pytest.raises(DataError, match="not inside the 40"):
        open_dataset(whole).split("train").read(lo, hi)


def test_nothing_is_opened_before_the_first_read(tmp_path: Path) -> None:
    dest, _ = make(tmp_path)
    (dest / "train-00001-of-00003.h5").unlink()
    split = open_dataset(dest).split("train")
    split.read(0, 13)  # the first shard alone
    with pytest.raises(DataError, match=r"train-00001-of-00003\.h5: shard is missing.*apts-mpi data convert"):
        split.read(0, 14)


def test_a_missing_data_set_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"apts-mpi data convert digits {tmp_path}/digits"):
        open_dataset(tmp_path / "digits")
    with pytest.raises(DataError, match="apts-mpi data fetch mnist"):
        open_dataset(tmp_path / "mnist")
    dest = make(tmp_path)[0]
    with pytest.raises(DataError, match=rf"check the path; data sets beside it: {dest.name}\n"):
        open_dataset(dest.parent / "digitz")
    with pytest.raises(DataError, match="split must be one of train, test"):
        open_dataset(make(tmp_path)[0]).split("validation")


def test_the_fingerprint_changes_with_any_shard(tmp_path: Path) -> None:
    first, _ = make(tmp_path, "first")
    again, _ = make(tmp_path, "again")
    other, _ = make(tmp_path, "other", seed=1)
    prints = [open_dataset(path).fingerprint for path in (first, again, other)]
    assert prints[0] == prints[1] != prints[2]
    (first / "train-00000-of-00003.h5").write_bytes(b"something else")
    bless(first)
    assert open_dataset(first).fingerprint != prints[0]
    assert load_manifest(again).fingerprint == prints[1]


def test_a_forked_child_reads_the_same(whole: Path) -> None:
    split = open_dataset(whole).split("train")
    inputs, _ = split.read(0, 5)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        os.write(writer, split.read(0, 5)[0].tobytes())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(reader, 1 << 16) == inputs.tobytes()
    os.close(reader)
    os.close(writer)


def test_regression_targets_are_float32(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(5, 3, (30, 4)), rng.normal(size=(30, 2))
    convert("npz", save_npz(tmp_path / "raw.npz", x=x, y=y), tmp_path / "set", shards=2)
    split = open_dataset(tmp_path / "set").split("train")
    inputs, targets = split.read(0, split.samples)
    assert (split.classes, split.target_shape, split.input_dtype, targets.dtype) == (0, (2,), np.float32, np.float32)
    assert split.samples == 27
    rows = {a.astype(np.float32).tobytes(): b.astype(np.float32) for a, b in zip(x, y, strict=True)}
    assert all(np.array_equal(rows[a.tobytes()], b) for a, b in zip(inputs, targets, strict=True))
    assert split.channel_mean == pytest.approx(inputs.mean(axis=0, dtype=np.float64))
    assert split.channel_std == pytest.approx(inputs.std(axis=0, dtype=np.float64))
