"""``python -m apts_mpi`` and ``apts-mpi``: run a command, with MPI where it needs it; all ranks end together."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from apts_mpi.interrupt import INTERRUPTED, deferred, held

if TYPE_CHECKING:
    from apts_mpi import cli
    from apts_mpi.contracts import Communicator

Hear = Callable[[], None]  # raises KeyboardInterrupt if there was a Ctrl-C, and lets later ones come


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: what was typed) and return its exit code."""
    with deferred() as hear:
        command = parsed(sys.argv[1:] if argv is None else list(argv))
        if not command.parallel:
            return alone(command, hear)
        with held():
            return in_parallel(command, hear)


def parsed(argv: Sequence[str]) -> cli.Command:
    """The command that ``argv`` asks for, or one that says what is wrong with it."""
    from apts_mpi import cli, settings

    try:
        return cli.parse(argv)
    except (cli.UsageError, settings.SettingsError) as error:
        return cli.refuse(error)


def alone(command: cli.Command, hear: Hear = lambda: None) -> int:
    """Run ``command`` in this process; a reader such as ``head`` that has seen enough is no error."""
    try:
        hear()
        code = command.run(None)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return cut_off(command.interrupted)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to be flushed at exit
        return 0
    return code


def in_parallel(command: cli.Command, hear: Hear = lambda: None) -> int:
    """Run ``command`` on every rank of the launcher, or on one rank without; every rank gets a code and leaves.

    What all ranks find wrong together (set-up, handshake), and what one rank alone finds, ends in a message and
    a code. Any other error goes to the hook of ``launch``, which takes all ranks down: some may wait for this one.
    A Ctrl-C is heard when MPI is up: before, a rank that left would leave the others waiting in its start.
    """
    from apts_mpi import cli
    from apts_mpi.parallel.handshake import HandshakeError, SetupError
    from apts_mpi.parallel.launch import finish, start

    comm = start()
    try:
        hear()
        code = command.run(comm)
    except KeyboardInterrupt as error:
        code = cut_off(str(error) or command.interrupted, comm)
    except (HandshakeError, ImportError, MemoryError, OSError) as error:
        together = isinstance(error, HandshakeError)
        if not together and comm.size > 1:
            raise
        if comm.rank == 0:
            cli.complain(str(error) if together else f"{type(error).__name__}: {error}")
        code = cli.USAGE if isinstance(error, SetupError) and error.usage else cli.ENVIRONMENT
    finish(comm)
    return code


def cut_off(words: str, comm: Communicator | None = None) -> int:
    """Say that somebody typed Ctrl-C and return the code for it, or end all ranks with it where there are several. Not collective."""
    from apts_mpi import cli

    if comm is not None and comm.size > 1:
        from apts_mpi.parallel.launch import stop_all

        stop_all(words)
    with suppress(KeyboardInterrupt), deferred():  # another one changes nothing
        cli.complain(words)
    return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
