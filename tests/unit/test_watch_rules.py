"""The watchdog without MPI: when a rank counts as missing, and what its wires let in."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

from apts_mpi.parallel import comm, pulse
from apts_mpi.parallel.watch_judge import ABORT_GRACE, LEFT_GRACE, Judge, grouped, numbered
from apts_mpi.parallel.watch_net import COMMAND, RECORD, STACKS_MOST, Beat, Kind
from apts_mpi.parallel.watch_star import HELLO, MAGIC, STRANGERS, Ray, Star
from apts_mpi.parallel.watch_thread import PHASES, VERBS

RUN, BARRIER, GATHER = 1, VERBS.index("barrier"), VERBS.index("gather")
DEADLINE, SLACK = 10.0, 1.0


def judge(ranks: int = 3) -> Judge:
    """All connected at 0 s, all in the run phase, outside of calls after 4 of them."""
    made = Judge(ranks, PHASES, (60.0, DEADLINE), VERBS, SLACK, lambda host, pid: "state S: sleeping")
    for rank in range(ranks):
        made.meet(rank, f"host{rank}", 100 + rank, 0.0)
        made.hear(rank, Kind.BEAT, Beat(RUN, BARRIER, 4, 4, 0), 0.0)
    return made


def hear(made: Judge, rank: int, now: float, entered: int = 4, left: int = 4, progress: int = 0, verb: int = BARRIER) -> None:
    made.hear(rank, Kind.BEAT, Beat(RUN, verb, entered, left, progress), now)


def test_who_computes_or_waits_within_the_deadline_is_fine() -> None:
    made = judge()
    for now in range(1, 40):
        hear(made, 0, now, 5, 4)  # waits all the time ...
        hear(made, 1, now, 5, 4)
        hear(made, 2, now, progress=now // 9)  # ... for one that gets on
        assert made.verdict(now) is None


def test_stuck() -> None:
    made = judge()
    for now in range(1, 12):
        hear(made, 0, now, 5, 4)
        hear(made, 1, now, 5, 4)
        hear(made, 2, now)
        assert (made.verdict(now) is None) == (now <= DEADLINE)
    found = made.verdict(11.0)
    assert found and found.missing == (2,)
    assert found.words == (
        "watchdog: rank 2 on host2 (pid 102, state S: sleeping) made no progress for 11.0 s and waits for no other rank "
        "(in the run phase safety.deadline = 10 s); ranks 0, 1 in barrier, collective call 5; all ranks stop"
    )


def test_silent() -> None:
    made = judge()
    for now in range(1, 13):
        hear(made, 0, now, 5, 4)
        hear(made, 2, now, 5, 4)
        assert (made.verdict(now) is None) == (now <= DEADLINE + SLACK)
    found = made.verdict(12.0)
    assert found and found.missing == (1,) and "rank 1 on host1" in found.words and "was not heard of for 12.0 s" in found.words


def test_the_deadline_is_that_of_the_rank_s_phase() -> None:
    made = judge(2)
    for now in (1.0, 30.0, 61.0):
        made.hear(0, Kind.BEAT, Beat(RUN, BARRIER, 5, 4, 0), now)
        made.hear(1, Kind.BEAT, Beat(0, BARRIER, 4, 4, 0), now)
        assert made.verdict(now) is None
    made.hear(0, Kind.BEAT, Beat(RUN, BARRIER, 5, 4, 0), 62.0)
    made.hear(1, Kind.BEAT, Beat(0, BARRIER, 4, 4, 0), 62.0)
    found = made.verdict(62.0)
    assert found and "safety.deadline_setup = 60 s" in found.words


def test_behind_the_others_and_all_alike() -> None:
    made = judge()
    for now in (1.0, 12.0):
        hear(made, 0, now, 6, 5)
        hear(made, 1, now, 6, 5)
        hear(made, 2, now, 5, 4, verb=GATHER)
    found = made.verdict(12.0)
    assert found and found.missing == (2,) and "waits in gather, collective call 5" in found.words
    made = judge()
    for now in (1.0, 12.0):
        for rank in range(3):
            hear(made, rank, now, 5, 4)
    found = made.verdict(12.0)
    assert found and found.missing == () and "every rank waits in barrier" in found.words


def test_vanished_at_once_but_not_after_a_goodbye() -> None:
    made = judge()
    made.hear(1, Kind.CLOSED, Beat(), 1.0)
    found = made.verdict(1.0)
    assert found and found.missing == (1,) and "rank 1 on host1 (pid 101) has vanished" in found.words
    made = judge()
    made.hear(1, Kind.GOODBYE, Beat(RUN, BARRIER, 4, 4, 0), 1.0)
    made.hear(1, Kind.CLOSED, Beat(), 1.0)
    assert made.verdict(1.0) is None


def test_left_while_others_wait_for_it() -> None:
    made = judge()
    made.hear(1, Kind.GOODBYE, Beat(RUN, BARRIER, 4, 4, 0), 1.0)
    for now in (1.0, LEFT_GRACE, LEFT_GRACE + 2):
        hear(made, 0, now, 4, 3)  # in the last call that rank 1 has made too
        hear(made, 2, now)
        assert made.verdict(now) is None
    for now in (10.0, 10.0 + LEFT_GRACE):
        hear(made, 0, now, 5, 4)
        hear(made, 2, now, progress=round(now))
        assert made.verdict(now) is None
    found = made.verdict(10.1 + LEFT_GRACE)
    assert found and found.missing == (1,) and "has left the run after 4 collective calls" in found.words


def test_who_has_left_may_still_say_why() -> None:
    """The others may have waited for long when a rank fails: the time counts from its goodbye."""
    made = judge()
    for now in (1.0, 9.0):
        hear(made, 0, now, 5, 4)
        hear(made, 2, now, 5, 4)
        hear(made, 1, now, progress=round(now))
    made.hear(1, Kind.GOODBYE, Beat(RUN, BARRIER, 4, 4, 0), 9.1)
    for now in (9.2, 9.0 + LEFT_GRACE):
        hear(made, 0, now, 5, 4)
        hear(made, 2, now, 5, 4)
        assert made.verdict(now) is None
    found = made.verdict(9.2 + LEFT_GRACE)
    assert found and found.missing == (1,) and "has left the run" in found.words


def test_who_has_told_the_reason_may_vanish_for_a_while() -> None:
    made = judge()
    made.hear(2, Kind.ABORTING, Beat(RUN, BARRIER, 4, 4, 0), 1.0)
    made.hear(2, Kind.CLOSED, Beat(), 1.5)
    assert made.verdict(2.0) is None
    found = made.verdict(1.1 + ABORT_GRACE)
    assert found and found.missing == (2,)


def test_time_in_which_this_process_stood_still_counts_for_nobody() -> None:
    made = judge()
    made.shift(100.0)
    assert made.verdict(101.0) is None
    for rank in range(3):
        hear(made, rank, 110.9)
    assert made.verdict(110.0) is None


def test_words_for_many_ranks() -> None:
    assert numbered([3]) == "rank 3" and numbered([1, 2]) == "ranks 1, 2" and numbered(range(20)).endswith("15 and 4 more")
    assert grouped({2: "b", 0: "a", 1: "a"}, (5,)) == "ranks 0, 1:\na\nrank 2:\nb\nrank 5: no answer"


def test_every_verb_has_a_number() -> None:
    counted = [name.lstrip("_") for name, what in vars(comm.MpiCommunicator).items() if hasattr(what, "__wrapped__")]
    assert len(counted) >= 9 and set(counted) <= set(VERBS)


def test_stacks_and_states() -> None:
    inside, leave = threading.Event(), threading.Event()

    def odd_name() -> None:
        inside.set()
        leave.wait()

    thread = threading.Thread(target=odd_name, name="writer")
    thread.start()
    inside.wait()
    text = pulse.stacks()
    leave.set()
    thread.join()
    assert "thread writer, innermost call first:" in text and " in odd_name" in text and " in test_stacks" not in text
    assert pulse.process_state(os.getpid()).startswith("state R")
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert pulse.process_state(child.pid) == "is gone"


def reach(star: Star, data: bytes) -> socket.socket:
    """A connection that has sent ``data``."""
    wire = socket.create_connection(("127.0.0.1", star.port), timeout=5)
    wire.sendall(data)
    return wire


def closed(star: Star, wire: socket.socket) -> bool:
    """Whether the star closes the connection, unanswered."""
    wire.settimeout(0.05)
    for _ in range(100):
        assert not star.turn(0.0)
        try:
            return wire.recv(1) == b""
        except TimeoutError:
            continue
        except ConnectionResetError:
            return True
        finally:
            if wire.fileno() < 0:
                wire.close()
    return False


def hello(star: Star, rank: int, token: bytes | None = None, magic: bytes = MAGIC) -> bytes:
    return HELLO.pack(magic, token or star.token, rank, 77, b"somewhere")


def test_strangers_are_shut_out() -> None:
    star = Star(3, loopback=True)
    try:
        for data in (hello(star, 1, b"x" * 16), hello(star, 0), hello(star, 3), hello(star, 1, magic=b"GET / HT")):
            with reach(star, data) as wire:
                assert closed(star, wire)
        with reach(star, hello(star, 1)[:-1]) as wire:  # too short, then the end
            star.turn(0.05)
            wire.shutdown(socket.SHUT_WR)
            assert closed(star, wire)
        silent = [reach(star, b"") for _ in range(3 + STRANGERS + 1)]
        for _ in silent:
            star.turn(0.01)
        assert closed(star, silent[-1])  # so many at once are too many
        for wire in silent:
            wire.close()
    finally:
        star.close()


def test_a_rank_cannot_be_taken_twice_and_nonsense_ends_its_connection() -> None:
    star = Star(3, loopback=True)
    try:
        with reach(star, hello(star, 2)) as wire:
            news = [item for _ in range(5) for item in star.turn(0.05)]
            assert [(item.rank, item.kind, item.number, item.text) for item in news] == [(2, Kind.HELLO, 77, "somewhere")]
            with reach(star, hello(star, 2)) as other:
                assert closed(star, other)
            wire.sendall(RECORD.pack(Kind.BEAT, 1, 2, 5, 4, 9)[:10])
            assert not star.turn(0.05)
            wire.sendall(RECORD.pack(Kind.BEAT, 1, 2, 5, 4, 9)[10:] + RECORD.pack(Kind.STACKS, 0, 0, 3, 0, 0) + b"abc")
            news = [item for _ in range(5) for item in star.turn(0.05)]
            assert [(item.kind, item.beat, item.text) for item in news] == [
                (Kind.BEAT, Beat(1, 2, 5, 4, 9), ""), (Kind.STACKS, Beat(0, 0, 3, 0, 0), "abc"),
            ]  # fmt: skip
            wire.sendall(RECORD.pack(Kind.STACKS, 0, 0, STACKS_MOST + 1, 0, 0))
            news = [item for _ in range(5) for item in star.turn(0.05)]
            assert [(item.rank, item.kind) for item in news] == [(2, Kind.CLOSED)] and not star.connected
    finally:
        star.close()


def test_nobody_is_let_in_when_all_are_there() -> None:
    star = Star(3, loopback=True)
    try:
        with reach(star, hello(star, 1)) as one, reach(star, hello(star, 2)) as two:
            news = [item.rank for _ in range(5) for item in star.turn(0.05)]
            assert sorted(news) == [1, 2] and star.connected == {1, 2} and one.fileno() > 0 and two.fileno() > 0
            with pytest.raises(OSError):
                reach(star, b"")
    finally:
        star.close()


def test_a_ray_needs_a_welcome() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        thread = threading.Thread(target=lambda: other.accept()[0].close())
        thread.start()
        with pytest.raises(OSError):
            Ray(["127.0.0.1"], other.getsockname()[1], b"x" * 16, 1, 2, "here")
        thread.join()
        port = other.getsockname()[1]
    with pytest.raises(OSError):
        Ray(["127.0.0.1"], port, b"x" * 16, 1, 2, "here")
    with pytest.raises(OSError, match="no address"):
        Ray([], port, b"x" * 16, 1, 2, "here")


def test_star_and_ray() -> None:
    star = Star(2, loopback=True)
    rays: list[Ray] = []
    thread = threading.Thread(target=lambda: rays.append(Ray(["127.0.0.1"], star.port, star.token, 1, 5, "there")))
    thread.start()
    while not star.connected:
        star.turn(0.05)
    thread.join()
    ray = rays[0]
    ray.send(Kind.BEAT, Beat(1, 2, 3, 4, 5))
    ray.send_stacks("é" * STACKS_MOST)
    news = [item for _ in range(10) for item in star.turn(0.05)]
    assert [item.kind for item in news] == [Kind.BEAT, Kind.STACKS] and len(news[1].text.encode()) == STACKS_MOST
    star.send(Kind.STACKS)
    star.send(Kind.GOODBYE, 7, rank=1)
    star.hang_up(1)
    commands = [item for _ in range(5) for item in ray.turn(0.02)]
    assert commands[:3] == [(Kind.STACKS, 0), (Kind.GOODBYE, 7), (Kind.CLOSED, 0)]
    assert COMMAND.size < RECORD.size
    ray.ring()
    ray.close()
    star.close()
    ray.ring()  # too late, and no error
