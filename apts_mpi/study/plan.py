"""The runs of a study: which there are, with what settings, and in which order.

Methods and rank counts take turns within a repetition, so that whatever else the machine does meets all of them; the method
that begins changes from repetition to repetition. A run that strong and weak scaling have in common is made once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from apts_mpi import settings
from apts_mpi.baseline import ALL_REDUCE
from apts_mpi.config import Config
from apts_mpi.rundir import finished
from apts_mpi.study.definition import Method, Network, Scaling, Study, StudyError


@dataclass(frozen=True)
class Run:
    """One run of train."""

    id: str  # of the run's folder
    method: Method
    network: Network
    scalings: tuple[Scaling, ...]  # that it serves
    ranks: int
    nodes: int
    per_rank: int  # subdomains of a rank that the study asked for
    seed: int
    repetition: int
    config: Config

    @property
    def folder(self) -> Path:
        return Path(self.config.run.dir)

    @property
    def toml(self) -> str:
        """The settings file that train is given."""
        return settings.to_toml(self.config)

    @property
    def done(self) -> bool:
        """Whether it is on disk with exactly these settings and came to its end."""
        return finished(self.folder, self.toml)

    @property
    def subdomains(self) -> int:
        return self.config.solver.subdomains or self.ranks

    @property
    def case(self) -> tuple[str, str, int, int, int, int]:
        """What repetitions and seeds have in common: method, network, ranks, subdomains, samples and minibatch."""
        config = self.config
        return self.method.name, self.network.name, self.ranks, config.solver.subdomains, config.data.limit, config.data.batch


def plan(study: Study) -> list[Run]:
    """All runs in the order they are made; StudyError if the settings of one are wrong."""
    found: dict[str, Run] = {}
    for run in _all(study):
        same = found.get(run.id)
        found[run.id] = run if same is None else replace(same, scalings=tuple(dict.fromkeys((*same.scalings, *run.scalings))))
    return list(found.values())


def _all(study: Study) -> Iterator[Run]:
    for repetition in range(study.repetitions):
        turn = repetition % len(study.methods)
        methods = study.methods[turn:] + study.methods[:turn]
        seed = study.seeds[repetition % len(study.seeds)]
        for scaling in study.scaling:
            for ranks in study.ranks:
                for per_rank in study.subdomains_per_rank:
                    for network in study.networks:
                        for method in methods:
                            wanted = method.networks is None or network.name in method.networks
                            if wanted and scaling in method.scaling:
                                yield _run(study, scaling, ranks, per_rank, network, method, seed, repetition)


def _run(
    study: Study, scaling: Scaling, ranks: int, per_rank: int, network: Network, method: Method, seed: int, repetition: int
) -> Run:  # fmt: skip
    strong = scaling == "strong"
    subdomains = per_rank * (max(study.ranks) if strong else ranks)
    if method.program or method.kind in ALL_REDUCE:  # the number changes nothing but what a rank does one after the other
        subdomains = 0
    limit = study.samples if strong else study.samples_per_rank * ranks
    decided: dict[str, object] = {
        "solver.subdomains": subdomains, "data.limit": limit, "run.seed": seed, "run.threads": study.threads, "run.monitor": "none",
        "stop.target_accuracy": study.target_accuracy, "run.name": method.slug, "comm.emulate_latency": network.latency,
        "comm.emulate_bandwidth": network.bandwidth, "comm.emulate_ranks": network.ranks,
    }  # fmt: skip
    if not strong:
        decided["data.batch"] = method.batch_per_rank * ranks
    lowest = {"checkpoint.every": ("off", "the study: a run that is cut off is made again, for its time would mean nothing")}
    layers = lowest, study.common, method.layer, {name: (value, "the study") for name, value in decided.items()}
    try:
        config = settings.resolve(*layers).config
    except settings.SettingsError as error:
        raise StudyError(f"{study.path}: method {method.name!r}: {error}") from None
    size = f"P{ranks}-N{subdomains or ranks}-D{limit or 'all'}-B{config.data.batch or 'full'}"
    name = "-".join(part for part in (method.slug, network.name, size, f"seed{seed}", f"rep{repetition}") if part)
    config = replace(config, run=replace(config.run, dir=str(study.home / "runs" / name)))
    return Run(name, method, network, (scaling,), ranks, study.nodes(ranks), per_rank, seed, repetition, config)
