"""One command for a machine with a GPU: does the package compute the same there, does it wait or leak, and what does it cost?

    pip install . && python benchmarks/gpu_check.py [--out gpu.json]    # at most 8 minutes; ends with status 1 if a check or a bar fails
    python benchmarks/gpu_check.py --device cpu                         # a trial of the script: what needs a GPU is left out

Kernels: those that pip compiled for a GPU serve on this one. Same: 20 outer iterations in float64 on the CPU and on the device take and
refuse the same steps, and after 5 theta is the same but for rounding, which grows. Waits: how often an outer iteration of the sweep and
of L-SR1 stops for the device. Leaks: device memory at its peak after 10 and after 25 iterations. Graph: evaluations and sweeps replayed
from CUDA graphs against step by step. Formats: TF32, bfloat16 and torch.compile. Cost: an outer iteration against its gradient
evaluations replayed from one CUDA graph, n = 535,818 (bar 1.25); L-SR1 against copies at n = 25 M (bar 75 %); ranks that share the
device (bar 0.9 of one rank's rate). Each check is a process.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from launched import launch
from origin import origin
from quasi_newton import Iteration, clock, interval

from apts_mpi import Result, preset, train
from apts_mpi.native import extension, kernels
from apts_mpi.problem.models import build_model
from apts_mpi.storage.convert import convert

PRESETS = ("default", "lsr1")
EARLY, ITERATIONS, LONG, REPEATS, WARM_UP = 5, 20, 25, 15, 3
BAR_STEP, BAR_COPY, BAR_SHARED, BAR_THETA = 1.25, 0.75, 0.9, 1e-9
BYTES, CHUNK, BATCH, CLASSES = 4, 250, 10_000, 10
WRONG = 0.2  # of the labels: a loss that falls to nothing would leave rounding alone to decide
SHAPE, WIDTHS = (1, 28, 28), (512, 256)  # the paper's network for MNIST, n = 535,818
Facts = dict[str, Any]


def data(samples: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy prototypes of ten classes, some of them called by another's name: the same everywhere."""
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, samples)
    inputs = random.standard_normal((CLASSES, *SHAPE))[labels] + 4 * random.standard_normal((samples, *SHAPE))
    called = np.where(random.random(samples) < WRONG, random.integers(0, CLASSES, samples), labels)
    return torch.from_numpy(inputs).to(dtype), torch.from_numpy(called)


def run(
    name: str, device: str, iterations: int, dtype: str = "float32", samples: int = BATCH, graph: bool = True, batch: int = 0, **model: Any
) -> Result:
    """Train the paper's network on one rank."""
    config = preset(
        name, model={"name": "paper-mnist", "widths": WIDTHS, "dtype": dtype, **model}, stop={"epochs": 0, "iterations": iterations},
        run={"device": device, "monitor": "none", "threads": 1, "graph": graph}, solver={"subdomains": 2},
        data={"batch": batch},
    )  # fmt: skip
    model = build_model(config.model, SHAPE, CLASSES, 0).to(getattr(torch, dtype))
    return train(model, *data(samples, getattr(torch, dtype)), config=config)


def distance(one: Result, other: Result) -> float:
    """Between what two runs ended with, relative."""
    first, second = one.theta.cpu(), other.theta.cpu()
    return float(torch.linalg.vector_norm(first - second) / torch.linalg.vector_norm(first))


def built(device: str) -> Facts:
    """Which kernels serve: on an NVIDIA GPU the compiled ones, on another the torch twins."""
    serve = kernels.compiled(torch.zeros(1, device=device)) or bool(torch.version.hip)
    return {"kernels": extension.state(), "refused": kernels.refused(torch.device(device)), "met": serve}


def same(device: str) -> Facts:
    """The steps that were taken and refused, on the CPU and on the device, in float64."""
    found: Facts = {}
    for name in PRESETS:
        ours, theirs = (run(name, where, ITERATIONS, "float64", 2000) for where in ("cpu", device))
        took = [[(step.accepted, step.global_accepted) for step in one.steps] for one in (ours, theirs)]
        early = [run(name, where, EARLY, "float64", 2000) for where in ("cpu", device)]
        apart = distance(*early)
        found[name] = {"same_decisions": took[0] == took[1], "steps": len(took[0]), "refused": sum(not one for one, _ in took[0]),
                       "loss": ours.steps[-1].loss, f"theta_apart_{EARLY}": apart, f"theta_apart_{ITERATIONS}": distance(ours, theirs),
                       "met": took[0] == took[1] and len(took[0]) == ITERATIONS and apart <= BAR_THETA}  # fmt: skip
    return found


def waits(device: str) -> Facts:
    """How often an outer iteration stops for the device, and where: warnings of torch in a long run less those in a short one."""
    found: Facts = {}
    for name in PRESETS:
        places, steps, drains, drain = [], [], list[int](), mock.Mock(side_effect=torch.cuda.synchronize)
        for iterations in (10, LONG):
            torch.cuda.set_sync_debug_mode("warn")
            try:
                with warnings.catch_warnings(record=True) as told, mock.patch.object(torch.cuda, "synchronize", drain):
                    drain.reset_mock()
                    warnings.simplefilter("always")
                    result = run(name, device, iterations)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            places.append(Counter(f"{Path(one.filename).name}:{one.lineno}" for one in told if "synchroniz" in str(one.message)))
            steps.append(result.steps)
            drains.append(drain.call_count)
        outer = len(steps[1]) - len(steps[0])
        more = {place: (count - places[0][place]) / outer for place, count in places[1].items()
                if count > places[0][place] and not place.startswith("recording.py")}  # fmt: skip  # which checks what it records, once
        # Values, gradient norm, lengths of the paths, slope and length of their sum, the metric's pair; for L-SR1 one a local iteration,
        # two to begin in each subdomain, seven for the outer iteration with its global step.
        local = statistics.mean(step.local_iters for step in steps[1][10:])
        allowed = 5.0 if name == "default" else 11.0 + local
        each = sum(more.values())
        found[name] = {"an_outer_iteration": each, "allowed": allowed, "local_iterations": local, "where": more,
                       "of_the_timers": (drains[1] - drains[0]) / outer, "met": each <= allowed}  # fmt: skip
    return found


def leaks(device: str) -> Facts:
    """Device memory at its peak, in bytes: flat over the iterations, and what L-SR1 may take."""
    found: Facts = {}
    for name in PRESETS:
        peaks, left = [], []
        for iterations in (10, LONG):
            gc.collect()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            n = run(name, device, iterations).theta.numel()
            peaks.append(torch.cuda.max_memory_allocated() - before)
            gc.collect()
            left.append(torch.cuda.memory_allocated() - before)
        found[name] = {"peak_10": peaks[0], f"peak_{LONG}": peaks[1], "left_10": left[0], f"left_{LONG}": left[1], "a_vector": BYTES * n,
                       "samples": BATCH * BYTES * math.prod(SHAPE), "met": peaks[1] <= 1.01 * peaks[0] and left[1] <= left[0]}  # fmt: skip
    return found


class Replayed:
    """The gradient of a chunk as one CUDA graph: what the arithmetic costs without Python."""

    def __init__(self, device: torch.device) -> None:
        config = preset("default", model={"name": "paper-mnist", "widths": WIDTHS})
        self.module = build_model(config.model, SHAPE, CLASSES, 0).to(device)
        self.samples = [tensor.to(device) for tensor in data(CHUNK, torch.float32)]  # where the graph finds them
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._gradient(*self.samples)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._gradient(*self.samples)

    def _gradient(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self.module.zero_grad(set_to_none=False)
        torch.nn.functional.cross_entropy(self.module(inputs), labels, reduction="sum").backward()

    def run(self, samples: int) -> None:
        for _ in range(-(-samples // CHUNK)):
            self.graph.replay()


def step(device: str) -> Facts:
    """An outer iteration of the default against as many gradient evaluations replayed; the difference of a long and a short run."""
    replayed, ratios, ours_ms, bare_ms = Replayed(torch.device(device)), list[float](), list[float](), list[float]()
    for repeat in range(REPEATS):
        short, long = run("default", device, 15), run("default", device, LONG)
        taken = 1e3 * (long.seconds - short.seconds) / (len(long.steps) - len(short.steps))
        samples = long.steps[-1].gradient_samples
        bare = statistics.median(clock(lambda count=samples: replayed.run(count), torch.device(device)) for _ in range(5))  # type: ignore[misc]
        if repeat:
            ours_ms, bare_ms, ratios = [*ours_ms, taken], [*bare_ms, bare], [*ratios, taken / bare]
    ratio = statistics.median(ratios)
    return {"ours_ms": statistics.median(ours_ms), "graph_ms": statistics.median(bare_ms), "ratio": ratio, "interval": interval(ratios),
            "bar": BAR_STEP, "met": ratio <= BAR_STEP}  # fmt: skip


def graph(device: str) -> Facts:
    """Outer iterations replayed from CUDA graphs against step by step: the time of the default, and theta of both presets in float64."""
    ratios = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(REPEATS // 3):
            taken = {}
            for recorded in (True, False):
                short, long = (run("default", device, iterations, graph=recorded) for iterations in (15, LONG))
                taken[recorded] = (long.seconds - short.seconds) / (len(long.steps) - len(short.steps))
            ratios.append(taken[True] / taken[False])
        # In minibatches whose sizes differ, too: 4,999 samples of two subdomains by 1,000.
        cases = [(name, batch, samples) for name in PRESETS for batch, samples in ((0, 2000), (1000, 4999))]
        apart = {}
        for name, batch, samples in cases:  # long enough for sweeps of several ranks of the metric to be replayed
            ended = [run(name, device, ITERATIONS, "float64", samples, recorded, batch) for recorded in (True, False)]
            apart[f"{name}, {batch or samples}"] = distance(*ended)
    warned = sorted({str(one.message) for one in told if "CUDA graph" in str(one.message)})
    return {"time_to_step_by_step": statistics.median(ratios), "interval": interval(ratios), "theta_apart": apart, "warned": warned,
            "met": not warned and statistics.median(ratios) < 1 and max(apart.values()) <= BAR_THETA}  # fmt: skip


def formats(device: str) -> Facts:
    """Time, and the training loss after ten iterations, in other number formats and compiled, against float32 as it is."""
    found: Facts = {}
    plain = run("default", device, LONG)
    for name, model in {"tf32": {"precision": "tf32"}, "bf16": {"precision": "bf16"}, "compiled": {"compile": True}}.items():
        other = run("default", device, LONG, **model)
        found[name] = {"time_ratio": other.seconds / plain.seconds, "loss": other.steps[9].loss, "plain_loss": plain.steps[9].loss,
                       "met": other.steps[9].loss <= 1.1 * plain.steps[9].loss}  # fmt: skip
    return found


def bandwidth(device: str, n: int = 25_000_000, memory: int = 10) -> Facts:
    """L-SR1 without its gradient, in words of the 4 m + 8 that it must move, against a copy."""
    where = torch.device(device)
    source = torch.randn(2 * memory, n, device=where)
    target, iteration = torch.empty_like(source), Iteration(n, memory, where)
    shares, warm_up = [], memory + 7
    for repeat in range(warm_up + REPEATS):
        copy = clock(lambda: target.copy_(source), where) / (4 * memory)
        iteration.prepare()
        taken = clock(iteration.run, where)
        iteration.finish()
        shares += [copy * (4 * memory + 8) / taken] if repeat >= warm_up else []
    share = statistics.median(shares)
    return {"n": n, "memory": memory, "share_of_copy": share, "interval": interval(shares), "bar": BAR_COPY, "met": share >= BAR_COPY}


def shared(_device: str) -> Facts:
    """Samples a second of 2 and 4 ranks on one GPU against one rank: the same training, more hands."""
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        inputs, labels = data(4 * BATCH, torch.float32)
        pixels = (inputs * 12 + 128).clamp(0, 255).to(torch.uint8)
        np.savez(f"{folder}/raw.npz", x_train=pixels, y_train=labels, x_test=pixels[:100], y_test=labels[:100])
        convert("npz", Path(folder) / "raw.npz", Path(folder) / "data")
        for ranks in (1, 2, 4):
            words = f"train --data.path {folder}/data --solver.subdomains 4 --stop.epochs 0 --stop.iterations 60"
            launch(ranks, ["-m", "apts_mpi", *words.split(), "--run.share_gpu", "true", "--run.dir", f"{folder}/{ranks}"])
            seconds[ranks] = float(json.loads((Path(folder) / f"{ranks}" / "completion.json").read_text())["seconds"])
    rates = {f"{ranks}": seconds[1] / seconds[ranks] for ranks in (2, 4)}
    return {"seconds": {f"{ranks}": value for ranks, value in seconds.items()}, "rate_to_one_rank": rates, "bar": BAR_SHARED,
            "met": min(rates.values()) >= BAR_SHARED}  # fmt: skip


CHECKS: dict[str, Callable[[str], Facts]] = {
    "kernels": built, "same": same, "waits": waits, "leaks": leaks, "graph": graph, "formats": formats, "step": step,
    "bandwidth": bandwidth, "shared": shared,
}  # fmt: skip
WITHOUT_GPU = ("same",)


def checked(name: str, device: str, within: float) -> Facts:
    """One check in a process of its own, since a kernel that fails leaves a device that refuses all that comes after."""
    command = [sys.executable, __file__, "--device", device, "--alone", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            out, complaints = process.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the ranks that it may have started
            return {"error": f"not over after {within:.0f} s (--within, --total)", "met": False}
        except BaseException:  # Ctrl-C, SIGTERM: it has a session of its own
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode or not out:
        return {"error": f"ended with {process.returncode}: {complaints.strip()[-500:]}", "met": False}
    found: Facts = json.loads(out.splitlines()[-1])
    return found


def alone(name: str, device: str) -> int:
    """The check itself; its figures are the last line of the output."""
    try:
        found = CHECKS[name](device)
    except Exception as error:  # whatever it is, the other checks are worth having
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}", "met": False}
    print(json.dumps(found))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="where to write all figures as JSON, with their provenance, after every check")
    parser.add_argument("--only", nargs="+", default=list(CHECKS), choices=list(CHECKS), metavar="CHECK", help=", ".join(CHECKS))
    parser.add_argument("--within", type=float, default=240.0, help="seconds that a check may take [%(default)g]")
    parser.add_argument("--total", type=float, default=480.0, help="seconds that all of them may take [%(default)g]")
    parser.add_argument("--alone", choices=list(CHECKS), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    gpu = asked.device.startswith("cuda")
    if gpu and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; a trial of the script: --device cpu")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if asked.alone:
        return alone(asked.alone, asked.device)
    known: Facts = {
        "started_utc": datetime.now(UTC).isoformat(timespec="seconds"), "device": torch.cuda.get_device_name() if gpu else asked.device,
        "cuda": torch.version.cuda, "hip": torch.version.hip, "load": os.getloadavg(), **origin(), "seconds": {}, "results": {},
    }  # fmt: skip
    fallen, end = list[str](), time.monotonic() + asked.total
    wanted = [name for name in asked.only if gpu or name in WITHOUT_GPU]
    if not wanted:
        parser.error(f"--only {' '.join(asked.only)}: needs a GPU")
    for name in wanted:
        begun = time.perf_counter()
        found = known["results"][name] = checked(name, asked.device, min(asked.within, max(end - time.monotonic(), 0.0)))
        known["seconds"][name] = round(time.perf_counter() - begun, 1)
        parts = {name: found} if "met" in found else {f"{name}, {part}": facts for part, facts in found.items()}
        for label, facts in parts.items():
            fallen += [] if facts["met"] else [label]
            told = json.dumps({key: value for key, value in facts.items() if key != "met"})
            print(f"{'holds ' if facts['met'] else 'FAILED'}  {label}: {told}", flush=True)
        if asked.out:
            asked.out.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return int(bool(fallen))


if __name__ == "__main__":
    sys.exit(main())
