"""Work of a device without decisions of the host, recorded once and replayed: a CUDA graph where there is a GPU."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

Work = Callable[[], None]
Record = Callable[[Work], Work]  # takes work, gives what does the same again; the work itself is not done

KEPT = 256  # recordings: of each subdomain, each number of its samples and each vector that is written a few
NEAR = 1e-3  # relative distance of a replayed result from the one made step by step


class CudaGraph:
    """Records into CUDA graphs that share their memory, since one is replayed at a time. RuntimeError if something cannot be recorded.

    What the work reads must stay where it is in memory; it may neither wait for the device nor copy from pageable memory of the host.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):  # others, that save or watch, go on
            work()
        replay: Work = graph.replay
        return replay


def recordings(wanted: bool, device: torch.device) -> Recordings:
    """CUDA graphs if they are ``wanted`` and ``device`` is a GPU, else none."""
    return Recordings(CudaGraph() if wanted and device.type == "cuda" else None)


class Recordings:
    """Does work that comes again and again: the first time step by step, later from a recording.

    The second time the work is done both ways; unless both results agree to ``NEAR``, and whenever recording fails, a warning says so and
    everything is done step by step from then on. With ``record`` None nothing is recorded.
    """

    def __init__(self, record: Record | None) -> None:
        self._record = record
        self._known: dict[Hashable, Work | None] = {}  # None: done once

    @property
    def active(self) -> bool:
        """Is anything recorded?"""
        return self._record is not None

    def run(self, key: Hashable | None, work: Work, result: Tensor) -> None:
        """Do ``work``, which leaves its result in ``result`` and nothing on the host.

        Equal ``key``: the same work on the same memory. None: work that cannot be recorded.
        """
        replay = self._known.get(key) if self._record is not None and key is not None else None
        if replay is not None:
            replay()
            return
        work()
        if self._record is not None and key is not None:
            if key in self._known:
                self._known[key] = self._recorded(work, result)
            else:
                self._known[key] = None
                if len(self._known) > KEPT:
                    del self._known[next(iter(self._known))]

    def _recorded(self, work: Work, result: Tensor) -> Work | None:
        assert self._record is not None
        wanted = result.clone()
        length = float(torch.linalg.vector_norm(wanted))
        if not math.isfinite(length):  # nothing to compare with: another time
            return None
        try:
            replay = self._record(work)
            replay()
            apart = float(torch.linalg.vector_norm(result - wanted))
            why = "" if apart <= NEAR * length else f"the replayed step is {apart:.1e} away from the right one, which is {length:.1e} long"
        except RuntimeError as error:
            why = str(error).splitlines()[0]
        result.copy_(wanted)
        if not why:
            return replay
        warnings.warn(f"the GPU is told step by step, not by CUDA graphs: {why}; run.graph = false says nothing more", stacklevel=2)
        self._record = None
        return None
