"""The mean of the iterates, which is what a noisy method has to give at its end."""

from __future__ import annotations

from torch import Tensor

from apts_mpi.contracts import State, StepInfo
from apts_mpi.solver.build import Resumable, Stepper
from apts_mpi.solver.vectors import number


class Averaged:
    """A method whose result is the mean of its iterates, the later the heavier (polynomial-decay averaging).

    After iterate k = 0, 1, ...: mean += (p + 1) / (k + p + 1) (theta - mean), so iterate j of k weighs about as (j / k)^p and the last
    k / (p + 1) of them count. The method itself goes on from theta and never sees the mean, so trial steps, radius and messages are those
    of ``inner``: every rank averages equal vectors, nothing is sent. Source: Shamir and Zhang 2013, eq. (4). Every rank calls ``step``.
    """

    def __init__(self, inner: Resumable, power: int) -> None:
        self._inner, self._power, self._count = inner, power, 0
        self.theta = inner.theta  # the iterate, (n,)
        self.mean = inner.theta.clone()  # (n,), of theta's dtype and device

    def step(self, epoch: int = 0, batch: int = 0) -> StepInfo:
        """One outer iteration; every rank calls."""
        info = self._inner.step(epoch, batch)
        self.mean.lerp_(self.theta, (self._power + 1) / (self._count + self._power + 1))
        self._count += 1
        return info

    def state(self) -> State:
        """The method's, and the mean; tensors may be live."""
        inner = self._inner.state()
        return State({**inner.shared, "mean": self.mean, "mean_count": number(self._count)}, inner.own)

    def restore_(self, state: State) -> None:
        """As the method's; the mean begins anew where the state has none, as that of a run which went on without."""
        self._inner.restore_(state)
        self.mean.copy_(state.shared.get("mean", self.theta))
        self._count = int(state.shared.get("mean_count", 0))

    def recall_(self) -> None:
        """As the method's; every rank calls."""
        self._inner.recall_()


def result_of(stepper: Stepper) -> Tensor:
    """The parameters (n,) that a run has to show for itself: the mean where there is one, else theta. Live, not a copy."""
    return stepper.mean if isinstance(stepper, Averaged) else stepper.theta
