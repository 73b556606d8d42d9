"""What somebody who mistyped something may have meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """"; did you mean NAME?" for the end of an error message, or nothing if no name is like ``word``."""
    return "".join(f"; did you mean {name}?" for name in get_close_matches(word, sorted(names), 1))


def of_usage(message: str) -> str:
    """The same for what argparse says of a wrong choice, and for settings of ``train`` where ``--`` has to stand before them."""
    if unknown := re.search(r"invalid choice: '(.+?)' \(choose from (.+)\)", message):
        return did_you_mean(unknown[1], re.findall(r"[\w-]+", unknown[2]))
    misplaced = message.startswith("unrecognized arguments") and re.search(r" --\w+\.\w", message)
    return "; settings of train stand behind --" if misplaced else ""
