"""The ways in which a message leaves a GPU, timed in turn, and which of them to ask for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from apts_mpi.bench.measure import Plan, clock, summary
from apts_mpi.contracts import Communicator, Flag
from apts_mpi.parallel.handshake import HandshakeError
from apts_mpi.parallel.message import wait_for
from apts_mpi.parallel.transport import TRANSPORTS, lacking

if TYPE_CHECKING:
    from apts_mpi.contracts import Message

ITEM = torch.float32.itemsize


def measure(comm: Communicator, device: torch.device, lengths: Sequence[int], names: Sequence[str], plan: Plan) -> dict[str, Any]:
    """Seconds of a sum by each transport of ``names`` at each length in bytes, and the fastest at the longest; every rank calls.

    The communicator is configured as it is at first when this is over: by the host, with the reduction found by trial.
    """
    results = []
    for nbytes in lengths:
        messages = [(name, _planned(comm, device, nbytes, name)) for name in names]
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(plan.warm_up + plan.repeats):
            first = turn % len(messages)  # another one begins each time
            for name, message in messages[first:] + messages[:first]:
                seconds[name].append(clock(comm, partial(_sum, comm, message, device)))
        results.append({"bytes": nbytes, **{f"{name}_s": summary(times[plan.warm_up :]) for name, times in seconds.items()}})
    comm.configure("auto", 2**30)
    return {"device": str(device), "results": results, "recommended": recommended(results[-1], names)}


def recommended(result: dict[str, Any], names: Sequence[str]) -> str:
    """The fastest by the upper end of its interval against the lower end of that of ``host``: another way must surely be faster."""
    sure = {name: result[f"{name}_s"]["interval_95"][1] for name in names if name != "host"}
    best = min(sure, key=lambda name: sure[name], default="host")
    return best if best != "host" and sure[best] < result["host_s"]["interval_95"][0] else "host"


def offered(comm: Communicator, device: torch.device, share_gpu: bool) -> tuple[list[str], list[str]]:
    """The transports that all ranks have, each tried with a short message, and a line for each that they have not; every rank calls."""
    names, missing = list[str](), list[str]()
    for name in TRANSPORTS:
        words = [text for text in comm.gather_text(lacking(name, device, share_gpu)) if text]
        if not words:
            try:
                _planned(comm, device, ITEM * len(Flag), name)
            except HandshakeError as error:  # on every rank: what was timed before stays
                words = [str(error)]
        if words:
            missing.append(f"without {name}: {words[0]}")
        else:
            names.append(name)
    comm.configure("auto", 2**30)
    return names, missing


def lines(found: dict[str, Any]) -> list[str]:
    """For people."""
    told = []
    for result in found["results"]:
        times = "   ".join(f"{key.removesuffix('_s')} {1e6 * value['median']:10.1f} us" for key, value in result.items() if key != "bytes")
        told.append(f"{result['bytes']:>12} bytes   {times}")
    return [*told, *found["missing"], f"recommended on {found['device']}: --comm.transport {found['recommended']}"]


def _sum(comm: Communicator, message: Message, device: torch.device) -> None:
    """A sum, and what it leaves to the stream, which else the next one would wait for."""
    comm.sum_(message)
    wait_for(device)


def _planned(comm: Communicator, device: torch.device, nbytes: int, name: str) -> Message:
    comm.configure("auto", 2**30, name)
    return comm.plan(max(1, nbytes // ITEM - len(Flag)), torch.float32, device, [])
