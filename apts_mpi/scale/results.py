"""From the runs of a study to its points, its report, and what the cost model says of machines that nobody here has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from apts_mpi.scale.estimate import predicted
from apts_mpi.scale.facts import CALIBRATION, REPORT, Facts, facts
from apts_mpi.study.collect import collect
from apts_mpi.study.definition import Study, StudyError
from apts_mpi.study.document import Part
from apts_mpi.study.machine import Machine, read_machine
from apts_mpi.study.plan import plan
from apts_mpi.study.points import POINTS, Points, read_points, to_json
from apts_mpi.study.whatif import RANKS, Crossover, Effort, Fabric, Row, Target, crossovers, fabrics, time_to_target, whatif

SAMPLES = 64  # of a rank, unless told
FIGURES = "figures"  # folder in a report's


def collect_study(study: Study) -> Points:
    """Points of all runs on disk, written to points.json; StudyError if there are none."""
    from apts_mpi.storage.plain import write_atomic

    points = collect(study, plan(study))
    if not points.points:
        raise StudyError(f"no run of {study.path} is finished in {study.home}; apts-mpi scale run {study.path} makes them")
    write_atomic(study.home / POINTS, to_json(points).encode())
    return points


def predictions(study: Study, points: Points) -> dict[str, dict[str, float]]:
    """Run -> predicted seconds of an outer iteration and its floor; empty without a calibration."""
    machine = read_machine(study.home / CALIBRATION)
    if machine is None:
        return {}
    found = {}
    by_name = {point.run: point for point in points.points}
    for run in plan(study):
        point = by_name.get(run.id)
        if point is not None:
            iters = point.local_iters if run.config.method == "apts" else None
            price = predicted(run, machine, Facts(point.n_params, point.samples, (), 0), iters)
            if price is not None:
                found[run.id] = {"seconds": price.seconds, "floor": price.floor}
    return found


def report_study(study: Study, out: str | None) -> list[Path]:
    """Collect, and write the report; its files."""
    from apts_mpi.study.report import write_report
    from apts_mpi.study.whatif_report import parts, write_whatif

    points = collect_study(study)
    folder, machine, warnings = Path(out) if out else study.home / REPORT, read_machine(study.home / CALIBRATION), distrust(study)
    written, extra = list[Path](), list[Part]()
    if machine is not None:
        found = extrapolated(study, machine)
        written = write_whatif(*found[:2], folder / FIGURES, found[2], warnings)
        extra = parts(*found, next(path for path in written if path.suffix == ".png"), warnings)
    return [*write_report(points, folder, predictions(study, points), extra), *written]


def extrapolated(
    study: Study, machine: Machine, samples: int = SAMPLES, own: Sequence[Fabric] = (), ranks: Sequence[int] = RANKS
) -> tuple[list[Row], list[Crossover], list[Target]]:  # fmt: skip
    """1 to 4,096 ranks on the stated fabrics, the study's and ``own`` ones."""
    runs = plan(study)
    known, config = facts(study, runs), runs[0].config
    emulated = [Fabric(net.name, net.latency, net.bandwidth, "the study") for net in study.networks if net.name and net.bandwidth]
    wires = fabrics(*emulated, *own)
    rows = whatif(machine, config, known.n_params, wires, ranks, samples)
    found = crossovers(machine, config, known.n_params, wires, ranks)
    return rows, found, time_to_targets(study, machine, known, wires, ranks)


def whatif_study(study: Study, out: str | None, samples: int, own: Sequence[Fabric], machine: Machine | None) -> list[str]:
    """What ``scale whatif`` prints; ``machine``: in place of the calibrated one."""
    from apts_mpi.study.whatif_report import crossover_lines, lines, target_lines, write_whatif

    warnings = [] if machine else distrust(study)
    machine = machine or read_machine(study.home / CALIBRATION)
    if machine is None:
        told = f"no calibration in {study.home / CALIBRATION}; apts-mpi scale run makes it, or state --flops and --memory"
        raise StudyError(f"{study.path}: {told}")
    rows, found, targets = extrapolated(study, machine, samples, own)
    notes = [*([note] if (note := machine.note(max(row.ranks for row in rows))) else []), *warnings]
    written = write_whatif(rows, found, Path(out) if out else study.home / REPORT, targets, notes)
    return [*lines(rows), *notes, "", *crossover_lines(found), "", *target_lines(targets), "", *map(str, written)]


def distrust(study: Study) -> list[str]:
    """What the study's own runs say against the cost model; empty before they are collected."""
    from apts_mpi.study.report_words import trust
    from apts_mpi.study.statistics import all_series

    try:
        points = read_points(study.home)
    except FileNotFoundError:
        return []
    return trust(all_series(points), predictions(study, points))


def stated(study: Study, flops: float, memory: float) -> Machine:
    """A machine of so many operations and bytes of memory per second and rank; 6 n operations for the gradient of a sample."""
    from apts_mpi.study.roofline import roofline

    n = facts(study, plan(study)).n_params
    return roofline(flops, memory, n, 6.0 * n)


def time_to_targets(study: Study, machine: Machine, known: Facts, wires: Sequence[Fabric], ranks: Sequence[int]) -> list[Target]:
    """Seconds to the target from the iterations and passes that strong runs at the most ranks were measured to need; empty without them."""
    try:
        points = read_points(study.home)
    except FileNotFoundError:
        return []
    configs = {run.id: run.config for run in plan(study) if not run.method.program}
    chosen = [p for p in points.of(scaling="strong") if p.ranks == max(study.ranks) and p.run in configs and p.target_iterations > 0]
    efforts = {}
    for name in dict.fromkeys(p.method for p in chosen):
        mine = [p for p in chosen if p.method == name]
        efforts[name] = Effort(configs[mine[0].run], median(p.target_iterations for p in mine), median(p.target_passes for p in mine))
    return time_to_target(machine, known.n_params, chosen[0].samples, efforts, wires, ranks) if chosen else []
