"""A process that reads what may be evil, with a cap on its memory and on the time of a case; as a program: its inside."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

MEMORY = 512 << 20  # bytes beyond what the process has before the first case
SECONDS = 10.0  # of a case


class Box:
    """The process; it lives until a case kills it or ``close``."""

    def __init__(self, readers: str) -> None:
        """``readers``: the module, beside this file or a neighbour in a folder on PYTHONPATH, whose READERS are called."""
        self._readers, self._process = readers, self._start(readers)

    @staticmethod
    def _start(readers: str) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, readers]
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        environ = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": path}
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)

    def ask(self, reader: str, *arguments: str) -> dict[str, Any]:
        """What ``reader`` makes of its arguments: value, or error and text; opened: paths. AssertionError if the process dies of it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([reader, *arguments]) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], SECONDS + 20)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self._process.kill()
            code = self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = self._start(self._readers)
            raise AssertionError(f"{reader} of {arguments}: the process {'ended with ' + str(code) if ready else 'hangs'}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.communicate(timeout=30)


def _inside(readers: str) -> None:
    import importlib

    found = importlib.import_module(readers).READERS
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what readers print is not an answer
    kib = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, ((kib << 10) + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        reader, *arguments = json.loads(line)
        opened.clear()
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            answer = {"value": found[reader](*map(Path, arguments))}
        except BaseException as error:  # of every kind: which ones are clean, the test says
            kinds = [kind.__name__ for kind in type(error).__mro__]
            answer = {"error": kinds, "text": str(error)}
        faulthandler.cancel_dump_traceback_later()
        answers.write(json.dumps({**answer, "opened": sorted(set(opened))}) + "\n")
        answers.flush()


if __name__ == "__main__":
    _inside(sys.argv[1])
