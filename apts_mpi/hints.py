"""What somebody who mistyped a name may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """"; did you mean NAME?" for the end of an error message, or nothing if no name is like ``word``."""
    return "".join(f"; did you mean {name}?" for name in get_close_matches(word, sorted(names), 1))
