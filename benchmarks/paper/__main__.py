"""The paper's figures, the bars and what else is shown of the method, made from run directories and records of runs.

    python benchmarks/paper WHAT [--runs DIR] [--seeds 3] [--epochs 25] [--ranks 2] [--jobs 1] [--only WORD ...]
    python benchmarks/paper --quick         # a small form of it on the digits data set, with assertions
    python benchmarks/paper report          # every table and figure from the runs that are there; starts nothing; a fresh clone has records

Every run is an ordinary ``apts-mpi train`` below --runs, named by its case and seed, so a command that was cut short goes on where it
stopped, and two experiments share the runs they have in common. A run that has come to its budget leaves a record below --records, a file
of a few kB to be committed, which stands for the run where its run directory is absent; to go further than its record, a run is made again
from the start. After each experiment its tables and figures are written to --results.
Ends with 1 if a run is missing or failed, or a bar is not met or has no verdict yet.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    from paper import experiments, quick, report
    from paper.runner import Runner
    from paper.store import Store
    from paper.wanted import Options
except ModuleNotFoundError as error:
    if error.name not in ("apts_mpi", "matplotlib", "numpy", "torch", "h5py"):
        raise
    sys.exit(
        f"{error.name} is missing in this Python: . .venv/bin/activate where jobs/laptop.sh made one, else pip install '.[mpich,plot]' in "
        "the root of the repository; then the same command again"
    )

RUNS, RESULTS, PUBLISHED = Path("runs/paper"), Path("benchmarks/results/paper"), Path("data/published_curves.csv")
RECORDS = RESULTS / "records"


def say(text: str) -> None:
    print(text, flush=True)


def parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(prog="python benchmarks/paper", description=__doc__, formatter_class=plain)
    found.add_argument("what", nargs="?", choices=[*experiments.NAMES, "all", "report"], metavar="WHAT",
                       help=f"{', '.join(experiments.NAMES)}, all, or report")  # fmt: skip
    found.add_argument("--quick", action="store_true", help="the small form, in a folder that is removed unless --runs names one")
    found.add_argument("--runs", type=Path, default=RUNS, help=f"where the run directories are [{RUNS}]")
    found.add_argument("--results", type=Path, default=RESULTS, help=f"where tables and figures go [{RESULTS}]")
    found.add_argument("--records", type=Path, default=RECORDS, help=f"where the records of runs are [{RECORDS}]")
    for name in experiments.DATA:
        found.add_argument(f"--{name}", default=f"data/{name}", metavar="DIR", help=f"its data set [data/{name}]")
    found.add_argument("--published", type=Path, default=PUBLISHED, help=f"the paper's own curves [{PUBLISHED}]")
    found.add_argument("--seeds", type=int, default=3, help="0, 1000, ... [3]")
    found.add_argument("--epochs", type=int, default=25, help="of the curves in the figures [25]")
    found.add_argument("--ranks", type=int, default=2, help="of a run, one thread each [2]")
    found.add_argument("--jobs", type=int, default=1, help="runs side by side [1]")
    found.add_argument("--busy", action="store_true", help="the machine has other work beside: seconds of these runs are not shown")
    found.add_argument("--only", nargs="*", default=[], metavar="WORD", help="cases whose name has one of these words")
    found.add_argument("--limit-time", type=float, default=float("inf"), metavar="MINUTES", help="stop after it, to go on later")
    found.add_argument("--again", action="store_true", help="make runs again that another source made")
    found.add_argument("--dry-run", action="store_true", help="list the runs and whether they are there; start nothing")
    found.add_argument("--more", default="", metavar="OPTIONS", help="options of train for all runs, such as '--run.device cpu'")
    return found


def main() -> int:
    asked = parser().parse_args()
    if asked.quick:
        with tempfile.TemporaryDirectory() as folder:
            return quick.main(Path(folder) if asked.runs == RUNS else asked.runs, say)
    if asked.what is None:
        parser().error("WHAT is missing")
    names = experiments.NAMES if asked.what in ("all", "report") else (asked.what,)
    options = Options(
        asked.runs, {name: getattr(asked, name) for name in experiments.DATA}, asked.seeds, asked.ranks, asked.jobs, asked.busy,
        asked.again, tuple(asked.more.split()), time.monotonic() + 60 * asked.limit_time, say, asked.records,
    )  # fmt: skip
    store = Store(asked.runs, options.more, say, asked.seeds, asked.records)
    known = report.Context(store, asked.seeds, asked.epochs, asked.published, asked.results)
    failed = 0
    if asked.what != "report":
        runner = Runner(options)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            failed = experiments.make(names, runner, known, asked.only, asked.dry_run)
        except KeyboardInterrupt:
            say("stopped; the same command goes on")
            return 75
    if asked.dry_run:
        return 0
    fallen = report.make(names, known, asked.what in ("all", "report"), say)
    for words in fallen:
        say(words)
    if failed:
        say(f"{failed} runs failed or are missing")
    return int(bool(fallen or failed))


if __name__ == "__main__":
    sys.exit(main())
