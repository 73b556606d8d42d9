"""Have the ratios of bars.py become worse? Checks for ReFrame 4 (pip install ReFrame-HPC, in an environment of its own).

    reframe -C benchmarks/reframe/config.py -c benchmarks/reframe/checks.py -r [-n Bar3] [-S quick=true] [-S python=.../bin/python]

One check a bar. A ratio is compared with the recorded one of benchmarks/results/bars.json, where that was measured at the same size
(quick or not), else with the bar itself if it has one; TOLERANCE says how much worse it may be. Ratios with neither are shown alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import reframe as rfm
import reframe.utility.sanity as sn
from reframe.core.builtins import parameter, run_after, run_before, sanity_function, variable

BENCHMARKS = Path(__file__).resolve().parents[1]
RECORDED = BENCHMARKS / "results" / "bars.json"
TOLERANCE = {3: 0.0, 4: 0.10, 5: 0.15, 6: 0.10, 7: 0.05}  # share of the reference
Bound = tuple[float, float | None, float | None, str]  # reference, lower and upper tolerance, unit


def recorded(quick: bool) -> dict[str, float]:
    """Ratios that were written down at this size, by what they are."""
    found = json.loads(RECORDED.read_text()) if RECORDED.exists() else {"quick": quick, "rows": []}
    return {row["what"]: row["ratio"] for row in found["rows"]} if found["quick"] == quick else {}


def bound(row: dict[str, Any], reference: float | None) -> Bound:
    """What ReFrame is to compare the ratio of ``row`` with; no bounds where there is nothing to compare with."""
    against = row["bar"] if reference is None else reference
    if against is None:
        return 0.0, None, None, "ratio"
    share = TOLERANCE[row["number"]]
    return (against, -share, None, "ratio") if row["at_least"] else (against, None, share, "ratio")


def word(what: str) -> str:
    """A name for ReFrame's logs."""
    return "".join(c if c.isalnum() else "_" for c in what).strip("_")


@rfm.simple_test
class Bar(rfm.RunOnlyRegressionTest):
    """One bar of bars.py."""

    number = parameter(sorted(TOLERANCE))
    quick = variable(bool, value=False)
    python = variable(str, value="python")
    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    time_limit = "2h"

    @run_after("init")
    def command(self) -> None:
        self.executable = self.python
        self.executable_opts = [str(BENCHMARKS / "bars.py"), "--only", str(self.number), "--out", "bars.json"]
        self.executable_opts += ["--quick"] if self.quick else []
        self.sourcesdir = None

    @sanity_function
    def complete(self) -> Any:
        return sn.assert_found(r"^\d+ ratios, \d+ met, \d+ NOT MET$", self.stdout)

    @run_before("performance")
    def compare(self) -> None:
        rows = json.loads((Path(self.stagedir) / "bars.json").read_text())["rows"]
        known = recorded(self.quick)
        self.perf_variables = {word(row["what"]): sn.make_performance_function(sn.defer(row["ratio"]), "ratio") for row in rows}
        self.reference = {"*": {word(row["what"]): bound(row, known.get(row["what"])) for row in rows}}
