"""Which part of the flat gradient is final while the backward pass still goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from types import TracebackType

from torch import Tensor

from apts_mpi.problem.flat import FlatModel, Slot

Ready = Callable[[int, int], None]  # entries start..stop-1 of the gradient are final


class Watch:
    """Around the last backward pass of a gradient: calls ``ready`` for one range of entries after the other.

    The ranges hold whole layers of together at least ``nbytes``, begin at the end of the vector, where the backward
    pass begins, and come in the same order on all ranks whatever the order of their hooks. ``finish`` calls
    ``ready`` for those that no hook has announced: parameters that this loss does not depend on. With ``into`` (n,)
    the pass writes its gradient there, zeros for those.
    """

    def __init__(self, flat: FlatModel, nbytes: int, ready: Ready, into: Tensor | None = None) -> None:
        self._flat, self._ready, self._into = flat, ready, into
        self._ranges = ranges(flat.slots, nbytes // flat.dtype.itemsize)
        self._waiting = [{i for i, slot in enumerate(flat.slots) if slot.offset in part} for part in self._ranges]
        self._told = 0

    def __enter__(self) -> None:
        self._handles = self._flat.on_gradient(self._arrived, self._into)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def finish(self) -> None:
        """The gradient is complete."""
        if self._into is not None:
            for slot in (self._flat.slots[i] for i in set().union(*self._waiting)):
                self._into[slot.offset : slot.offset + slot.size] = 0
        self._tell(len(self._ranges))

    def _arrived(self, slot: int) -> None:
        index = next(i for i, part in enumerate(self._ranges) if self._flat.slots[slot].offset in part)
        if slot not in self._waiting[index]:
            name = self._flat.slots[slot].name
            raise RuntimeError(f"the gradient of {name} came twice in one backward pass; set baseline.overlap = false for this model")
        self._waiting[index].remove(slot)
        count = self._told
        while count < len(self._ranges) and not self._waiting[count]:
            count += 1
        self._tell(count)

    def _tell(self, count: int) -> None:
        """The first ``count`` ranges are final."""
        for part in self._ranges[self._told : count]:
            self._ready(part.start, part.stop)
        self._told = max(self._told, count)


def ranges(slots: Sequence[Slot], entries: int) -> list[range]:
    """The flat vector cut into ranges of whole layers with at least ``entries`` entries, the last layers first.

    A range ends before a layer that has as many by itself: it would hold the small ones up.
    """
    layers = [list(layer) for _, layer in groupby(slots, lambda slot: slot.name.rpartition(".")[0])]
    found: list[range] = []
    for layer in reversed(layers):
        start, stop = layer[0].offset, layer[-1].offset + layer[-1].size
        if found and len(found[-1]) < entries and stop - start < entries:
            found[-1] = range(start, found[-1].stop)
        else:
            found.append(range(start, stop))
    return found
