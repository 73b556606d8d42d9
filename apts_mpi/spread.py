"""From one rank to all: named arrays, and a method's whole state."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from apts_mpi.contracts import Communicator, State


def spread(comm: Communicator, arrays: Mapping[str, Tensor] | None, root: int = 0) -> dict[str, Tensor]:
    """The float32 and float64 ``arrays`` of rank ``root``, copied to every rank's host memory, to the last bit; every rank calls."""
    mine = arrays if comm.rank == root and arrays is not None else {}
    told = json.dumps({name: [str(value.dtype).removeprefix("torch."), *value.shape] for name, value in mine.items()})
    found = {}
    for name, (kind, *shape) in json.loads(comm.share(told, root)).items():
        value = torch.empty(shape, dtype=torch.float64 if kind == "float64" else torch.float32)
        if name in mine:
            value.copy_(mine[name])
        if value.numel():
            comm.broadcast_(value.view(-1), root)
        found[name] = value
    return found


def copied(state: State) -> State:
    """A copy in host memory, which no later step changes."""
    return State(
        {name: value.detach().to("cpu", copy=True) for name, value in state.shared.items()},
        [{name: value.detach().to("cpu", copy=True) for name, value in own.items()} for own in state.own],
    )
