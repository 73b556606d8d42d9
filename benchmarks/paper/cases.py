"""What is run: problems, budgets and cases. A case is the settings of a run but for its seed; its name is its folder."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

from paper.limits import Limits

OUR_PRESET = "default"  # the constants that all bars are for
OURS = f"--preset {OUR_PRESET}"
MEAN, LAST = "--solver.average 8", "--solver.average 0"  # what is read of a run: the mean of its iterates, as ours has it, or the last one
BASELINE_MEAN = "--baseline.average 8"  # of Adam and SGD, which are read at the last one else
NO_METRIC = "--local.memory 0"  # first order
READ = "Ours, preset `default`, is read at the mean of its iterates (`solver.average` 8), all else at the last iterate"
READ_BOTH = f"{READ}, but where a row says otherwise."


@dataclass(frozen=True)
class Problem:
    """Data, network and minibatch, the same for all methods."""

    name: str
    title: str
    data: str  # the option of the command that names its folder
    options: str
    target: float  # test accuracy to reach, per cent; inf: there is none
    batches: int = 1  # outer iterations of an epoch
    published: str = ""  # as the paper's curves name data and batch, Adam's name after a colon


_TEN = "--data.batch 10000 --data.overlap 0.05"
_TEXT = "--data.batch 2500 --data.overlap 0.05"
_NUMBERS = "--model.loss mse --model.dtype float64"
_SIGMOID = "--model.name paper-mnist-sigmoid"
PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem("mnist-10k", "MNIST, minibatches of 10,000", "mnist", f"--model.name paper-mnist {_TEN}", 98.0, 6),
        Problem("mnist-full", "MNIST, full batch", "mnist", "--model.name paper-mnist", 98.0),
        Problem("mnist-10k-sigmoid", "MNIST, minibatches of 10,000, sigmoid head", "mnist", f"{_SIGMOID} {_TEN}", 97.0, 6,
                "apts_d_mnist_005_10000:adam_mnist_005_10000"),
        Problem("mnist-full-sigmoid", "MNIST, full batch, sigmoid head", "mnist", _SIGMOID, 97.0, 1, "apts_d_mnist_60000:adam_mnist_60000"),
        Problem("cifar10-10k", "CIFAR-10, minibatches of 10,000", "cifar10", f"--model.name paper-cifar10 {_TEN}", 54.0, 5,
                "apts_d_cifar10_005_10000:adam_cifar10_005_10000"),
        Problem("cifar10-full", "CIFAR-10, full batch", "cifar10", "--model.name paper-cifar10", 54.0, 1, ":adam_cifar10_50000"),
        Problem("cifar10-resnet", "CIFAR-10, ResNet", "cifar10", f"--model.name resnet {_TEN}", 70.0, 5),
        Problem("text-transformer", "characters, transformer", "text", f"--model.name transformer {_TEXT}", 50.0, 6),
        Problem("poisson", "Poisson's equation, float64", "poisson", f"--model.name poisson {_NUMBERS}", math.inf),
        Problem("fit", "its answer fitted, float64", "fit", f"--model.name tanh {_NUMBERS}", math.inf),
        Problem("digits", "digits, minibatches of 500", "digits", "--model.name mlp --data.batch 500 --data.overlap 0.05", 94.0, 3),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Runs of one name: the same settings with several seeds."""

    name: str
    problem: Problem
    method: str  # in tables and legends
    options: str  # of train, on top of the problem's
    until: Limits
    subdomains: int = 0  # 0: the method does not know any
    seeds: int = 0  # as many at most; 0: as the command says
    every: int = 1  # outer iterations between evaluations of the test set

    @property
    def scheduled(self) -> bool:
        """Whether the rate depends on where the run ends, so that another end is another run."""
        return "--baseline.schedule cosine" in self.options

    @property
    def words(self) -> list[str]:
        """Options of train that make the case, but for data.path, run.* and, without a schedule, stop.*."""
        known = f"{self.problem.options} {self.options} --run.evaluate_iterations {self.every}"
        if self.scheduled:
            known = " ".join([known, *self.until.stops()])
        return shlex.split(f"{known} --solver.subdomains {self.subdomains}" if self.subdomains else known)


def ours_last(problem: str, subdomains: int, until: Limits) -> Case:
    """Our constants, read at the last iterate."""
    return ours(problem, subdomains, until, LAST, "last")


def ours(problem: str, subdomains: int, until: Limits, more: str = "", variant: str = "") -> Case:
    """Our constants, or with ``more`` options a ``variant`` of them."""
    name = f"{problem}/ours{'-' if variant else ''}{variant}-N{subdomains}"
    return Case(name, PROBLEMS[problem], f"ours, {variant}" if variant else "ours", f"{OURS} {more}".strip(), until, subdomains)


SHARES = 2  # N of methods that know no subdomains: who sums what of a gradient, whatever the ranks are
ORDERS = {"o1": "first", "o2": "lsr1"}


def paper(problem: str, subdomains: int, order: str, combine: str, until: Limits) -> Case:
    """Algorithm 1 with the published constants; ``combine`` mean is the one policy that is not the paper's."""
    solver = ORDERS[order]
    options = f"--preset paper --local.solver {solver} --global_step.solver {solver} --solver.combine {combine}"
    name = f"{problem}/paper-{order}-{combine}-N{subdomains}"
    return Case(name, PROBLEMS[problem], f"paper {order} {combine}", options, until, subdomains)


def adam(
    problem: str, batch: int, rate: float, until: Limits, *, seeds: int = 0, every: int | None = None, mean: bool = False,
) -> Case:  # fmt: skip
    """Adam, tested after every 10,000 samples or, with ``every``, so many steps; ``batch`` 0: full; ``mean``: that of the iterates."""
    steps = every or (max(1, 10000 // batch) if batch else 1)
    name = f"{problem}/adam{'-mean' if mean else ''}-{batch or 'full'}-{rate:g}{f'-every-{every}' if every else ''}"
    options = f"--method adam --baseline.lr {rate:g} --data.batch {batch} --data.overlap 0{' ' + BASELINE_MEAN if mean else ''}"
    label = f"Adam {batch or 'full'}{', mean' if mean else ''}"
    return Case(name, PROBLEMS[problem], label, options, until, SHARES, seeds=seeds, every=steps)


# The paper's policy, but for that the constants of lsr1.
SUM = "--solver.combine sum --solver.radius shared --local.iters 5 --trust_region.eta1 0.25"


def preset(problem: str, name: str, subdomains: int, until: Limits, more: str = "", variant: str = "") -> Case:
    """A preset, whatever ours is; one seed. Where it is ours, the runs are."""
    stem = "ours" if name == OUR_PRESET else f"preset-{name}"
    full = f"{problem}/{stem}{'-' if variant else ''}{variant}-N{subdomains}"
    label = f"preset {name}{', ' if variant else ''}{variant}"
    return Case(full, PROBLEMS[problem], label, f"--preset {name} {more}".strip(), until, subdomains, seeds=1)
