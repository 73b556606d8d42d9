"""Train as ``apts-mpi train --method sgd`` does, under torch's DistributedDataParallel, and leave the same run directory.

    mpiexec -n 2 python benchmarks/ddp_train.py CONFIG.toml [--section.key VALUE ...]

The same model, first parameters, data set of shards, sample order, minibatches, learning rates and torch's fused SGD; gradients are
views of DDP's buckets. The gradient is that of the mean over the whole minibatch, also where the ranks' shares differ in size. It
runs over gloo, over nccl if every rank has a GPU, on one node, where the ranks meet at 127.0.0.1.

What its records mean:
    loss                   rank 0's mean over its own share: users of DDP do not sum it
    grad_norm, step_norm   nan, nobody asks for them
    gradient_samples       of all ranks
    reductions, messages   one a step, bytes those of n numbers, though DDP sends a message for each of its buckets
    evaluate               time of forward and backward pass with the sums inside them; there is no region reduce
A share is evaluated in one piece. Every 16 steps rank 0 tells the others whether to end for lack of time or finite numbers.

Settings that DDP cannot follow end with status 2: another method, baseline.overlap, other subdomains than one a rank, an
emulated network, stop.target_loss and stop.grad_norm.
"""

from __future__ import annotations

import math
import sys
from functools import partial

import torch
import torch.distributed as dist
from gloo import connect
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from apts_mpi import cli, timing
from apts_mpi.__main__ import in_parallel
from apts_mpi.assembly import Problem
from apts_mpi.config import Config
from apts_mpi.contracts import Communicator, Flag, Status, StepInfo, Timers, Wishes
from apts_mpi.parallel.wrapper import WrappedCommunicator
from apts_mpi.problem.objective import batch_size, plan
from apts_mpi.solver.schedule import Schedule
from apts_mpi.train import run_training

USAGE = "usage: mpiexec -n P python benchmarks/ddp_train.py CONFIG.toml [--section.key VALUE ...]"
CHECK = 16  # steps between two words of rank 0
FACTS = {
    "program": "benchmarks/ddp_train.py: torch DistributedDataParallel",
    "recorded_loss": "mean of rank 0's share before the step, not summed over the ranks",
}


class Counted(WrappedCommunicator):
    """Counts what DDP sends beside it."""

    sent = sent_bytes = 0

    @property
    def bytes(self) -> int:
        return self.inner.bytes + self.sent_bytes

    @property
    def messages(self) -> int:
        return self.inner.messages + self.sent


class Shares:
    """This rank's samples of every minibatch, as ``train`` orders them."""

    def __init__(self, config: Config, problem: Problem, rank: int) -> None:
        orders = plan(problem.samples, problem.subdomains, batch=config.data.batch, overlap=0.0, seed=config.run.seed)
        self.batches, self._order, self._samples = orders[0].batches, orders[rank], problem.objective.samples
        self.totals = [sum(batch_size(order, k) for order in orders) for k in range(self.batches)]  # |D_k|
        self._full = self._take(0, 0) if self.batches == 1 else None

    def _take(self, epoch: int, batch: int) -> tuple[Tensor, Tensor]:
        indices = [part for part in self._order.of_batch(epoch, batch) if len(part)]
        return self._samples.take(torch.cat([self._samples.rows(part) for part in indices]))

    def of(self, epoch: int, batch: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, as the model sees them."""
        return self._full or self._take(epoch, batch)


class DdpStepper:
    """SGD under DistributedDataParallel; a ``solver.build.Stepper`` whose parameters are views of ``theta``."""

    def __init__(
        self, comm: Counted, config: Config, problem: Problem, _: Communicator, timers: Timers, wishes: Wishes
    ) -> None:  # fmt: skip
        connect(comm, problem.theta.device)
        self.theta, self._comm, self._timers, self._wishes = problem.theta, comm, timers, wishes
        self._shares, self._loss, self._bad_limit = Shares(config, problem, comm.rank), problem.loss, config.stop.nonfinite
        self._schedule = Schedule(config, self._shares.batches)
        problem.flat.point(self.theta, None)
        self._model = DistributedDataParallel(problem.flat.module, gradient_as_bucket_view=True)
        b, moved = config.baseline, [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.SGD(
            moved, b.lr, momentum=b.momentum, nesterov=b.nesterov, weight_decay=b.weight_decay, fused=True
        )  # fmt: skip
        self._verdict = torch.zeros(2, device=self.theta.device)  # rank 0's: is it late, are there too many bad steps
        self._k = self._bad = 0

    def step(self, epoch: int = 0, batch: int = 0) -> StepInfo:
        """One step on minibatch ``batch`` of ``epoch``; every rank calls."""
        inputs, targets = self._shares.of(epoch, batch)
        total = self._shares.totals[batch]
        with self._timers(timing.EVALUATE):
            loss = self._backward(inputs, targets, self._comm.size / total)
        with self._timers(timing.ACCEPT):
            self._optimizer.param_groups[0]["lr"] = self._schedule(epoch + batch / self._shares.batches)
            self._optimizer.step()
        self._count(loss)
        return self._record(epoch, loss, total, *self._heard())

    def _backward(self, inputs: Tensor, targets: Tensor, weight: float) -> float:
        """This rank's mean loss; DDP takes the mean of the ranks' gradients, so that ``weight`` is P / |D_k|."""
        self._optimizer.zero_grad()
        total = self._loss(self._model(inputs), targets).sum()
        (total * weight).backward()  # type: ignore[no-untyped-call]
        return float(total.detach()) / len(targets)

    def _count(self, loss: float) -> None:
        self._k += 1
        self._bad = 0 if math.isfinite(loss) else self._bad + 1
        nbytes = self.theta.numel() * self.theta.element_size()
        self._comm.sent += 1
        self._comm.sent_bytes += nbytes if self._comm.size > 1 else 0
        self._timers.count(timing.EVALUATE, 1, nbytes if self._comm.size > 1 else 0)

    def _heard(self) -> tuple[bool, bool]:
        """(late, too many steps that were not finite) in the words of rank 0; once theta is not finite, it is so on every rank."""
        if self._k % CHECK:
            return False, False
        self._verdict[0], self._verdict[1] = float(Flag.STOP in self._wishes()), float(self._bad >= self._bad_limit)
        dist.broadcast(self._verdict, 0)
        late, bad = self._verdict.tolist()
        return bool(late), bool(bad)

    def _record(self, epoch: int, loss: float, samples: int, late: bool, bad: bool) -> StepInfo:
        nan = math.nan
        return StepInfo(
            k=self._k - 1, epoch=epoch, loss=loss, grad_norm=nan, rho=nan, accepted=True, radius=nan, step_norm=nan, global_rho=nan,
            global_accepted=False, global_radius=nan, local_iters=0, local_accepted=0, loss_new=nan, gradient_samples=samples,
            value_samples=0, reductions=1, status=Status.NONFINITE if bad else Status.RUNNING,
            raised=frozenset([Flag.STOP] if late else []),
        )  # fmt: skip


def refusal(config: Config, ranks: int) -> str:
    """What DDP cannot follow in these settings; empty if it can follow all."""
    wrong = {
        f"method must be sgd, got {config.method}": config.method != "sgd",
        "baseline.overlap must be false: DDP overlaps in its own way": config.baseline.overlap,
        f"solver.subdomains must be 0 or the {ranks} ranks, got {config.solver.subdomains}": config.solver.subdomains not in (0, ranks),
        "comm.emulate_latency and comm.emulate_bandwidth must be 0: torch's sums cannot be slowed down":
            bool(config.comm.emulate_latency or config.comm.emulate_bandwidth),
        "stop.target_loss and stop.grad_norm must not be set: no rank knows them": math.isfinite(config.stop.target_loss)
            or config.stop.grad_norm > 0,
    }  # fmt: skip
    return "; ".join(text for text, found in wrong.items() if found)


def train(arguments: list[str], comm: Communicator | None) -> int:
    """Read, check and train; every rank calls."""
    assert comm is not None
    words, options = cli.split_options(arguments)
    if len(words) != 1 or words[0].startswith("-"):
        return refuse(comm, USAGE)
    config = cli.shared_config(partial(cli.read_settings, words[0], options), comm)
    if config is None:
        return cli.USAGE
    problem = refusal(config, comm.size)
    if problem:
        return refuse(comm, f"DistributedDataParallel cannot follow these settings: {problem}")
    counted = Counted(comm)
    result = run_training(config, counted, partial(DdpStepper, counted), FACTS)
    dist.destroy_process_group()
    return result.exit_code


def refuse(comm: Communicator, text: str) -> int:
    if comm.rank == 0:
        cli.complain(text)
    return cli.USAGE


def main() -> int:
    if sys.argv[1:] in (["-h"], ["--help"]):
        cli.say(__doc__ or "")
        return 0
    return in_parallel(cli.Command(partial(train, sys.argv[1:]), parallel=True))


if __name__ == "__main__":
    sys.exit(main())
