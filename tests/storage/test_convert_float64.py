"""Numbers of 64 bits from the source to what the model sees, and Poisson's equation as a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from shard_cases import numbered, save_npz
from test_data_cli import run

from apts_mpi.assembly import from_shards
from apts_mpi.problem.samples import Samples
from apts_mpi.storage.convert import convert
from apts_mpi.storage.files import DataError
from apts_mpi.storage.order import shuffled
from apts_mpi.storage.poisson import answer, points, right_hand_side
from apts_mpi.storage.shards import open_dataset
from apts_mpi.storage.sources import Options
from apts_mpi.storage.verify import verify

RNG = np.random.default_rng(3)
RAW = {"x": RNG.standard_normal((30, 3)), "y": RNG.standard_normal((30, 2))}


def seen(folder: Path, form: str, split: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
    """What a model sees of a data set in a run in float64."""
    data = open_dataset(folder)
    made = from_shards(data.split("train"), data.split("test"), form, 0, data.fingerprint, "set")
    inputs, targets = data.split(split).read(0, data.split(split).samples)
    held = Samples(
        [range(len(inputs))], torch.from_numpy(inputs), torch.from_numpy(targets), dtype=torch.float64, device=torch.device("cpu"),
        scale=made.scale, shift=made.shift, tokens=made.tokens,
    )  # fmt: skip
    return held.take(slice(None))


def test_64_bits_are_kept_if_asked_for(tmp_path: Path) -> None:
    source = save_npz(tmp_path / "raw.npz", **RAW)
    convert("npz", source, tmp_path / "double", options=Options(float64=True, test_share=0.2), shards=2)
    convert("npz", source, tmp_path / "single", options=Options(test_share=0.2))
    order = shuffled(30, 0)
    x, y = seen(tmp_path / "double", "none")
    assert np.array_equal(x.numpy(), RAW["x"][order[:24]]) and np.array_equal(y.numpy(), RAW["y"][order[:24]])
    x, _ = seen(tmp_path / "double", "channel")
    wanted = RAW["x"][order[:24]]
    assert np.allclose(x.numpy(), (wanted - wanted.mean(0)) / wanted.std(0), rtol=1e-13)
    x, y = seen(tmp_path / "single", "none")
    assert not np.array_equal(x.numpy(), RAW["x"][order[:24]]) and np.allclose(y.numpy(), RAW["y"][order[:24]], rtol=1e-6)
    assert verify(tmp_path / "double").problems == () == verify(tmp_path / "single").problems


def test_labels_and_bytes_stay_as_they_are(tmp_path: Path) -> None:
    report = convert("npz", save_npz(tmp_path / "raw.npz", **numbered()), tmp_path / "set", options=Options(float64=True))
    assert report.manifest is not None
    assert (report.manifest.layout.input_dtype, report.manifest.layout.target_dtype) == ("|u1", "|u1")


@pytest.mark.parametrize(("bad", "words"), [(np.inf, "beyond float64"), (np.nan, "sample 7 has inputs")])
def test_what_is_not_finite_in_64_bits(tmp_path: Path, bad: float, words: str) -> None:
    x = RAW["x"].copy()
    x[7, 1] = bad
    with pytest.raises(DataError, match=words):
        convert("npz", save_npz(tmp_path / "raw.npz", x=x, y=RAW["y"]), tmp_path / "set", options=Options(float64=True))


@pytest.mark.parametrize("form", ["none", "scalar", "channel"])
def test_poissons_points_are_taken_as_they_are_whatever_the_normalisation(tmp_path: Path, form: str) -> None:
    convert("poisson", None, tmp_path / "set", options=Options(points=50), shards=3, seed=2)
    x, y = seen(tmp_path / "set", form)
    wanted = points(0, 50)[shuffled(50, 2)]
    assert np.array_equal(x.numpy(), wanted) and np.array_equal(y.numpy(), right_hand_side(wanted))
    x, _ = seen(tmp_path / "set", form, "test")
    assert np.array_equal(x.numpy(), points(50, 62))
    assert verify(tmp_path / "set").problems == ()


def test_the_right_hand_side_is_minus_the_laplacian_of_the_answer() -> None:
    x, h = points(0, 20), 1e-3
    quotient = np.zeros(20)
    for k in range(2):
        step = h * np.eye(2)[k]
        shifted = [answer(x + j * step) for j in (-2, -1, 1, 2)]
        quotient += (-shifted[0] + 16 * shifted[1] - 30 * answer(x) + 16 * shifted[2] - shifted[3]) / (12 * h**2)
    assert np.allclose(right_hand_side(x), -quotient, rtol=1e-6, atol=1e-6)
    border = np.array([[0.0, 0.3], [1.0, 0.3], [0.3, 0.0], [0.3, 1.0]])
    assert np.allclose(answer(border), 0, atol=1e-14)


def test_points_fill_the_square_evenly() -> None:
    x = points(0, 4096)
    assert 0 < x.min() and x.max() < 1
    counts = np.histogram2d(x[:, 0], x[:, 1], bins=16, range=((0, 1), (0, 1)))[0]
    assert counts.min() >= 13 and counts.max() <= 19  # 16 on average; random ones would be 5 to 30
    assert np.array_equal(points(10, 20), points(0, 20)[10:])


def test_in_batches_it_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = convert("poisson", None, tmp_path / "one", options=Options(points=40))
    monkeypatch.setattr("apts_mpi.storage.sources.BATCH_BYTES", 24 * 7)
    second = convert("poisson", None, tmp_path / "two", options=Options(points=40))
    assert first.manifest == second.manifest


def test_the_command_makes_f_or_u(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("convert", "poisson", tmp_path / "f", "--points", "40", "--shards", "2") == 0
    assert run("convert", "poisson", tmp_path / "u", "--points", "40", "--answer") == 0
    assert np.array_equal(seen(tmp_path / "u", "none", "test")[1].numpy(), answer(points(40, 50)))
    assert run("info", tmp_path / "f") == 0
    out = capsys.readouterr().out
    assert "poisson from Poisson's equation, f at 40 points" in out and "targets   one number <f8, no classes" in out
    assert run("convert", "poisson", tmp_path / "none", "--points", "0") == 2
    assert run("convert", "npz", save_npz(tmp_path / "raw.npz", **RAW), tmp_path / "npz", "--float64", "--dry-run") == 0
    assert "samples (3,) <f8, regression" in capsys.readouterr().out
