"""One process at a time: a lock file that says who holds it, and when somebody else may take it over.

Whoever holds a lock is alive until the opposite is known: on the same machine by its process table,
after a restart of the machine or of the Slurm job by their numbers, elsewhere by a file that
nobody has touched for half an hour. Everything else is refused, naming the file to delete.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import secrets
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import monotonic
from typing import Any

from apts_mpi.regular import naming, read_bytes, read_object, sum_holds, with_sum

TOUCH = 60.0  # s between two signs of life
PATIENCE = 1800.0  # s without one: the holder on another machine is gone
TRIES = 50
_BYTES = 1 << 16


class LockError(OSError):
    """Somebody else holds the lock; the message says who and which file to delete if that is wrong."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


@dataclass(frozen=True)
class Holder:
    """A process, by marks that no other process will ever have."""

    host: str
    pid: int
    ticks: int  # when it started, in ticks since the machine did
    boot: str  # which start of the machine
    space: str  # in which process numbers mean something: of a container
    job: str  # Slurm's, with its cluster
    restarts: int  # of the job
    token: str  # of this taking

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        environ, pid = os.environ, os.getpid()
        job = f"{environ['SLURM_JOB_ID']}@{environ.get('SLURM_CLUSTER_NAME', '')}" if "SLURM_JOB_ID" in environ else ""
        restarts = environ.get("SLURM_RESTART_COUNT", "0")
        space = ""
        with contextlib.suppress(OSError):
            space = os.readlink("/proc/self/ns/pid")
        boot = _text(Path("/proc/sys/kernel/random/boot_id"))
        started = _started(pid) or 0
        return cls(platform.node(), pid, started, boot, space, job, int(restarts) if restarts.isdigit() else 0, secrets.token_hex(8))

    def words(self) -> str:
        """For people."""
        return f"process {self.pid} on {self.host}" + (f" of Slurm job {self.job.partition('@')[0]}" if self.job else "")


class RunLock:
    """A lock that this process holds; make it with ``take``."""

    def __init__(self, path: Path, holder: Holder) -> None:
        self.path, self._holder, self._touched = path, holder, monotonic()
        atexit.register(self.release)

    @classmethod
    def take(cls, path: Path, patience: float = PATIENCE, warn: Callable[[str], None] = warnings.warn) -> RunLock:
        """Take the lock file ``path``, over from a holder that is gone if need be (told by ``warn``).

        ``patience``: seconds without a sign of life after which a holder on another machine counts as gone.
        LockError if somebody holds it, other OSErrors if the disk fails. Of several processes at once, one gets it.
        """
        me = Holder.here()
        for _ in range(TRIES):
            with _draft(path, me) as draft:
                if _linked(draft, path):
                    return cls(path, me)
                try:
                    raw, age = read_bytes(path, _BYTES), draft.stat().st_mtime - path.stat().st_mtime
                except FileNotFoundError:
                    continue  # given back in this moment
                holder = _parsed(path)
                gone = _gone(holder, me, age, patience)
                if not gone:
                    raise LockError(errno.EBUSY, _refusal(holder, me, path, patience - age), str(path))
                # One guard for one content: whoever has it may replace this content, nobody else may.
                guard = cls.take(_guard(path, raw), patience, warn)
                try:
                    if _same(path, raw):
                        os.replace(draft, path)
                        warn(f"{path} was taken over from {holder.words() if holder else 'an unknown holder'}: {gone}")
                        return cls(path, me)
                finally:
                    guard.release()
        raise LockError(errno.EBUSY, f"the lock changes hands all the time; if that is over, delete {path}", str(path))

    def touch(self) -> None:
        """Give a sign of life once a minute; LockError if somebody else has taken the lock, other OSErrors if the disk fails."""
        if monotonic() - self._touched < TOUCH:
            return
        self._touched = monotonic()
        holder = self._seen()
        if holder is None:  # deleted, with its folder perhaps, which is there again; or damaged
            with _draft(self.path, self._holder) as draft:
                if not _linked(draft, self.path):
                    os.replace(draft, self.path)
        elif holder != self._holder:
            raise LockError(errno.EBUSY, f"{holder.words()} has taken the lock from us", str(self.path))
        os.utime(self.path)

    def _seen(self) -> Holder | None:
        """Who holds the lock; OSError where that cannot be read, which is no reason to write over it."""
        with contextlib.suppress(FileNotFoundError):
            read_bytes(self.path, _BYTES)
        return _parsed(self.path)

    @contextlib.contextmanager
    def unless_kept(self) -> Iterator[Callable[[], object]]:
        """Release the lock at the end of the block, unless the function given was called."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.release)
            yield stack.pop_all

    def release(self) -> None:
        """Give the lock back if it is still ours; harmless a second time, in a forked child, and on a broken disk."""
        atexit.unregister(self.release)
        if os.getpid() == self._holder.pid and _parsed(self.path) == self._holder:
            with contextlib.suppress(OSError):
                self.path.unlink()


def _guard(path: Path, raw: bytes) -> Path:
    return path.with_name(f".{path.name[:100]}.{hashlib.sha256(raw).hexdigest()[:16]}")


@contextlib.contextmanager
def _draft(path: Path, holder: Holder) -> Iterator[Path]:
    """A file with the holder in it, which only has to get its name: a lock is never there without its content."""
    draft = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    with naming(path):
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "w", encoding="utf-8") as handle:
            try:
                handle.write(json.dumps(with_sum(asdict(holder)), indent=1) + "\n")
                handle.flush()
            except OSError:
                draft.unlink(missing_ok=True)
                raise
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _linked(draft: Path, path: Path) -> bool:
    """Whether ``path`` was free and is now the draft."""
    try:
        os.link(draft, path)
    except FileExistsError:
        # Over NFS the answer to a link that was made can get lost, and the question asked again.
        return draft.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        return _copied(draft, path)
    return True


def _copied(draft: Path, path: Path) -> bool:
    """The same without hard links; who reads the file before it is whole takes it for a damaged one, which is in use."""
    try:
        with path.open("xb") as handle:
            handle.write(draft.read_bytes())
    except FileExistsError:
        return False
    return True


def _parsed(path: Path) -> Holder | None:
    """Who holds the lock; None if nobody does or the file is damaged."""
    try:
        values: dict[str, Any] = read_object(path, _BYTES)
    except (OSError, ValueError):
        return None
    kinds = {entry.name: {"int": int, "str": str}[str(entry.type)] for entry in fields(Holder)}
    if not sum_holds(values) or any(type(values.get(name)) is not kind for name, kind in kinds.items()):
        return None
    return Holder(**{name: values[name] for name in kinds})


def _same(path: Path, raw: bytes) -> bool:
    try:
        return read_bytes(path, _BYTES) == raw
    except FileNotFoundError:
        return False


def _gone(holder: Holder | None, me: Holder, age: float, patience: float) -> str:
    """Why the holder of a lock that was touched ``age`` seconds ago is certainly gone; empty if that is not certain."""
    if holder is not None:
        if holder.job and holder.job == me.job and holder.restarts < me.restarts:
            return f"its Slurm job has started again since ({me.restarts} restarts)"
        restarted = holder.host == me.host and holder.boot != me.boot and holder.boot and me.boot
        if restarted and age > 3 * TOUCH:  # a holder that was alive a moment ago is on another machine of the same name
            return "the machine has started again since"
        if (holder.host, holder.boot, holder.space) == (me.host, me.boot, me.space):
            return "" if _started(holder.pid) in (holder.ticks, None) else "that process has ended"
    return f"no sign of life for {age / 60:.0f} min" if age > patience else ""


def _refusal(holder: Holder | None, me: Holder, path: Path, left: float) -> str:
    who = holder.words() if holder else "somebody whose lock file is damaged"
    seen = holder is not None and (holder.host, holder.boot, holder.space) == (me.host, me.boot, me.space)
    wait = "" if seen or math.isinf(left) else f", or wait {max(0.0, left) / 60:.0f} min for a sign of life"
    return f"is in use by {who}; give another folder, or if that process has certainly ended, delete {path}{wait}"


def _started(pid: int) -> int | None:
    """When a process started, in ticks since the machine did; 0 if there is none; None if it may not be looked at."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return 0
    except PermissionError:
        pass
    # The name in brackets may hold anything; the state is the first field behind it, the start the twentieth.
    rest = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    if len(rest) < 20:
        return None
    return 0 if rest[0] in "ZX" else int(rest[19])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
