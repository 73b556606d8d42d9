"""The two ways in on one rank: any module on tensors in memory, and a configured run on shards."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from train_cases import CLASSES, INPUTS, network, settings, shards, task

from apts_mpi import Config, Result, Status, run_training, train
from apts_mpi.assembly import Problem, build, from_tensors
from apts_mpi.contracts import Communicator, StepInfo, Timers
from apts_mpi.parallel.handshake import SetupError
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.rundir import read_run
from apts_mpi.storage.convert import convert
from apts_mpi.storage.records import RunDirectory, read_parameters
from apts_mpi.storage.sources import Options


def flat(module: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach()


def train_here(module: nn.Module, x: Tensor, y: Tensor, **keys: object) -> Result:
    keys.setdefault("config", settings(stop={"epochs": 5}))
    return train(module, x, y, comm=SerialCommunicator(), **keys)


def test_ten_lines_of_library_use(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook: nothing but the public names, no communicator, nothing on disk."""
    monkeypatch.chdir(tmp_path)
    x, y = task()
    model = nn.Sequential(nn.Linear(INPUTS, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    result = train(model, x, y, loss=nn.CrossEntropyLoss(), test=task(100, seed=5), preset="default", stop={"epochs": 10})
    assert result.accuracy > 80
    assert result.status is Status.EPOCHS and result.directory == "" and not list(tmp_path.iterdir())
    text = "".join(capsys.readouterr())
    assert "test accuracy" in text and "Sequential, n = " in text and re.search(r"device +cpu, \d+ threads? per rank", text)
    assert re.search(r"set up in \d+\.\d s, first iteration under way", text)


@pytest.mark.parametrize("share_gpu", [False, True])
def test_a_rank_builds_its_problem_without_the_others(share_gpu: bool) -> None:
    """One of them may fail meanwhile: what it would have to answer is never asked."""
    x, y = task()
    alone: Any = SimpleNamespace(size=3, rank=1)
    data = from_tensors(x, y, task(9, seed=5), network())
    problem = build(data, network(), nn.CrossEntropyLoss(), settings(run={"share_gpu": share_gpu}), alone, torch.device("cpu"), 2)
    assert (problem.mine, problem.owned) == (range(1, 2), range(80, 160))


@pytest.mark.parametrize("name", ["default", "lsr1", "paper"])
def test_trained_weights_are_back_in_the_module(name: str) -> None:
    """Loss and accuracy are measured again, by torch alone."""
    (x, y), (test_x, test_y) = task(), task(101, seed=5)
    model = network()
    before = flat(model).clone()
    result = train_here(model, x, y, test=(test_x, test_y), config=settings(name, stop={"epochs": 10}, solver={"subdomains": 3}))
    assert torch.equal(flat(model), result.theta) and not torch.equal(before, result.theta)
    assert result.loss == pytest.approx(float(nn.functional.cross_entropy(model(x).detach(), y)), rel=1e-5)
    assert result.accuracy == pytest.approx(100 * float((model(test_x).argmax(1) == test_y).double().mean()), abs=1e-9)
    assert result.loss < 0.9 * result.steps[0].loss
    result.theta.zero_()
    assert float(flat(model).norm()) > 0  # parameters of its own
    nn.functional.cross_entropy(model(x), y).backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_losses_by_name_module_and_scalar_callable_give_the_same_run() -> None:
    x, y = task()
    losses = ["cross_entropy", nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum"), nn.functional.cross_entropy]
    runs = [train_here(network(), x, y, loss=loss) for loss in losses]
    assert all(torch.equal(runs[0].theta, run.theta) for run in runs[1:3])
    assert torch.allclose(runs[0].theta, runs[3].theta, rtol=1e-3, atol=1e-4) and runs[3].loss < runs[3].steps[0].loss


@pytest.mark.parametrize("column", [False, True])
def test_regression(column: bool) -> None:
    x, _ = task()
    targets = (x[:, 0] - 2 * x[:, 1]).double()  # another dtype than the run's
    targets = targets.view(-1, 1) if column else targets
    model = nn.Linear(INPUTS, 1)
    result = train_here(model, x, targets, loss="mse", test=(x, targets), config=settings(stop={"epochs": 40}))
    assert math.isnan(result.accuracy) and result.loss < 1e-4
    assert torch.allclose(model.weight.detach(), torch.tensor([[1.0, -2, 0, 0, 0, 0]]), atol=0.05)


def test_without_a_test_set_there_is_no_accuracy() -> None:
    assert math.isnan(train_here(network(), *task()).accuracy)


def test_float64_all_the_way() -> None:
    model = network()
    result = train_here(model, *task(), config=settings(model={"dtype": "float64"}, stop={"epochs": 3}))
    assert result.theta.dtype == torch.float64 and flat(model).dtype == torch.float64


def test_same_seed_same_bits_and_another_seed_another_order() -> None:
    def theta(seed: int) -> Tensor:
        config = settings(data={"batch": 60}, stop={"epochs": 2}, run={"seed": seed})
        return train_here(network(), *task(), config=config).theta

    assert torch.equal(theta(0), theta(0)) and not torch.equal(theta(0), theta(1))


def test_training_goes_on_where_it_ended() -> None:
    model = network()
    first = train_here(model, *task())
    second = train_here(model, *task())
    assert second.steps[0].loss == pytest.approx(first.loss, rel=1e-6) and second.loss < first.loss


@pytest.mark.fault(17)
def test_losses_of_a_hundred_million_in_float32() -> None:
    """The run takes its steps and no rounding of f is taken for a decrease."""
    x, _ = task()
    targets = torch.full((len(x),), 1e4)
    result = train_here(nn.Linear(INPUTS, 1), x, targets, loss="mse", config=settings(stop={"epochs": 10}))
    assert 9e7 < result.loss < result.steps[0].loss < 1.1e8 and result.exit_code == 0
    assert all(info.loss_new <= info.loss for info in result.steps) and sum(info.accepted for info in result.steps) >= 5


@pytest.mark.fault(20)
@pytest.mark.fault(21)
def test_odd_networks_train() -> None:
    """Tied weights, frozen and unused parameters, a single one."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.unused = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, INPUTS), nn.Linear(2, 2)
            self.b.weight = self.a.weight
            self.a.bias.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)))

    model = Net()
    frozen, unused = model.a.bias.detach().clone(), flat(model.unused).clone()
    x, y = task()
    result = train_here(model, x, y, config=settings(stop={"epochs": 10}))
    assert result.theta.numel() == INPUTS * INPUTS + INPUTS + 6 and result.loss < result.steps[0].loss
    assert torch.equal(model.a.bias, frozen) and torch.equal(flat(model.unused), unused) and model.a.weight is model.b.weight
    one = train_here(nn.Linear(1, 1, bias=False), x[:, :1], x[:, :1] * 3, loss="mse", config=settings(stop={"epochs": 20}))
    assert float(one.theta) == pytest.approx(3, abs=1e-3)


@pytest.mark.fault(25)
@pytest.mark.parametrize("memory", [0, 1, 50])
def test_memory_of_any_length(memory: int) -> None:
    config = settings(local={"memory": memory}, global_step={"memory": memory}, stop={"epochs": 4})
    result = train_here(network(), *task(), config=config)
    assert result.loss < result.steps[0].loss


# What is refused.


@pytest.mark.fault(31)
@pytest.mark.parametrize(("inputs", "targets", "test"), [(10, 9, None), (0, 0, None), (10, 10, (4, 5)), (10, 10, (0, 0))])
def test_lengths_that_do_not_fit(inputs: int, targets: int, test: tuple[int, int] | None) -> None:
    x, y = task()
    wrong = test or (inputs, targets)
    with pytest.raises(SetupError, match=f"inputs and targets must have the same positive length, got {wrong[0]} and {wrong[1]}"):
        train_here(network(), x[:inputs], y[:targets], test=(x[: test[0]], y[: test[1]]) if test else None)


def test_wrong_preset_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="preset expects {default,lsr1,paper}, got 'papper'; did you mean paper"):
        train(network(), *task(), preset="papper")


@pytest.mark.parametrize(("keys", "words"), [
    ({"stop": {"iteration": 1}}, "unknown key stop.iteration; did you mean stop.iterations?"),
    ({"stopp": {"epochs": 1}}, "unknown key stopp.epochs; did you mean stop.epochs?"),
    ({"stop": {"iterations": "1"}}, "stop.iterations expects INT, got '1'"),
    ({"stop": 3}, "stop is a section; give one of its keys"),
    ({"config": Config(preset="lsr1")}, "config is named preset lsr1, but has the default's values; make it with preset('lsr1')"),
])  # fmt: skip
def test_wrong_library_settings(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        train(network(), *task(), **keys)


def test_sections_named_like_arguments() -> None:
    """The section model beside the argument model; a tuple where a file has a list."""
    run = {"monitor": "none", "device": "cpu"}
    result = train(network(), *task(), model={"dtype": "float64"}, trust_region={"eta2": 0.8}, stop={"iterations": 1}, run=run)
    assert result.theta.dtype == torch.float64


def test_the_loss_of_the_section_model_is_that_of_the_run() -> None:
    x, _ = task()
    both = {"stop": {"iterations": 1}, "run": {"monitor": "none", "device": "cpu"}}
    targets = torch.randn(len(x), 3, generator=torch.Generator().manual_seed(0))
    by_key, by_name = (train(network(), x, targets, **words, **both) for words in ({"model": {"loss": "mse"}}, {"loss": "mse"}))
    assert by_key.loss == by_name.loss and torch.equal(by_key.theta, by_name.theta)
    with pytest.raises(ValueError, match="the loss is given twice: loss = 'cross_entropy' and model.loss = 'mse'"):
        train(network(), x, targets, loss="cross_entropy", model={"loss": "mse"})
    with pytest.raises(ValueError, match="the module is taken as it is"):
        train(network(), x, targets, model={"name": "cnn"})


def test_one_output_is_no_class() -> None:
    x, _ = task()
    with pytest.raises(SetupError, match="loss cross_entropy of one output is always zero.* for numbers set model.loss to mse"):
        train_here(torch.nn.Linear(x.shape[1], 1), x, torch.randn(len(x), 1))


def test_config_and_keys_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"give either config or single keys, got both \(stop\)"):
        train(network(), *task(), config=settings(), stop={"epochs": 1})


def test_unknown_loss_names_the_known_ones() -> None:
    with pytest.raises(SetupError, match="model.loss must be one of cross_entropy, mse or package.module:attribute, got 'hinge'"):
        train_here(network(), *task(), loss="hinge")


@pytest.mark.fault(27)
def test_more_subdomains_than_samples() -> None:
    x, y = task()
    with pytest.raises(SetupError, match="7 subdomains need at least as many samples, the data set has 6"):
        train_here(network(), x[:6], y[:6], config=settings(solver={"subdomains": 7}))
    assert train_here(network(), x[:6], y[:6], config=settings(solver={"subdomains": 6}, stop={"epochs": 2})).exit_code == 0


@pytest.mark.fault(18)
def test_dropout_is_found_at_the_start() -> None:
    """Refused in training mode, harmless in evaluation mode."""
    model = nn.Sequential(nn.Linear(INPUTS, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES))
    with pytest.raises(SetupError, match=r"random at fixed parameters \(layers 1\): loss .*; switch dropout off"):
        train_here(model, *task())
    assert train_here(model.eval(), *task()).status is Status.EPOCHS


@pytest.mark.fault(18)
def test_a_module_that_is_random_in_its_own_way_is_found() -> None:

    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.randn(self.out_features)

    with pytest.raises(SetupError, match=r"random at fixed parameters: loss"):
        train_here(Noisy(INPUTS, CLASSES), *task())


@pytest.mark.fault(19)
def test_batch_norm_is_refused() -> None:
    with pytest.raises(SetupError, match="layer '1' is a BatchNorm"):
        train_here(nn.Sequential(nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)), *task())


@pytest.mark.fault(4)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_parameter_not_finite_at_the_start_is_named(bad: float) -> None:
    model = network()
    with torch.no_grad():
        model[2].bias[1] = bad
    with pytest.raises(SetupError, match="parameter 2.bias holds nan or inf at the start"):
        train_here(model, *task())


@pytest.mark.fault(4)
@pytest.mark.fault(31)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_inputs_and_targets_not_finite_at_the_start(bad: float) -> None:
    """The first such sample of all that the rank holds."""
    x, _ = task()
    broken, targets = x.clone(), x[:, :1].clone()
    broken[200, 2] = broken[239, 0] = bad
    with pytest.raises(SetupError, match="training sample 200 holds nan or inf in its inputs"):
        train_here(nn.Linear(INPUTS, 1), broken, x[:, :1], loss="mse")
    targets[7] = bad
    with pytest.raises(SetupError, match="training sample 7 holds nan or inf in its targets"):
        train_here(nn.Linear(INPUTS, 1), x, targets, loss="mse")
    with pytest.raises(SetupError, match="test sample 7 holds nan or inf in its targets"):
        train_here(nn.Linear(INPUTS, 1), x, x[:, :1], loss="mse", test=(x, targets))


def one_number(outputs: Tensor) -> Tensor:
    return outputs.sum()


@pytest.mark.parametrize(("keys", "words"), [
    ({"loss": "mse"}, r"loss mse needs a number for every output: .*targets \(\d+,\); for class labels use cross_entropy"),
    ({"loss": one_number}, "the model or the loss failed on the first samples: .*positional argument"),
    ({"loss": 3}, r"model.loss must be a name or a function of \(outputs, targets\), got 3"),
    ({"loss": lambda outputs, targets: outputs[:, 7]}, "the model or the loss failed on the first samples: index 7"),
])  # fmt: skip
def test_a_loss_that_does_not_fit(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(SetupError, match=words) as caught:
        train_here(network(), *task(), **keys)
    assert caught.value.usage and "\n" not in str(caught.value)


def test_a_model_that_does_not_fit() -> None:
    with pytest.raises(SetupError, match="the model or the loss failed on the first samples: mat1 and mat2 shapes cannot be multiplied"):
        train_here(nn.Linear(INPUTS + 1, CLASSES), *task())


def test_a_class_of_loss_is_made_an_instance() -> None:
    runs = [train_here(network(), *task(), loss=loss).theta for loss in (nn.CrossEntropyLoss, "torch.nn:CrossEntropyLoss", "cross_entropy")]
    assert torch.equal(runs[0], runs[2]) and torch.equal(runs[1], runs[2])


def test_arrays_small_labels_and_inputs_with_a_history() -> None:
    x, y = task()
    fixed = x.numpy().copy()
    fixed.flags.writeable = False
    wanted = train_here(network(), x, y).theta
    for inputs, labels in [(x.numpy(), y.numpy()), (fixed, y.int()), (x.clone().requires_grad_() * 1, y.to(torch.uint8))]:
        assert torch.equal(train_here(network(), inputs, labels).theta, wanted)


@pytest.mark.fault(31)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_integer_inputs_are_no_tokens_unless_embedded(dtype: torch.dtype) -> None:
    x = torch.randint(0, 9, (60, INPUTS)).to(dtype)
    y = torch.arange(60) % CLASSES
    with pytest.raises(SetupError, match=f"inputs have dtype {dtype}; convert images to float first"):
        train_here(network(), x, y)
    model = nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(2 * INPUTS, CLASSES))
    if dtype == torch.int64:
        assert train_here(model, x, y).exit_code == 0
    else:
        with pytest.raises(SetupError, match="tokens are int32 or int64"):
            train_here(model, x, y)


def test_a_disk_error_leaves_the_module_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = RunDirectory.finish

    def full(*args: Any) -> None:
        finish(*args)
        raise OSError("no space left")

    monkeypatch.setattr("apts_mpi.storage.records.RunDirectory.finish", full)
    model = network()
    before = flat(model).clone()
    with pytest.raises(SetupError, match="no space left"):
        train_here(model, *task(), config=settings(stop={"epochs": 2}, run={"dir": str(tmp_path / "r")}))
    bases = [p.untyped_storage().data_ptr() for p in model.parameters()]
    assert len(set(bases)) == len(bases) and all(p.grad is None for p in model.parameters()) and not torch.equal(flat(model), before)


# Runs on shards.


def configured(folder: Path, **sections: dict[str, object]) -> Config:
    data = {"path": str(folder / "set"), **sections.pop("data", {})}
    run = {"dir": str(folder / "run"), **sections.pop("run", {})}
    return settings(data=data, run=run, **{"stop": {"epochs": 6}, **sections})


def test_run_on_shards_leaves_the_returned_parameters_behind(tmp_path: Path) -> None:
    shards(tmp_path)
    result = run_training(configured(tmp_path, solver={"subdomains": 2}), SerialCommunicator())
    assert result.status is Status.EPOCHS and result.accuracy > 80 and result.directory == str(tmp_path / "run")
    stored = read_parameters(tmp_path / "run")
    assert list(stored) == ["1.weight", "1.bias", "3.weight", "3.bias", "5.weight", "5.bias"] and stored["1.weight"].shape == (64, 12)
    assert np.array_equal(np.concatenate([value.ravel() for value in stored.values()]), result.theta.numpy())
    completion = read_run(tmp_path / "run").completion
    assert completion is not None and completion.theta_sha256 == hashlib.sha256(result.theta.numpy().tobytes()).hexdigest()
    assert (completion.subdomains, completion.ranks, completion.n_params) == (2, 1, result.theta.numel())
    assert completion.accuracy == result.accuracy and completion.iterations == len(result.steps) == 6


def test_library_runs_write_a_directory_when_asked(tmp_path: Path) -> None:
    model = network()
    result = train_here(model, *task(), config=settings(stop={"epochs": 2}, run={"dir": str(tmp_path / "r")}))
    stored = read_parameters(tmp_path / "r")
    assert result.directory == str(tmp_path / "r")
    assert all(np.array_equal(stored[name], p.detach().numpy()) for name, p in model.named_parameters())


def test_number_of_shards_does_not_matter(tmp_path: Path) -> None:
    thetas = []
    for count in (1, 4):
        (tmp_path / str(count)).mkdir()
        shards(tmp_path / str(count), count=count)
        config = configured(tmp_path / str(count), data={"batch": 40}, stop={"iterations": 3})
        thetas.append(run_training(config, SerialCommunicator()).theta)
    assert torch.equal(*thetas)


def test_limit_uses_the_first_samples_alone(tmp_path: Path) -> None:
    shards(tmp_path)
    few = run_training(configured(tmp_path, data={"limit": 30}, solver={"subdomains": 2}), SerialCommunicator())
    assert 30 <= few.steps[0].gradient_samples <= (10 + 3) * (30 + 2 * 1)  # nu + 3 passes over them and the borrowed
    same = run_training(configured(tmp_path, data={"limit": 10**6}), SerialCommunicator())
    assert same.steps[0].loss == run_training(configured(tmp_path), SerialCommunicator()).steps[0].loss != few.steps[0].loss


@pytest.mark.parametrize("form", ["scalar", "channel", "none"])
def test_normalisation_of_the_first_loss(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first loss of a run equals torch's on inputs normalised by hand."""
    shards(tmp_path)
    (tmp_path / "first_network.py").write_text(
        "from torch import nn\n"
        "def make(shape, outputs):\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, outputs))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "first_network", raising=False)
    config = configured(tmp_path, data={"normalize": form}, model={"name": "first_network:make"}, stop={"iterations": 1})
    result = run_training(config, SerialCommunicator())
    raw = np.load(tmp_path / "raw.npz")
    x = torch.from_numpy(raw["x_train"]).double() / (1 if form == "none" else 255)
    if form != "none":
        x = (x - x.mean()) / x.std(unbiased=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES))
    wanted = nn.functional.cross_entropy(model.double()(x), torch.from_numpy(raw["y_train"]))
    assert result.steps[0].loss == pytest.approx(wanted.item(), rel=1e-5)


def test_factory_by_path_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards(tmp_path)
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def wide(shape, outputs):\n    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], outputs))\n"
        "def twice(outputs, targets):\n    return 2 * nn.functional.cross_entropy(outputs, targets, reduction='none')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    model = {"name": "my_networks:wide", "loss": "my_networks:twice"}
    result = run_training(configured(tmp_path, model=model), SerialCommunicator())
    assert result.theta.numel() == 39 and result.accuracy > 80


@pytest.mark.parametrize(("model", "words"), [
    ({"name": "resnet50"}, "model.name must be one of mlp, tanh, poisson, cnn, resnet, transformer, paper-mnist, paper-mnist-sigmoid"),
    ({"loss": "hinge"}, "model.loss must be one of cross_entropy, mse or package.module:attribute"),
    ({"name": "no_such_package:make"}, "model.name = 'no_such_package:make' cannot be imported"),
])  # fmt: skip
def test_unknown_names(model: dict[str, str], words: str, tmp_path: Path) -> None:
    shards(tmp_path)
    with pytest.raises(SetupError, match=re.escape(words)) as caught:
        run_training(configured(tmp_path, model=model), SerialCommunicator())
    assert caught.value.usage and not (tmp_path / "run").exists()


def test_missing_data_set_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="(?s)no data set at .*set .*apts-mpi data convert") as caught:
        run_training(configured(tmp_path), SerialCommunicator())
    assert str(tmp_path / "set") in str(caught.value)


def test_a_file_of_the_data_set_is_not_its_folder(tmp_path: Path) -> None:
    shards(tmp_path)
    for name, words in (("manifest.json", f"name its folder, {tmp_path / 'set'}$"), ("test-00000-of-00001.h5", "that holds manifest.json")):
        with pytest.raises(SetupError, match=f"{name} is a file, and a data set is a folder; .*{words}"):
            run_training(configured(tmp_path, data={"path": str(tmp_path / "set" / name)}), SerialCommunicator())


def test_characters_are_not_for_every_model(tmp_path: Path) -> None:
    (tmp_path / "raw.txt").write_text("to be or not to be, that is the question " * 40)
    convert("text", tmp_path / "raw.txt", tmp_path / "set", options=Options(window=8))
    with pytest.raises(SetupError, match="dtype.*; the samples are characters, .*: model.name = transformer does"):
        run_training(configured(tmp_path), SerialCommunicator())


@pytest.mark.parametrize("resume", ["never", "auto"])
def test_a_file_is_no_run_directory(tmp_path: Path, resume: str) -> None:
    shards(tmp_path)
    (tmp_path / "run").write_text("a file")
    with pytest.raises(SetupError, match=f"run.dir {tmp_path / 'run'} is a file; give "):
        run_training(configured(tmp_path, run={"resume": resume}), SerialCommunicator())


def test_a_program_brings_its_own_stepper(tmp_path: Path) -> None:
    """Normalised gradient descent of the caller's: its steps are taken, its facts written down, and nothing of ours steps."""
    shards(tmp_path)
    lengths: list[float] = []

    class Stepper:
        def __init__(self, config: Config, problem: Problem, comm: Communicator, timers: Timers, late: Callable[[], bool]) -> None:
            self.theta, self.objective, self.late, self.k = problem.theta, problem.objective, late, 0

        def step(self, epoch: int = 0, batch: int = 0) -> StepInfo:
            self.objective.select(epoch, batch)
            grad, before = torch.zeros_like(self.theta), self.theta.clone()
            loss = float(sum(subdomain.owned(self.theta, grad) for subdomain in self.objective.subdomains))
            self.theta.sub_(0.05 * grad / grad.norm())
            lengths.append(float((self.theta - before).norm()))
            self.k += 1
            return StepInfo(self.k - 1, epoch, loss, math.nan, math.nan, True, math.nan, 0.05, math.nan, False, math.nan, 0, 0,
                            math.nan, 120, 0, 1, Status.RUNNING, self.late())  # fmt: skip

    config = configured(tmp_path, stop={"epochs": 7})
    result = run_training(config, SerialCommunicator(), Stepper, {"program": "of the test"})
    assert lengths == pytest.approx([0.05] * 7, rel=1e-4) and len(result.steps) == 7
    assert result.loss < result.steps[0].loss and result.passes == 7
    run = read_run(result.directory)
    assert run.provenance["program"] == "of the test" and run.completion is not None and run.completion.iterations == 7
    late = run_training(configured(tmp_path, stop={"wall_time": 1e-9}), SerialCommunicator(), Stepper)
    assert late.status is Status.WALL_TIME and len(late.steps) == 1 and "program" not in read_run(late.directory).provenance


def test_regression_on_shards(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((80, 3)).astype(np.float32)
    y = (x @ np.array([[1.0], [2.0], [3.0]])).astype(np.float32)
    np.savez(tmp_path / "raw.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    convert("npz", tmp_path / "raw.npz", tmp_path / "set", shards=2)
    result = run_training(configured(tmp_path, model={"widths": (), "loss": "mse"}, stop={"epochs": 30}), SerialCommunicator())
    assert math.isnan(result.accuracy) and result.loss < 1e-3


def test_the_callers_tensors_stay_as_they_are() -> None:
    x, y = task()
    kept = copy.deepcopy((x, y))
    train_here(network(), x, y, config=settings(data={"batch": 60}, stop={"epochs": 1}))
    assert torch.equal(x, kept[0]) and torch.equal(y, kept[1])


@pytest.mark.fault(29)
@pytest.mark.parametrize("label", [-1, 3])
def test_label_out_of_range_names_the_sample(label: int) -> None:
    """For tensors: before the first iteration, with the sample's number."""
    torch.manual_seed(0)
    x, y = torch.randn(200, 4), torch.arange(200) % 3
    y[150] = label
    with pytest.raises(RuntimeError, match=f"training sample 150 has label {label}, the model has classes 0..2"):
        train(nn.Linear(4, 3), x, y, stop={"epochs": 1}, run={"monitor": "none"})


def test_settings_of_data_on_disk_are_refused_for_tensors() -> None:
    with pytest.raises(ValueError, match=r"data\.limit"):
        train(nn.Linear(4, 3), torch.randn(9, 4), torch.arange(9) % 3, data={"limit": 5})


def test_a_gpu_is_told_to_compute_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switches alone: rho compares nearly equal losses, and TF32 would blur them."""
    asked: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on, warn_only: asked.append(on and warn_only))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that what the code sets is undone
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    sys.modules["apts_mpi.train"]._prepare_gpu(Config().run)
    assert asked == [True] and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.backends.cudnn.allow_tf32
