"""L-SR1 + OBS per local iteration against a copy of the 2 m n words of its memory, interleaved, one thread.

    OMP_NUM_THREADS=1 python benchmarks/quasi_newton.py [--n 535818] [--memory 10] [--repeats 25] [--device cpu]

An iteration is ``propose_``, ``observe_`` and ``accept`` with a full memory that takes a pair each time; the gradient
itself is not counted. The floor is two passes over the memory that read it. Ends with status 1 above the bar.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from apts_mpi.solver.lsr1 import LSR1

BAR_MS, BAR_COPY_MS = 15.0, 5.0  # at n = 535,818, m = 10: so much where the copy takes so much


class Iteration:
    """A trust-region loop on a noisy quadratic whose pairs are always taken."""

    def __init__(self, n: int, memory: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.model = LSR1(n, memory, torch.float32, device)
        self.diagonal = torch.rand(n, device=device) + 0.1
        self.grad, self.grad_new, self.noise = (torch.randn(n, device=device) for _ in range(3))
        self.model.begin(self.grad)

    def prepare(self) -> None:
        """The trial's gradient, outside the clock; the proposal is repeated inside it, from a fresh eigenproblem."""
        self.noise.normal_()
        step = self.model.propose_(self.grad, 1.0)
        torch.addcmul(self.grad, self.diagonal, step.vector, out=self.grad_new).add_(self.noise, alpha=1e-4)
        self.model._spectrum = None

    def run(self) -> None:
        step = self.model.propose_(self.grad, 1.0)
        self.model.observe_(step.vector, self.grad, self.grad_new)
        self.model.accept()

    def finish(self) -> None:
        self.grad, self.grad_new = self.grad_new, self.grad


def clock(work: Callable[[], object], device: torch.device) -> float:
    """Milliseconds, with the device idle before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def interval(values: list[float]) -> tuple[float, float]:
    """95 % confidence interval of the median, by bootstrap."""
    draws = np.random.default_rng(0).choice(values, (4000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)


def main() -> int:
    parser = argparse.ArgumentParser(description="L-SR1 + OBS per local iteration against a copy of its memory")
    parser.add_argument("--n", type=int, default=535_818)
    parser.add_argument("--memory", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    source = torch.randn(2 * arguments.memory, arguments.n, device=device)
    target = torch.empty_like(source)
    iteration = Iteration(arguments.n, arguments.memory, device)
    copies, times, warm_up = [], [], arguments.memory + 7
    for repeat in range(warm_up + max(arguments.repeats, 15)):
        copy = clock(lambda: target.copy_(source), device)
        iteration.prepare()
        taken = clock(iteration.run, device)
        iteration.finish()
        if repeat >= warm_up:
            copies.append(copy)
            times.append(taken)
    assert iteration.model.count == arguments.memory and iteration.model.skipped == 0
    ratios = [taken / copy for taken, copy in zip(times, copies, strict=True)]
    copy, taken, ratio = (statistics.median(values) for values in (copies, times, ratios))
    low, high = interval(ratios)
    spread = (np.percentile(copies, 75) - np.percentile(copies, 25)) / copy
    rate = 8e-6 * source.numel() / copy
    print(f"n = {arguments.n}, m = {arguments.memory}, {device}, one thread, {len(times)} repeats after {warm_up} of warm-up")
    print(f"copy of 2 m n words   {copy:8.2f} ms (best {min(copies):.2f}), {rate:.1f} GB/s, quartiles {spread:.0%} apart")
    print(f"L-SR1 + OBS           {taken:8.2f} ms (best {min(times):.2f})")
    print(f"ratio                 {ratio:8.2f}    95 % CI [{low:.2f}, {high:.2f}]    bar {BAR_MS / BAR_COPY_MS:.2f}")
    if spread > 0.15:
        print("the copy wanders by more than 15 %: the machine is not quiet")
    return 0 if ratio <= BAR_MS / BAR_COPY_MS else 1


if __name__ == "__main__":
    sys.exit(main())
