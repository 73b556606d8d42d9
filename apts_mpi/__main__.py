"""``python -m apts_mpi`` and ``apts-mpi``: run a command, with MPI where it needs it; all ranks end together."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from apts_mpi import cli
from apts_mpi.interrupt import held
from apts_mpi.settings import SettingsError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: what was typed) and return its exit code."""
    try:
        command = cli.parse(sys.argv[1:] if argv is None else list(argv))
    except (cli.UsageError, SettingsError) as error:
        command = cli.refuse(error)
    if not command.parallel:
        return alone(command)
    with held():
        return in_parallel(command)


def alone(command: cli.Command) -> int:
    """Run ``command`` in this process; a reader such as ``head`` that has seen enough is no error."""
    try:
        code = command.run(None)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to be flushed at exit
        return 0
    return code


def in_parallel(command: cli.Command) -> int:
    """Run ``command`` on every rank of the launcher, or on one rank without; every rank gets a code and leaves.

    What all ranks find wrong together (set-up, handshake), and what one rank alone finds, ends in a message and
    a code. Any other error goes to the hook of ``launch``, which takes all ranks down: some may wait for this one.
    """
    from apts_mpi.parallel.handshake import HandshakeError, SetupError
    from apts_mpi.parallel.launch import finish, start

    comm = start()
    try:
        code = command.run(comm)
    except (HandshakeError, ImportError, MemoryError, OSError) as error:
        together = isinstance(error, HandshakeError)
        if not together and comm.size > 1:
            raise
        if comm.rank == 0:
            cli.complain(str(error) if together else f"{type(error).__name__}: {error}")
        code = cli.USAGE if isinstance(error, SetupError) and error.usage else cli.ENVIRONMENT
    finish(comm)
    return code


if __name__ == "__main__":
    sys.exit(main())
