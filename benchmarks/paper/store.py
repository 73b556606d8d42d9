"""All runs that tables and pictures are made from, by case: run directories, and records where these are absent."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from paper.cases import Case
from paper.curves import SEEDS, Curve, read_curve, read_json
from paper.identity import differences
from paper.records import path_of, read_record


class Store:
    """All runs below a folder, each read once, and the ``records`` of those that are not there.

    ``more``: options of train that all of them have; ``seeds``: how many of them count.
    """

    def __init__(
        self, runs: Path, more: Sequence[str] = (), say: Callable[[str], None] = print, seeds: int = sys.maxsize,
        records: Path | None = None,
    ) -> None:  # fmt: skip
        self.runs, self.seeds, self._more, self._say, self._records = runs, seeds, tuple(more), say, records
        self._known, self._data = dict[str, list[Curve]](), dict[str, str]()

    def curves(self, case: Case) -> list[Curve]:
        """The runs of a case with a seed that was asked for, in their order; those of other settings or data are left out, in words."""
        if case.name not in self._known:
            names = {path.name for path in (self.runs / case.name).glob("seed-*") if path.is_dir()}
            names |= {path.stem for path in self._recorded(case.name)}
            curves = [curve for name in sorted(names) if (curve := self._curve(case, name)) is not None]
            self._known[case.name] = sorted(curves, key=lambda curve: curve.seed)
        count = self.wanted(case)
        return [curve for curve in self._known[case.name] if curve.seed % SEEDS == 0 and curve.seed < SEEDS * count]

    def finished(self, case: Case) -> list[Curve]:
        """Those of them that have come to the budget of ``case``, or to an end of their own."""
        return [curve for curve in self.curves(case) if curve.enough(case.until)]

    def wanted(self, case: Case) -> int:
        """How many runs of a case there should be."""
        return min(self.seeds, case.seeds or self.seeds)

    def _recorded(self, case: str) -> list[Path]:
        """The records of a case, or of all cases that ``case`` as a pattern fits."""
        return list(self._records.glob(f"{case}/seed-*.json")) if self._records else []

    def _curve(self, case: Case, name: str) -> Curve | None:
        """The run of this name from its folder; where none has ended there that is the case's, from its record."""
        folder = self.runs / case.name / name
        curve = read_curve(folder)
        if curve is not None and not self._fits(case, curve, folder, f"{case.name}/{name}"):
            curve = None
        if curve is not None and curve.status:
            return curve
        path = path_of(self._records, case.name, name) if self._records else None
        if path is None or not path.is_file():
            return curve
        try:
            record = read_record(path)
        except ValueError as problem:
            self._say(f"left out: {problem}")
            return curve
        return record.curve if self._fits(case, record.curve, record.settings, f"the record {case.name}/{name}") else curve

    def _fits(self, case: Case, curve: Curve, run: Path | Mapping[str, object], name: str) -> bool:
        """Whether a run is the case's; says what it is otherwise."""
        odd = differences(run, [*case.words, *self._more, "--run.seed", str(curve.seed)])
        if str(curve.facts["data_fingerprint"]) != self._fingerprint(case.problem.name):
            odd.insert(0, "other data than most runs of its problem")
        if odd:
            self._say(f"left out: {name} was made with {'; '.join(odd[:3])}{' ...' if len(odd) > 3 else ''}")
        return not odd

    def _fingerprint(self, problem: str) -> str:
        """Of the data that most runs of a problem have, the first in the alphabet of several."""
        if problem not in self._data:
            recorded = {f"{path.parent.name}/{path.stem}": read_json(path).get("facts") for path in self._recorded(f"{problem}/*")}
            made = {f"{path.parents[1].name}/{path.parent.name}": read_json(path)
                    for path in (self.runs / problem).glob("*/seed-*/provenance.json")}  # fmt: skip
            runs = {name: facts for name, facts in (recorded | made).items() if isinstance(facts, dict)}
            count = Counter(str(facts.get("data_fingerprint")) for facts in runs.values())
            self._data[problem] = min(count, key=lambda data: (-count[data], data))
        return self._data[problem]

    def forget(self) -> None:
        """Read again what is asked for next."""
        self._known.clear()
        self._data.clear()
