"""The watchdog at both ends of the star: rank 0 judges all, the others tell it where they are and judge themselves without it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from apts_mpi.parallel.pulse import stacks
from apts_mpi.parallel.watch_judge import ABORT_GRACE, grouped
from apts_mpi.parallel.watch_net import Beat, Kind, Net
from apts_mpi.parallel.watch_star import Ray, Star
from apts_mpi.parallel.watch_thread import EXIT_CODE, Ender, Watcher

if TYPE_CHECKING:
    from apts_mpi.parallel.comm import MpiCommunicator
    from apts_mpi.safety import SafetyConfig

ANSWERS = 2.0  # s for the ranks to send their stacks


class Centre(Watcher):
    """Rank 0."""

    def __init__(self, comm: MpiCommunicator, safety: SafetyConfig, ender: Ender, star: Star) -> None:
        super().__init__(comm, safety, ender, star)
        self._star, self._stacks = star, dict[int, str]()
        self._judge.meet(0, comm.host, self._pid, self._turned)

    def _listen(self, seconds: float) -> None:
        news = self._star.turn(seconds)
        now = time.monotonic()
        for item in news:
            if item.kind is Kind.HELLO:
                self._judge.meet(item.rank, item.text, item.number, now)
                continue
            self._judge.hear(item.rank, item.kind, item.beat, now)
            if item.kind is Kind.BEAT:
                self._star.send(Kind.BEAT, 0, item.rank)
            elif item.kind is Kind.STACKS:
                self._stacks[item.rank] = item.text
            else:
                if item.kind is Kind.GOODBYE:
                    self._star.hang_up(item.rank)
                self._due = now  # look at once: the launcher may end this rank soon

    def _look(self, now: float) -> None:
        self._judge.hear(0, Kind.ABORTING if self._announced else Kind.BEAT, self._beat(), now)
        verdict = self._judge.verdict(now)
        if verdict and not self._stopping:
            self._announced = True
            self._ender.abort(verdict.words, courtesy=0.0, code=EXIT_CODE, details=lambda: self._collected(verdict.missing))

    def _collected(self, missing: tuple[int, ...]) -> str:
        """The stacks of all ranks that answer, and to all: the end comes."""
        self._stacks = {0: stacks()}
        self._star.send(Kind.STACKS)
        until = time.monotonic() + ANSWERS
        while self._star.connected - set(self._stacks) and time.monotonic() < until:
            if self._star.connected - set(self._stacks) <= set(missing) and time.monotonic() > until - ANSWERS / 2:
                break
            self._listen(0.05)
        self._star.send(Kind.ABORTING)
        return grouped(self._stacks, missing)

    def _say(self, kind: Kind) -> None:
        self._star.send(kind, self._pulse.entered)

    def _farewell(self, until: float) -> None:
        while self._star.connected and time.monotonic() < until:
            for item in self._star.turn(0.05):
                if item.kind is Kind.GOODBYE:
                    self._star.hang_up(item.rank)


class Outpost(Watcher):
    """Any other rank: tells rank 0 where it is, and judges itself and rank 0 where nobody else does."""

    def __init__(
        self, comm: MpiCommunicator, safety: SafetyConfig, ender: Ender, ray: Ray | None, centre: tuple[str, int]
    ) -> None:
        super().__init__(comm, safety, ender, ray or Net())
        self._ray = ray
        self._judge.meet(self._rank, comm.host, self._pid, self._turned)
        self._judge.ranks[0].host, self._judge.ranks[0].pid = centre
        self._heard = self._turned
        self._ending = 0.0  # when rank 0 said that it ends all ranks

    def _listen(self, seconds: float) -> None:
        if self._ray is None:
            return super()._listen(seconds)
        for kind, number in self._ray.turn(seconds):
            self._heard = time.monotonic()
            if kind is Kind.STACKS:
                self._ray.send_stacks(stacks())
            elif kind is Kind.ABORTING:
                self._ending = self._ending or self._heard
            elif kind is Kind.GOODBYE:
                self._judge.hear(0, Kind.GOODBYE, Beat(entered=number, left=number), self._heard)
                self._ray.hang_up()
                self._ray = None
                return
            elif kind is Kind.CLOSED:
                if not (self._announced or self._ending or self._stopping):
                    self._blame("has vanished without a goodbye", state=False)
                self._ray = None
                return

    def _look(self, now: float) -> None:
        if self._ending or self._announced:
            if self._ending and now - self._ending > ABORT_GRACE:
                os._exit(EXIT_CODE)  # the launcher has not ended this rank, and nobody will
            return
        if self._ray is not None:
            self._ray.send(Kind.BEAT, self._beat())
            silence = now - self._heard
            if silence > self._deadlines[self._phase] + 2 * self._period:
                self._blame(f"was not heard of for {silence:.1f} s", state=True)
            return
        self._judge.hear(self._rank, Kind.BEAT, self._beat(), now)
        verdict = self._judge.verdict(now)
        if verdict and not self._stopping:
            self._abort(verdict.words)

    def _blame(self, words: str, state: bool) -> None:
        """Rank 0 is missing; the lowest of the others speaks first."""
        self._abort(f"watchdog: {self._judge.named(0, state)} {words}; all ranks stop")

    def _abort(self, words: str) -> None:
        self._announced = True
        self._say(Kind.ABORTING)  # now: this thread will not come to it again
        courtesy = 0.0 if self._rank <= 1 else 1.5
        self._ender.abort(words, courtesy=courtesy, code=EXIT_CODE, details=lambda: grouped({self._rank: stacks()}, ()))

    def _shift(self, seconds: float) -> None:
        super()._shift(seconds)
        self._heard += seconds

    def _say(self, kind: Kind) -> None:
        if self._ray is not None:
            self._ray.send(kind, self._beat())

    def _farewell(self, until: float) -> None:
        while self._ray is not None and time.monotonic() < until:
            if any(kind in (Kind.GOODBYE, Kind.CLOSED) for kind, _ in self._ray.turn(0.05)):
                return
