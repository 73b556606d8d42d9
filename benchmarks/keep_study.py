"""Copy what is to be committed of a study into benchmarks/results: python benchmarks/keep_study.py studies/NAME

Its points, calibration, report in Markdown, LaTeX tables and figures. In the calibration the folder that it was made in, which is of
one machine, becomes "." and its checksum is made again; one that does not hold is refused.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from apts_mpi.regular import SUM, read_summed, with_sum

RESULTS = Path(__file__).parent / "results"
PARTS = ("points.json", "calibration", "report/report.md", "report/tables.tex", "report/figures")


def without_folder(values: dict[str, Any]) -> dict[str, Any]:
    """A sealed document in whose provenance ``command`` and ``folder`` name no absolute folder."""
    rest = {name: value for name, value in values.items() if name != SUM}
    made = rest["provenance"]
    here = {"command": made["command"].replace(f"{made['folder']}/", ""), "folder": "."}
    return with_sum({**rest, "provenance": {**made, **here}})


def keep(study: Path, results: Path) -> None:
    """Copy ``study`` into the folder of its name in ``results``."""
    for name in PARTS:
        source, target = study / name, results / study.name / Path(name).name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    for path in (results / study.name / "calibration").glob("*.json"):
        path.write_text(json.dumps(without_folder(read_summed(path)), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "report").is_dir():
        sys.exit("usage: python benchmarks/keep_study.py studies/NAME, after apts-mpi scale report")
    keep(Path(sys.argv[1]), RESULTS)
