"""Benchmarks beyond the paper: what final parameters are worth, and the table, from small runs and from made-up ones."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from paper import beyond, worth
from paper.beyond import Place
from paper.curves import folder_of
from paper.limits import Limits
from paper.runner import Runner
from paper.store import Store
from paper.table import write
from paper.wanted import Options
from test_paper_tables import MadeUp, curve

from apts_mpi.storage.convert import convert
from apts_mpi.storage.parameters import read_parameters
from apts_mpi.storage.sources import Options as Source


class Exact(torch.nn.Module):
    """The answer, a share too large."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = torch.nn.Parameter(torch.tensor(1 + share, dtype=torch.float64))

    def solution(self, x: torch.Tensor) -> torch.Tensor:
        x, y = math.pi * x[:, 0], math.pi * x[:, 1]
        return self.share * (torch.sin(x) * torch.sin(y) + torch.sin(2 * x) * torch.sin(3 * y) / 2)


def test_the_error_is_relative_to_the_answer() -> None:
    assert worth.error(Exact(0.0)) < 1e-14
    assert worth.error(Exact(-0.125)) == pytest.approx(0.125, rel=1e-12)


def test_small_runs_from_the_command_to_the_table(tmp_path: Path) -> None:
    convert("poisson", None, tmp_path / "data", options=Source(points=64))
    place = Place("poisson", 6, 32, 2, {"adam": (1e-3, 1e-2)}, presets=("default",))
    said: list[str] = []
    options = Options(tmp_path / "runs", {"poisson": str(tmp_path / "data")}, 1, 1, say=said.append)
    store = Store(options.runs)
    assert Runner(options).make(beyond.searches((place,))) == 0, said
    assert Runner(options).make(beyond.finals(store, (place,))) == 0 and said[-1].endswith("0 to make")  # one seed: they are there
    (table,) = beyond.tables(store, (place,))
    mine, last, first_order, adam, at_mean = table.rows
    assert "no-metric" in first_order["method"] and first_order["error"] != mine["error"]
    assert (mine["method"], adam["method"]) == ("preset default", "Adam 32, rate 0.01, end of the grid")
    assert (last["method"], at_mean["method"][:12]) == ("preset default, last", "Adam 32, mea")
    assert mine["passes"] <= 6 and adam["passes"] == 6 and (mine["tuning"], adam["tuning"]) == (0, 12)
    assert mine["values"] == last["values"] >= 0 and mine["error"] != last["error"] and adam["error"] != at_mean["error"]
    assert (mine["ranks"], mine["seconds"] > 0) == ("1", True)  # one job
    assert (mine["n"], mine["shown"], mine["runs"]) == (2305, "-", 1)
    assert adam["reductions"] == 12 > mine["reductions"] > 0
    folder = folder_of(options.runs, place.ours()[0], 0)
    assert mine["error"] == worth.worth(folder)["error"] and 0 < mine["error"] < 10
    assert mine["test_loss"] == pytest.approx(loss_by_hand(folder), rel=1e-12)
    (curve_of_it,) = store.curves(place.ours()[0])
    ran = len(curve_of_it.accuracy)
    assert beyond.at_end(replace(place.ours()[0], until=Limits(iterations=ran - 1)), curve_of_it, store)["error"] == mine["error"]
    assert beyond.at_end(replace(place.ours()[0], until=Limits(iterations=ran - 2)), curve_of_it, store) == {}  # too far beyond
    write([table], tmp_path / "results")
    told = json.loads((tmp_path / "results" / "beyond.json").read_text())
    assert told["made_by"][0]["data_fingerprint"] and str(tmp_path) not in json.dumps(told)
    convert("poisson", None, tmp_path / "data", options=Source(points=65), force=True)
    assert worth.worth(folder) == {}  # not the data set of the run


def loss_by_hand(folder: Path) -> float:
    """The residual at the test points with derivatives by autograd."""
    values = [torch.from_numpy(array) for array in read_parameters(folder).values()]
    numbers = np.arange(65, 65 + 16)[:, np.newaxis]
    root = np.roots([1, 0, -1, -1]).real.max()
    points = torch.from_numpy((0.5 + numbers / root ** np.array([1, 2])) % 1).requires_grad_()

    def u(x: torch.Tensor) -> torch.Tensor:
        hidden = 2 * x - 1
        for weight, bias in zip(values[::2], values[1::2], strict=True):
            hidden = torch.nn.functional.linear(hidden if weight is values[0] else torch.tanh(hidden), weight, bias)
        return 16 * (x * (1 - x)).prod(1) * hidden[:, 0]

    slope = torch.autograd.grad(u(points).sum(), points, create_graph=True)[0]
    laplacian = sum(torch.autograd.grad(slope[:, k].sum(), points, retain_graph=True)[0][:, k] for k in range(2))
    x, y = (math.pi * points.detach()).T
    f = math.pi**2 * (2 * torch.sin(x) * torch.sin(y) + 13 * torch.sin(2 * x) * torch.sin(3 * y) / 2)
    return float((laplacian + f).square().mean())


def test_accuracy_decides_where_no_answer_is_known_and_gaps_are_told() -> None:
    place = Place("text-transformer", 4, 64, 1, {"sgd": (0.1, 0.2, 0.3)}, presets=("default",))
    names = [case.name for case in place.search("sgd")]
    runs = {place.ours()[0].name: [curve([40, 41, 42, 43]), curve([40, 41, 42, 45], 1000)], names[0]: [curve([50.0] * 24)],
            names[1]: [curve([51.0] * 24)], place.search("sgd", True)[2].name: [curve([52.0] * 24)]}  # fmt: skip
    mine, sgd, at_mean = beyond.tables(MadeUp(runs), (place,))[0].rows
    assert mine["shown"] == "44.00 [43.00, 45.00]" and mine["runs"] == 2 and mine["error_shown"] == "-"
    assert sgd["method"] == "SGD 64, rate 0.2, end of those tried, 2 of 3 tried" and sgd["tuning"] == 48 and math.isnan(sgd["test_loss"])
    assert at_mean["method"] == "SGD 64, mean, rate 0.3, end of the grid, 1 of 3 tried" and at_mean["accuracy"] == 52
    assert beyond.tables(MadeUp({}), (place,)) == [] and beyond.finals(MadeUp({}), (place,)) == []


def test_ours_in_smaller_minibatches_is_one_more_row_tested_after_as_many_samples() -> None:
    plain = Place("text-transformer", 4, 64, 1, {}, presets=("default",))
    *others, smaller = replace(plain, smaller=(500, 5)).ours()
    assert others == plain.ours()
    assert (smaller.name, smaller.every) == ("text-transformer/ours-batch-500-N2", 5)
    assert smaller.words.index("500") > smaller.words.index("2500")  # the later option counts


def test_a_run_without_its_end_is_worth_nothing(tmp_path: Path) -> None:
    assert worth.worth(tmp_path) == {}
