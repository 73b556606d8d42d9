"""All runs that tables and pictures are made from, by case: run directories, and records where these are absent."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from paper.cases import Case
from paper.curves import SEEDS, Curve, read_curve, read_json
from paper.identity import differences


class Store:
    """All runs below a folder, each read once. ``more``: options of train that all of them have; ``seeds``: how many of them count."""

    def __init__(
        self, runs: Path, more: Sequence[str] = (), say: Callable[[str], None] = print, seeds: int = sys.maxsize,
    ) -> None:  # fmt: skip
        self.runs, self.seeds, self._more, self._say = runs, seeds, tuple(more), say
        self._known, self._data = dict[str, list[Curve]](), dict[str, str]()

    def curves(self, case: Case) -> list[Curve]:
        """The runs of a case with a seed that was asked for, in their order; those of other settings or data are left out, in words."""
        if case.name not in self._known:
            folders = [path for path in (self.runs / case.name).glob("seed-*") if path.is_dir()]
            found = [curve for folder in folders if (curve := self._curve(case, folder)) is not None]
            self._known[case.name] = sorted(found, key=lambda curve: curve.seed)
        count = self.wanted(case)
        return [curve for curve in self._known[case.name] if curve.seed % SEEDS == 0 and curve.seed < SEEDS * count]

    def wanted(self, case: Case) -> int:
        """How many runs of a case there should be."""
        return min(self.seeds, case.seeds or self.seeds)

    def _curve(self, case: Case, folder: Path) -> Curve | None:
        curve = read_curve(folder)
        if curve is None:
            return None
        odd = differences(folder, [*case.words, *self._more, "--run.seed", str(curve.seed)])
        if str(curve.facts["data_fingerprint"]) != self._fingerprint(case.problem.name):
            odd.insert(0, "other data than most runs of its problem")
        if odd:
            self._say(f"left out: {folder.relative_to(self.runs)} was made with {'; '.join(odd[:3])}{' ...' if len(odd) > 3 else ''}")
        return None if odd else curve

    def _fingerprint(self, problem: str) -> str:
        """Of the data that most runs of a problem have, the first in the alphabet of several."""
        if problem not in self._data:
            found = Counter(str(read_json(path).get("data_fingerprint")) for path in (self.runs / problem).glob("*/seed-*/provenance.json"))
            self._data[problem] = min(found, key=lambda data: (-found[data], data))
        return self._data[problem]

    def forget(self) -> None:
        """Read again what is asked for next."""
        self._known.clear()
        self._data.clear()
