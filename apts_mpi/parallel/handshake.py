"""Do all ranks run the same thing? Versions, config, layout and data are compared once, before the loop."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol, TypeVar

T = TypeVar("T")

_PACKAGES = ("apts_mpi", "torch", "numpy", "mpi4py", "h5py")
_SHOWN = 120  # characters of a text in an error
_NAMED = 8  # ranks in an error


class HandshakeError(RuntimeError):
    """The ranks do not agree; raised on every rank with the same words."""


class SetupError(HandshakeError):
    """One rank or several could not do their part; raised on every rank with the same words.

    ``usage``: all of them met a ValueError, so other settings or data are needed and not another machine.
    """

    def __init__(self, text: str, usage: bool = False) -> None:
        super().__init__(text)
        self.usage = usage


class ReductionError(RuntimeError):
    """A sum over the ranks is not the sum of what they sent; raised on the ranks that see it, which may be one alone."""


class TextGatherer(Protocol):
    """What the comparison needs of a communicator."""

    def gather_text(self, text: str) -> list[str]:
        """Each rank's text, on every rank, in rank order; every rank calls."""

    @property
    def host(self) -> str:
        """This rank's host name."""


def versions() -> dict[str, str]:
    """Python and the libraries whose versions may change the numbers or the format of files."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def handshake(comm: TextGatherer, items: Mapping[str, str]) -> None:
    """Raise HandshakeError on every rank unless versions and all ``items`` are the same on all; every rank calls.

    Args:
        comm: the communicator.
        items: what must not differ, by name: config, layout, data, sizes; long texts are compared by hash.
    """
    mine = {**{f"version of {name}": text for name, text in versions().items()}, **items}
    names = difference(comm, "handshake items", ", ".join(mine))
    found = [names] if names else [difference(comm, what, text) for what, text in mine.items()]
    if any(found):
        raise HandshakeError("\n".join(text for text in found if text))


def together(comm: TextGatherer, action: Callable[[], T]) -> T:
    """What ``action`` returns on this rank; every rank calls.

    If it raises ValueError, OSError, ImportError or MemoryError on any rank, all ranks raise SetupError, which
    names the ranks and the reasons. So a missing file on one node leaves nobody waiting. ``action`` must not communicate.
    """
    problem = kind = ""
    try:
        value = action()
    except (ValueError, OSError, ImportError, MemoryError) as error:
        problem = str(error) or type(error).__name__
        kind = "usage" if isinstance(error, ValueError) else "environment"
    problems = comm.gather_text(problem)
    if any(problems):
        hosts, kinds = comm.gather_text(comm.host), comm.gather_text(kind)
        raise SetupError(blame(problems, hosts), usage="environment" not in kinds)
    return value


def blame(problems: Sequence[str], hosts: Sequence[str]) -> str:
    """Which ranks have which problem (empty: none); the same problem on all ranks is told once."""
    if len(set(problems)) == 1:
        return problems[0]
    failed = [rank for rank, problem in enumerate(problems) if problem]
    lines = [f"rank {rank} on {hosts[rank]}: {problems[rank]}" for rank in failed[:_NAMED]]
    return "\n".join([*lines, *([f"and {len(failed) - _NAMED} more ranks"] if len(failed) > _NAMED else [])])


def difference(comm: TextGatherer, what: str, text: str) -> str:
    """Empty if ``text`` is the same on all ranks, else which ranks differ from most and how; every rank calls."""
    digests = comm.gather_text(sha256(text.encode()).hexdigest())
    if len(set(digests)) == 1:  # the same verdict on every rank: nobody leaves alone
        return ""
    return verdict(what, digests, comm.gather_text(comm.host), comm.gather_text(text[:_SHOWN]))


def verdict(what: str, digests: Sequence[str], hosts: Sequence[str], texts: Sequence[str]) -> str:
    """The sentence about a disagreement: most ranks' text against those of the minority; rank 0 breaks a tie."""
    counts = Counter(digests)
    most = max(counts, key=lambda digest: (counts[digest], -digests.index(digest)))
    minority = [rank for rank, digest in enumerate(digests) if digest != most]
    named = [f"rank {rank} on {hosts[rank]} ({texts[rank]!r})" for rank in minority[:_NAMED]]
    more = f" and {len(minority) - _NAMED} more" if len(minority) > _NAMED else ""
    first = digests.index(most)
    whose = f"{counts[most]} of {len(digests)} ranks have {texts[first]!r}"
    return f"{what} differs between the ranks: {whose}, but not {', '.join(named)}{more}"
