"""When a rank counts as stuck, silent, vanished or gone: arithmetic on what was heard, no clock, no sockets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from apts_mpi.parallel.watch_net import Beat, Kind

LEFT_GRACE = 4.0  # s that others may wait for a rank that has left before it is said
ABORT_GRACE = 5.0  # s in which the end that a rank has announced must come
NAMED = 16  # ranks named in a list


@dataclass
class Seen:
    """What is known of a rank."""

    host: str = "?"
    pid: int = 0
    watched: bool = False  # it is connected, or is this rank
    beat: Beat = field(default_factory=Beat)
    heard: float = 0.0  # when the last record came, s
    moved: float = 0.0  # when its counters last changed, s
    left: bool = False  # in good order
    aborting: float = math.inf  # when it announced that it ends all ranks
    closed: bool = False  # its connection is


class Verdict(NamedTuple):
    """The ranks that others wait for in vain, and in words why."""

    missing: tuple[int, ...]
    words: str


class Judge:
    """What rank 0 knows of all ranks.

    Args:
        size: ranks.
        phases, deadlines: names, and seconds without progress in each.
        verbs: names of the collective verbs by number.
        slack: seconds more for records to arrive.
        state: what the kernel says of a process (host, pid); empty if it is unknown.
        waits: how many deadlines all may wait in collective calls; more where a rank sees itself alone.
    """

    def __init__(
        self, size: int, phases: Sequence[str], deadlines: Sequence[float], verbs: Sequence[str], slack: float,
        state: Callable[[str, int], str] = lambda host, pid: "", waits: float = 1.0,
    ) -> None:  # fmt: skip
        self.ranks = [Seen() for _ in range(size)]
        self._phases, self._deadlines, self._verbs, self._slack, self._state = phases, deadlines, verbs, slack, state
        self._waits = waits

    def meet(self, rank: int, host: str, pid: int, now: float) -> None:
        """A rank is connected."""
        seen = self.ranks[rank]
        seen.host, seen.pid, seen.watched, seen.heard, seen.moved = host, pid, True, now, now

    def hear(self, rank: int, kind: Kind, beat: Beat, now: float) -> None:
        """A record has come, or the connection was closed."""
        seen = self.ranks[rank]
        if kind is Kind.CLOSED:
            seen.closed = True
            return
        seen.heard = now
        if kind is Kind.STACKS:
            return
        if beat != seen.beat:
            seen.beat, seen.moved = beat, now
        seen.left |= kind is Kind.GOODBYE
        if kind is Kind.ABORTING:
            seen.aborting = min(seen.aborting, now)

    def shift(self, seconds: float) -> None:
        """This process stood still for ``seconds``, and perhaps all did: nobody is blamed for that time."""
        for seen in self.ranks:
            seen.heard += seconds
            seen.moved += seconds
            seen.aborting += seconds

    def verdict(self, now: float) -> Verdict | None:
        """Who is missing, if anybody is."""
        here = [rank for rank, seen in enumerate(self.ranks) if seen.watched and not seen.left]
        found = self._vanished(here, now) or self._gone(here, now) or self._silent(here, now) or self._stuck(here, now)
        found = found or self._behind(here, now)
        if found is None:
            return None
        missing, words = found
        waiting = self._waiting([rank for rank in here if rank not in missing])
        return Verdict(missing, f"watchdog: {words}{waiting}; all ranks stop")

    def named(self, rank: int, state: bool = True) -> str:
        """A rank with its host, process and, if wanted and known, the ``state`` of that."""
        seen = self.ranks[rank]
        told = self._state(seen.host, seen.pid) if state else ""
        return f"rank {rank} on {seen.host} (pid {seen.pid}{', ' + told if told else ''})"

    def _named(self, ranks: Sequence[int], state: bool = True) -> str:
        more = f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else ""
        return ", ".join(self.named(rank, state) for rank in ranks[:NAMED]) + more

    def _vanished(self, here: Sequence[int], now: float) -> tuple[tuple[int, ...], str] | None:
        announced = min((seen.aborting for seen in self.ranks), default=math.inf)
        if now < announced + ABORT_GRACE and announced < math.inf:
            return None  # the reason was told, and the launcher is about to end all
        lost = tuple(rank for rank in here if self.ranks[rank].closed)
        return (lost, f"{self._named(lost, state=False)} has vanished without a goodbye") if lost else None

    def _gone(self, here: Sequence[int], now: float) -> tuple[tuple[int, ...], str] | None:
        longest = max((self.ranks[r].beat.entered for r in here if self._rests(r, now, LEFT_GRACE, True)), default=0)
        # From its goodbye on: a rank that failed says goodbye and then why, and must come to that.
        left = [rank for rank, seen in enumerate(self.ranks) if seen.left and now - seen.heard >= LEFT_GRACE]
        lost = tuple(rank for rank in left if self.ranks[rank].beat.entered < longest)
        if not lost:
            return None
        return lost, f"{self._named(lost)} has left the run after {self.ranks[lost[0]].beat.entered} collective calls"

    def _silent(self, here: Sequence[int], now: float) -> tuple[tuple[int, ...], str] | None:
        lost = tuple(r for r in here if now - self.ranks[r].heard > self._deadline(r) + self._slack)
        if not lost:
            return None
        return lost, f"{self._named(lost)} was not heard of for {now - self.ranks[lost[0]].heard:.1f} s ({self._limit(lost[0])})"

    def _stuck(self, here: Sequence[int], now: float) -> tuple[tuple[int, ...], str] | None:
        lost = tuple(r for r in here if self._rests(r, now, self._deadline(r), False) and not self._unheard(r, now))
        if not lost:
            return None
        longest = now - self.ranks[lost[0]].moved
        return lost, f"{self._named(lost)} made no progress for {longest:.1f} s and waits for no other rank ({self._limit(lost[0])})"

    def _behind(self, here: Sequence[int], now: float) -> tuple[tuple[int, ...], str] | None:
        """All wait: for those who are in an earlier call than the others, or for the network."""
        if any(self._unheard(r, now) for r in here) or any(seen.left for seen in self.ranks):
            return None  # one that is silent may have moved on, and who has left is missed soon
        if not here or not all(self._rests(r, now, self._waits * self._deadline(r), True) for r in here):
            return None
        counts = {rank: self.ranks[rank].beat.entered for rank in here}
        lost = tuple(rank for rank in here if counts[rank] == min(counts.values()))
        where = f"{self._call(lost[0])} for {now - self.ranks[lost[0]].moved:.1f} s ({self._limit(lost[0])})"
        if len(lost) == len(here):
            who = "every rank" if len(here) > 1 else f"rank {here[0]}"
            return (), f"{who} waits in {where}: MPI, the network or a rank that is not watched is stuck"
        return lost, f"{self._named(lost)} waits in {where} while others are further"

    def _unheard(self, rank: int, now: float) -> bool:
        """Whether its last record is old: it may have moved since."""
        return now - self.ranks[rank].heard > self._slack

    def _rests(self, rank: int, now: float, seconds: float, inside: bool) -> bool:
        seen = self.ranks[rank]
        return seen.beat.inside == inside and now - seen.moved > seconds

    def _deadline(self, rank: int) -> float:
        return self._deadlines[min(self.ranks[rank].beat.phase, len(self._deadlines) - 1)]

    def _limit(self, rank: int) -> str:
        phase = min(self.ranks[rank].beat.phase, len(self._phases) - 1)
        key = "safety.deadline" if phase else "safety.deadline_setup"
        return f"in the {self._phases[phase]} phase {key} = {self._deadlines[phase]:g} s"

    def _call(self, rank: int) -> str:
        beat = self.ranks[rank].beat
        name = self._verbs[beat.verb] if beat.verb < len(self._verbs) else "?"
        return f"{name}, collective call {beat.entered}"

    def _waiting(self, ranks: Sequence[int]) -> str:
        calls: dict[str, list[int]] = {}
        for rank in ranks:
            if self.ranks[rank].beat.inside:
                calls.setdefault(self._call(rank), []).append(rank)
        return "".join(f"; {numbered(some)} in {call}" for call, some in calls.items())


def numbered(ranks: Sequence[int]) -> str:
    """As "rank 2", "ranks 0, 1, 5"; a few of many."""
    shown = ", ".join(str(rank) for rank in ranks[:NAMED])
    more = f" and {len(ranks) - NAMED} more" if len(ranks) > NAMED else ""
    return f"rank{'s' * (len(ranks) > 1)} {shown}{more}"


def grouped(stacks: dict[int, str], missing: Sequence[int]) -> str:
    """Every stack once, under the ranks that stand there; who did not answer."""
    groups: dict[str, list[int]] = {}
    for rank in sorted(stacks):
        groups.setdefault(stacks[rank], []).append(rank)
    text = [f"{numbered(ranks)}:\n{stack}" for stack, ranks in groups.items()]
    silent = [rank for rank in missing if rank not in stacks]
    return "\n".join([*text, *([f"{numbered(silent)}: no answer"] if silent else [])])
