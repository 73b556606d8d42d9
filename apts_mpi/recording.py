"""Work of a device without decisions of the host, recorded once and replayed: a CUDA graph where there is a GPU."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from apts_mpi.config import RunConfig

Work = Callable[[], None]
Record = Callable[[Work], Work]  # takes work, gives what does the same again; the work itself is not done

KEPT = 512  # recordings: some of each subdomain, each number of its samples, each vector that is written; later ones are not made
NEAR = 1e-3  # relative distance of a replayed result from the one made step by step, where bits need not be equal


class CudaGraph:
    """Records into CUDA graphs that share their memory, since one is replayed at a time. RuntimeError if something cannot be recorded.

    What the work reads must stay where it is in memory; it may neither wait for the device nor copy from pageable memory of the host.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Work:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):  # others, that save or watch, go on
                work()
        except RuntimeError:
            torch.cuda.set_stream(stream)  # torch leaves its own in place where a capture is broken off
            _end_capture(self._pool)
            raise
        replay: Work = graph.replay
        return replay


def recordings(run: RunConfig, device: torch.device) -> Recordings:
    """CUDA graphs if ``run`` wants them and ``device`` is a GPU, else none."""
    return Recordings(CudaGraph() if run.graph and device.type == "cuda" else None, run.deterministic)


class Recordings:
    """Does work that comes again and again: the first time step by step, later from a recording.

    The second time the work is done both ways. Unless all results agree, and whenever recording fails, a warning says so and
    everything is done step by step from then on. With ``record`` None nothing is recorded.

    Args:
        exact: results agree if they have the same bits, since a run that is resumed records anew; else to ``NEAR``, and a warning says how
            far the first ones are apart.
    """

    def __init__(self, record: Record | None, exact: bool = True) -> None:
        self._record, self._exact, self._told = record, exact, False
        self._known: dict[Hashable, Work | None] = {}  # None: done once

    @property
    def active(self) -> bool:
        """Is anything recorded?"""
        return self._record is not None

    def run(self, key: Hashable | None, work: Work, *results: Tensor) -> None:
        """Do ``work``, which leaves ``results`` and nothing on the host.

        Equal ``key``: the same work on the same memory, with the same numbers. None: work that cannot be recorded.
        """
        replay = self._known.get(key) if self._record is not None and key is not None else None
        if replay is not None:
            replay()
            return
        work()
        if self._record is None or key is None:
            return
        if key in self._known:
            self._known[key] = self._recorded(work, results)
        elif len(self._known) < KEPT:
            self._known[key] = None

    def _recorded(self, work: Work, results: Sequence[Tensor]) -> Work | None:
        assert self._record is not None
        wanted = list[Tensor]()
        try:
            wanted += [result.clone() for result in results]
            lengths = _lengths(wanted)
            if not all(map(math.isfinite, lengths)):  # nothing to compare with: another time
                return None
            replay = self._record(work)
            replay()
            why = self._wrong(results, wanted, lengths)
        except RuntimeError as error:
            why = _cause(error)
        for result, right in zip(results, wanted, strict=False):  # without room for copies nothing has been replayed
            result.copy_(right)
        if not why:
            return replay
        warnings.warn(f"the GPU is told step by step, not by CUDA graphs: {why}; run.graph = false says nothing more", stacklevel=2)
        self._record = None
        self._known.clear()
        return None

    def _wrong(self, results: Sequence[Tensor], wanted: Sequence[Tensor], lengths: Sequence[float]) -> str:
        """What is wrong with replayed ``results``; empty if nothing is, with a warning if they are only near."""
        for result, right, length in zip(results, wanted, lengths, strict=True):
            if torch.equal(result, right):
                continue
            (far,) = _lengths([result - right])
            words = f"what was replayed is {far:.1e} away from what is right, which is {length:.1e} long"
            if self._exact or not far <= NEAR * length:
                return words
            if not self._told:
                self._told = True
                warnings.warn(f"{words}: near enough for CUDA graphs; run.deterministic = true would do without them", stacklevel=2)
        return ""


def _end_capture(pool: tuple[int, int]) -> None:
    """What torch before 2.12 leaves open where a capture is broken off: memory is not used again then, and random numbers are refused."""
    device = torch.cuda.current_device()
    with suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(device, pool)
    with suppress(RuntimeError, AttributeError, IndexError):
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())


def _lengths(tensors: Sequence[Tensor]) -> list[float]:
    lengths: list[float] = torch.stack([torch.linalg.vector_norm(tensor).double() for tensor in tensors]).tolist()
    return lengths


def _cause(error: BaseException) -> str:
    """What went wrong first: the end of a capture that was broken off says nothing but that it was."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).splitlines() or [type(error).__name__])[0]
