"""What the settings of a study do not say by themselves: the size of its model and data set, and whether its runs can work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from apts_mpi.study.definition import Study, StudyError
from apts_mpi.study.plan import Run
from apts_mpi.study.shares import batches

CALIBRATION = "calibration"  # folder of bench documents in a study's
REPORT = "report"  # folder of the report


@dataclass(frozen=True)
class Facts:
    """What the settings alone do not say."""

    n_params: int
    samples: int  # in the training set
    sample_shape: tuple[int, ...]
    outputs: int  # classes, or numbers to predict


def facts(study: Study, runs: Sequence[Run]) -> Facts:
    """Size of model and data set; StudyError if the data set cannot be read or is too small for a run."""
    from apts_mpi.problem.models import build_model
    from apts_mpi.storage.files import DataError
    from apts_mpi.storage.manifest import load_manifest

    first = runs[0].config
    try:
        manifest = load_manifest(Path(first.data.path))
    except (OSError, DataError) as error:
        raise StudyError(f"{study.path}: data.path: {error}") from None
    available, layout = manifest.samples("train"), manifest.layout
    for run in runs:
        if run.config.data.path != first.data.path or run.config.model != first.model:
            told = f"method {run.method.name!r} has another data set or model than the first"
            raise StudyError(f"{study.path}: {told}; make it a study of its own")
        if run.config.data.limit > available:
            raise StudyError(
                f"{study.path}: {run.config.data.limit:,} samples are wanted on {run.ranks} ranks, {first.data.path} holds {available:,}; "
                "lower samples, samples_per_rank or ranks"
            )
        check_run(study, run, run.config.data.limit or available)
    outputs = layout.classes or math.prod(layout.target_shape)
    module = build_model(first.model, layout.sample_shape, outputs, first.run.seed)
    return Facts(sum(p.numel() for p in module.parameters()), available, layout.sample_shape, outputs)


def check_run(study: Study, run: Run, samples: int) -> None:
    """StudyError if the method cannot work with so many samples, minibatches or subdomains."""
    import torch

    from apts_mpi.partition import check_counts
    from apts_mpi.solver.build import check_method

    config = run.config
    try:
        check_counts(samples, config.solver.subdomains or run.ranks, run.ranks)
        check_method(config, batches(config, samples), torch.device("cpu"))
    except ValueError as error:
        raise StudyError(f"{study.path}: method {run.method.name!r} on {run.ranks} ranks: {error}") from None
