"""Real signals to this process, the end of a job by other clocks, and what stands when it is over."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from apts_mpi import interrupt
from apts_mpi.interrupt import MARGIN, SIGNALS, Interrupt, deadline, deferred, held

NAMES = ["SIGTERM", "SIGINT", "SIGUSR1"]


def never() -> None:
    raise AssertionError("nobody asked for an end at once")


def send(name: str, times: int = 1) -> None:
    """To this process; Python runs the handler before the call returns to us."""
    for _ in range(times):
        os.kill(os.getpid(), getattr(signal, name))


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Sets what time.time and time.monotonic say."""

    def turn(wall: float, monotonic: float) -> None:
        monkeypatch.setattr(interrupt, "time", SimpleNamespace(time=lambda: wall, monotonic=lambda: monotonic))

    turn(1e9, 50.0)
    return turn


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_is_the_reason_and_ends_nothing(name: str) -> None:
    with Interrupt(never, {}) as asked:
        assert asked.wanted() == asked.reason == ""
        send(name)
        assert asked.wanted(1e9) == asked.reason == name


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_the_same_again_changes_nothing(name: str) -> None:
    with Interrupt(never, {}) as asked:
        send(name, times=3)
        send("SIGINT")
        assert asked.reason == name, "the first reason stays"


def test_the_second_sigint_is_for_now_and_only_the_second() -> None:
    called: list[str] = []
    with Interrupt(lambda: called.append("now"), {}) as asked:
        send("SIGTERM")
        send("SIGINT")
        assert not called
        send("SIGINT")
        assert called == ["now"]
        send("SIGINT")
        send("SIGTERM")
        assert called == ["now"] and asked.reason == "SIGTERM"


def test_what_now_raises_comes_out_of_the_main_thread() -> None:
    with pytest.raises(AssertionError, match="nobody asked"), Interrupt(never, {}):
        send("SIGINT", times=2)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_earlier_handlers_are_back_also_after_an_error() -> None:
    heard: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    mine = signal.getsignal(signal.SIGUSR1)
    try:
        with pytest.raises(KeyError), Interrupt(never, {}):
            send("SIGUSR1")
            raise KeyError
        assert not heard and signal.getsignal(signal.SIGUSR1) is mine
        send("SIGUSR1")
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before[signal.SIGUSR1])
    assert before == {number: signal.getsignal(number) for number in SIGNALS}


def test_the_inner_one_hears_and_the_outer_one_hears_again() -> None:
    with Interrupt(never, {}) as outer:
        with Interrupt(never, {}) as inner:
            send("SIGTERM")
        assert (outer.reason, inner.reason) == ("", "SIGTERM")
        send("SIGUSR1")
        assert (outer.reason, inner.reason) == ("SIGUSR1", "SIGTERM")


def test_one_object_can_be_entered_again_after_its_exit() -> None:
    asked = Interrupt(never, {})
    for name in ("SIGTERM", "SIGUSR1"):
        with asked:
            send(name)
    assert asked.reason == "SIGTERM"


def test_beside_the_main_thread_only_the_clock_is_heard(clocks: Callable[[float, float], None]) -> None:
    seen: list[str] = []

    def work() -> None:
        with Interrupt(never, {"SLURM_JOB_END_TIME": str(10**9 + 100)}) as asked:
            assert [signal.getsignal(number) for number in SIGNALS] == handlers
            seen.append(asked.wanted(90.0))

    handlers = [signal.getsignal(number) for number in SIGNALS]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["the job ends in 100 s"]


def test_a_signal_in_the_middle_of_a_c_call_is_heard_after_it() -> None:
    with Interrupt(never, {}) as asked:
        timer = threading.Timer(0.05, send, ["SIGTERM"])
        timer.start()
        began = time.monotonic()
        time.sleep(0.2)
        assert time.monotonic() - began >= 0.2 and asked.reason == "SIGTERM", "the call goes on, then the handler runs"
        timer.join()


def test_stop_when_what_is_needed_does_not_fit_before_the_end(clocks: Callable[[float, float], None]) -> None:
    asked = Interrupt(never, {"SLURM_JOB_END_TIME": str(10**9 + 200)})
    assert (asked.left, asked.note, asked.wanted(200.0 - MARGIN)) == (200.0, "", "")
    clocks(5e9, 155.0)  # somebody sets the wall clock: nothing follows
    assert asked.wanted(95.0 - MARGIN) == ""
    assert asked.wanted(95.5 - MARGIN) == asked.reason == "the job ends in 95 s"
    clocks(1e9, 1000.0)
    assert asked.wanted() == "the job ends in 95 s", "the first reason stays"


def test_late_is_zero_seconds_never_fewer(clocks: Callable[[float, float], None]) -> None:
    asked = Interrupt(never, {"SLURM_JOB_END_TIME": str(10**9 + 1)})
    clocks(1e9, 500.0)
    assert asked.wanted() == "the job ends in 0 s"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("999999999", "is past"),
        ("0", "is past"),
        ("soon", "is no time"),
        ("-5", "is no time"),
        ("1e12", "is no time"),
        ("nan", "is no time"),
        ("١٢٣", "is no time"),
        (str(10**9 + 4 * 10**8), "is more than ten years away"),
        ("9" * 18, "is more than ten years away"),
        ("9" * 5000, "is no time"),
    ],
)
def test_an_absurd_end_is_passed_over_with_a_note(text: str, words: str, clocks: Callable[[float, float], None]) -> None:
    end, note = deadline({"SLURM_JOB_END_TIME": text})
    assert end == math.inf
    assert note.startswith(f"SLURM_JOB_END_TIME={text[:40]}") and words in note and len(note) < 120
    assert Interrupt(never, {"SLURM_JOB_END_TIME": text}).wanted(1e300) == ""


@pytest.mark.parametrize("environ", [{}, {"SLURM_JOB_END_TIME": ""}])
def test_without_a_job_there_is_no_end(environ: dict[str, str]) -> None:
    assert deadline(environ) == (math.inf, "")


def test_a_warning_while_the_program_loads_waits_for_the_loop() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with held():
        send("SIGUSR1")
        with Interrupt(never, {}) as asked:
            assert asked.wanted() == "SIGUSR1"
        with Interrupt(never, {}) as asked:
            assert asked.wanted() == "", "it was heard once"
        send("SIGUSR1")  # after the loop it is too late to stop: nothing happens
    send("SIGUSR1")
    signal.signal(signal.SIGUSR1, before)
    with Interrupt(never, {}) as asked:
        assert asked.wanted() == "", "what nobody heard is forgotten"


def test_beside_the_main_thread_nothing_is_held() -> None:
    before, seen = signal.getsignal(signal.SIGUSR1), list[object]()

    def work() -> None:
        with held():
            seen.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


LEAVES = """
import atexit, os, signal, sys
from apts_mpi.interrupt import Interrupt, held
def signals():
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)
atexit.register(signals)  # runs last
with held():
    with Interrupt(lambda: None, {}) as asked:
        name = sys.argv[1]
        asked.leaving = name == "agreed"
        os.kill(os.getpid(), getattr(signal, name)) if name.startswith("SIG") else None
    signals() if name.startswith("SIG") else None
signals() if name != "finished" else None
sys.exit(75)
"""


@pytest.mark.fault(45)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "agreed"])
def test_who_has_saved_and_leaves_is_not_ended_by_the_same_again(name: str) -> None:
    assert subprocess.run([sys.executable, "-c", LEAVES, name], timeout=20).returncode == 75


def test_who_was_not_asked_to_leave_can_be_ended() -> None:
    assert subprocess.run([sys.executable, "-c", LEAVES, "finished"], timeout=20).returncode == -signal.SIGTERM


def test_without_held_a_program_that_goes_on_after_training_can_be_ended() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt(never, {}):
        send("SIGTERM")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_ctrl_c_is_kept_until_somebody_wants_to_hear_it() -> None:
    with deferred() as hear:
        send("SIGINT", times=2)
        with deferred():  # within another one it changes nothing
            pass
        with pytest.raises(KeyboardInterrupt):
            hear()
        with pytest.raises(KeyboardInterrupt):
            send("SIGINT")  # from here on as ever
        hear()
    with pytest.raises(KeyboardInterrupt), deferred():
        send("SIGINT")
    with pytest.raises(ValueError, match="first"), deferred():
        send("SIGINT")
        raise ValueError("what came first")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("theirs", [signal.SIG_IGN, lambda number, frame: None], ids=["ignored", "a handler"])
def test_who_has_another_use_for_ctrl_c_keeps_it(theirs: Any) -> None:
    earlier = signal.signal(signal.SIGINT, theirs)
    try:
        with deferred():
            assert signal.getsignal(signal.SIGINT) is theirs
            send("SIGINT")
    finally:
        signal.signal(signal.SIGINT, earlier)
