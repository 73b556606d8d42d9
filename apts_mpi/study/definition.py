"""What a scaling study is: a TOML file, checked before anything starts.

    name = "mnist"            ranks = [1, 2]            scaling = ["strong", "weak"]       [settings] of train
    [[method]]  name = "SGD"  method = "sgd"  data.batch = 128  batch_per_rank = 64         as often as methods are compared

Strong scaling keeps the samples |D|, the minibatch and, where it matters, the number of subdomains N, so all rank counts follow one
trajectory. Weak scaling keeps samples, minibatch and subdomains per rank: the algorithm changes with N. Repetitions take the seeds in turn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from apts_mpi import settings
from apts_mpi.hints import did_you_mean
from apts_mpi.regular import read_toml

Scaling = Literal["strong", "weak"]
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)
REPETITIONS_MIN = 5
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,=+()/-]*")
# What the study itself decides, so that no settings may.
DECIDED = (
    "solver.subdomains", "data.limit", "run.dir", "run.name", "run.seed", "run.threads", "run.monitor", "stop.target_accuracy",
    "comm.emulate_latency", "comm.emulate_bandwidth", "comm.emulate_ranks",
)  # fmt: skip


class StudyError(ValueError):
    """The study file cannot be followed; the message names the file and the key."""


@dataclass(frozen=True)
class Network:
    """A network that the study emulates; the default is the real one."""

    name: str = ""
    latency: float = 0.0  # s
    bandwidth: float = 0.0  # bytes/s; 0: bytes cost nothing
    ranks: int = 0  # that it is said to join; 0: those there are


@dataclass(frozen=True)
class Method:
    """One line of the comparison: settings of train under a name."""

    name: str
    layer: settings.Layer = field(compare=False)
    batch_per_rank: int = 0  # minibatch per rank in weak scaling; 0: full batch
    program: str = ""  # a script in place of ``-m apts_mpi train``, seen from the study's folder
    scaling: tuple[Scaling, ...] = SCALINGS  # that it takes part in
    networks: tuple[str, ...] | None = None  # that it is run on; None: all
    tuning: str = ""  # tune.json of the search for its learning rate, seen from the study's folder

    @property
    def kind(self) -> str:  # of train
        return str(self.layer.get("method", ("apts", ""))[0])

    @property
    def slug(self) -> str:  # the name in file names
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True)
class Study:
    """A study that was read and checked."""

    path: Path
    name: str
    title: str = ""
    scaling: tuple[Scaling, ...] = SCALINGS
    ranks: tuple[int, ...] = (1, 2)
    ranks_per_node: int = 0  # 0: all on one node
    threads: int = 1  # per rank
    subdomains_per_rank: tuple[int, ...] = (1,)
    seeds: tuple[int, ...] = (0,)
    repetitions: int = REPETITIONS_MIN
    samples: int = 0  # strong: |D|; 0: the whole training set
    samples_per_rank: int = 0  # weak
    target_accuracy: float = math.inf  # per cent of the test set; a run ends when it is reached
    oversubscribe: bool = False  # allow more threads than cores; such points are marked
    time_limit: float = 3600.0  # s; a run that takes longer is ended and counts as failed
    folder: str = ""  # where everything goes; empty: studies/NAME
    methods: tuple[Method, ...] = ()
    networks: tuple[Network, ...] = (Network(),)
    common: settings.Layer = field(default_factory=dict, compare=False)

    @property
    def home(self) -> Path:
        """The folder of runs, calibration and report, seen from the working directory."""
        return Path(self.folder) if self.folder else Path("studies") / self.name

    def nodes(self, ranks: int) -> int:
        """Nodes of a run."""
        return -(-ranks // self.ranks_per_node) if self.ranks_per_node else 1


_LISTS = {"scaling": str, "ranks": int, "subdomains_per_rank": int, "seeds": int}
_KINDS: dict[str, type] = {
    "name": str, "title": str, "ranks_per_node": int, "threads": int, "repetitions": int, "samples": int, "samples_per_rank": int,
    "target_accuracy": float, "oversubscribe": bool, "time_limit": float, "folder": str,
}  # fmt: skip


def read_study(path: str | Path) -> Study:
    """The study in a TOML file; StudyError names what is wrong with it."""
    file = Path(path)
    try:
        tree = read_toml(file)
    except OSError as error:
        raise StudyError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise StudyError(f"{file}: is not TOML: {error}") from None
    try:
        return _study(file, tree)
    except ValueError as error:  # SettingsError is one
        raise StudyError(f"{file}: {error}" if not str(error).startswith(str(file)) else str(error)) from None


def _study(file: Path, tree: Mapping[str, Any]) -> Study:
    known = {*_KINDS, *_LISTS, "settings", "method", "network"}
    _no_others(tree, known, "the study")
    values: dict[str, Any] = {key: _one(key, tree[key], kind) for key, kind in _KINDS.items() if key in tree}
    values |= {key: _several(key, tree[key], kind) for key, kind in _LISTS.items() if key in tree}
    if not isinstance(tree.get("settings", {}), dict):
        raise ValueError("settings must be a table: [settings]")
    common = _layer(tree.get("settings", {}), "settings")
    methods = tuple(_method(entry, i) for i, entry in enumerate(_tables(tree, "method")))
    networks = tuple(_network(entry, i) for i, entry in enumerate(_tables(tree, "network"))) or (Network(),)
    if "name" not in values:
        raise ValueError("name is missing; the study's folder is called by it")
    found = Study(path=file, methods=methods, networks=networks, common=common, **values)
    _check(found)
    return found


def _check(study: Study) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", study.name):
        raise ValueError(f"name must be a plain file name of letters, digits and . _ -, got {study.name!r}")
    if not study.methods:
        raise ValueError("there is no [[method]]: name at least one, with its settings of train")
    for key in ("scaling", "ranks", "subdomains_per_rank", "seeds"):
        found = getattr(study, key)
        if not found or len(set(found)) != len(found):
            raise ValueError(f"{key} must be a list of different values, got {list(found)}")
    if odd := [name for name in study.scaling if name not in SCALINGS]:
        raise ValueError(f"scaling must hold strong, weak or both, got {odd[0]!r}")
    for key, low in (("threads", 1), ("ranks_per_node", 0), ("samples", 0), ("samples_per_rank", 0)):
        if getattr(study, key) < low:
            raise ValueError(f"{key} must be at least {low}, got {getattr(study, key)}")
    if min(study.ranks) < 1 or min(study.subdomains_per_rank) < 1:
        raise ValueError("ranks and subdomains_per_rank must be positive")
    if study.repetitions < REPETITIONS_MIN:
        raise ValueError(f"repetitions must be at least {REPETITIONS_MIN}, got {study.repetitions}: fewer say nothing about the spread")
    if not study.time_limit > 0 or not study.target_accuracy > 0:
        raise ValueError("time_limit and target_accuracy must be positive")
    if "weak" in study.scaling and not study.samples_per_rank:
        raise ValueError("weak scaling needs samples_per_rank")
    _check_names(study)
    for method in study.methods:
        minibatch = {**study.common, **method.layer}.get("data.batch", (0, ""))[0]
        if minibatch and not method.batch_per_rank and "weak" in study.scaling and "weak" in method.scaling:
            raise ValueError(f"method {method.name!r} has data.batch for strong scaling; weak scaling needs its batch_per_rank")


def _check_names(study: Study) -> None:
    for what, names in (("method", [m.slug for m in study.methods]), ("network", [n.name for n in study.networks])):
        if len(set(names)) != len(names):
            raise ValueError(f"two entries [[{what}]] have the same name")
    for method in study.methods:
        for name in method.networks or ():
            if name not in [network.name for network in study.networks]:
                raise ValueError(f"method {method.name!r} names the network {name!r}, which no [[network]] describes")


def _method(entry: Mapping[str, Any], index: int) -> Method:
    where = f"method {entry.get('name', index + 1)!r}"
    own = {each.name for each in fields(Method)} - {"layer"}
    rest = {key: value for key, value in entry.items() if key not in own}
    values: dict[str, Any] = {}
    for key, kind in (("name", str), ("batch_per_rank", int), ("program", str), ("tuning", str)):
        if key in entry:
            values[key] = _one(f"{where}: {key}", entry[key], kind)
    for key in ("scaling", "networks"):
        if key in entry:
            values[key] = _several(f"{where}: {key}", entry[key], str)
    if not _NAME.fullmatch(values.get("name", "")):
        raise ValueError(f"{where}: name must begin with a letter or digit and be short and plain, got {values.get('name')!r}")
    if odd := [name for name in values.get("scaling", ()) if name not in SCALINGS]:
        raise ValueError(f"{where}: scaling must hold strong, weak or both, got {odd[0]!r}")
    if values.get("batch_per_rank", 0) < 0:
        raise ValueError(f"{where}: batch_per_rank must not be negative")
    return Method(layer=_layer(rest, where), **values)


def _network(entry: Mapping[str, Any], index: int) -> Network:
    where = f"network {entry.get('name', index + 1)!r}"
    _no_others(entry, {each.name for each in fields(Network)}, where)
    kinds: dict[str, type] = {"name": str, "latency": float, "bandwidth": float, "ranks": int}
    found = Network(**{key: _one(f"{where}: {key}", value, kinds[key]) for key, value in entry.items()})
    if min(found.latency, found.bandwidth, found.ranks) < 0:
        raise ValueError(f"{where}: latency, bandwidth and ranks must not be negative")
    if bool(found.name) != bool(found.latency or found.bandwidth):
        raise ValueError(f"{where}: an emulated network has a name and latency or bandwidth; the real one has none of them")
    if found.name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", found.name):
        raise ValueError(f"{where}: name must be a plain file name")
    return found


def _layer(tree: Mapping[str, Any], where: str) -> settings.Layer:
    """Settings of train as a layer; ValueError for those that the study decides."""
    layer = settings.from_tree(tree, where)
    for name in layer:
        if name in DECIDED:
            raise ValueError(f"{where}: {name} is decided by the study itself; take it out")
    return layer


def _tables(tree: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    found = tree.get(name, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError(f"{name} must be written [[{name}]], once for each")
    return found


def _no_others(tree: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in tree:
        if key not in known:
            raise ValueError(f"{where} has no key {key}{did_you_mean(key, known)}")


def _one(key: str, value: Any, kind: type) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (type(value) is float and math.isnan(value)):
        raise ValueError(f"{key} must be {'true or false' if kind is bool else f'a {kind.__name__}'}, got {value!r}")
    return value


def _several(key: str, value: Any, kind: type) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{key} must be a list, got {value!r}")
    return tuple(_one(key, entry, kind) for entry in value)
