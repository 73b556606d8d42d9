"""The house rules, read from the syntax trees: who imports whom, who prints, and what nobody calls."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "apts_mpi"
FILES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")}
ROOMS = ("solver", "problem", "parallel", "storage", "study")
LEVEL = dict.fromkeys(("contracts", "config", "baseline", "bounds", "timing", "partition", "network", "tracing", "arithmetic", "safety"), 0)
LEVEL |= {"regular": 0, "hints": 0, "presets": 0, "lock": 1}
LEVEL |= dict.fromkeys(("native", "settings", "monitor", "rundir", "provenance", "systems", "jobs", "interrupt", "outcome", "origin"), 1)
LEVEL |= {"train_settings": 1, "identity": 1, "recording": 1}
LEVEL |= dict.fromkeys(ROOMS, 2) | dict.fromkeys(("train", "loop", "assembly", "trial", "tune", "bench", "scale"), 3)
LEVEL |= dict.fromkeys(("opening", "closing", "resumption", "checkpoints", "drift", "spread"), 3)
LEVEL |= dict.fromkeys(("cli", "data_cli", "job_cli", "tune_cli", "bench_cli", "scale_cli", "__main__"), 4)
LEVEL |= {"": 4}  # the package root, whose names load late
OWNERS: dict[str, tuple[str, ...]] = {"mpi4py": ("parallel",), "h5py": ("storage",)}
OWNERS["torch"] = ("solver", "problem", "native", "assembly", "train", "trial", "bench", "resumption", "checkpoints", "drift", "spread")
OWNERS["torch"] += ("recording",)
LATE = ("torch",)  # others may import these inside a function; the rest of OWNERS they may not import at all
PRINTING = ("cli.py", "data_cli.py", "job_cli.py", "bench_cli.py", "scale_cli.py", "parallel/launch.py")
PICKLES = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
UNPICKLING = ("storage/restricted.py",)  # CIFAR-10's python format; allows nothing but arrays and containers


def part(module: str) -> str:
    """'apts_mpi.solver.apts' and 'solver/apts.py' -> 'solver'; 'cli.py' -> 'cli'; the root -> ''."""
    names = [name for name in module.removesuffix(".py").replace("/", ".").split(".") if name not in ("apts_mpi", "__init__")]
    return names[0] if names else ""


def imports(node: ast.AST, late: bool = False, typing: bool = False) -> Iterator[tuple[str, bool, bool]]:
    """(module, inside a function, for type checking only) of every import under ``node``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, late, typing) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, "imports are absolute"
            whole = child.module == "apts_mpi"  # from apts_mpi import settings
            yield from ((f"apts_mpi.{alias.name}" if whole else str(child.module), late, typing) for alias in child.names)
        else:
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(child, late or inside, typing or checking)


def broken_imports(name: str, tree: ast.AST) -> Iterator[str]:
    here = part(name)
    level = LEVEL.get(here, 0)
    for module, late, typing in imports(tree):
        top, there = module.split(".")[0], part(module)
        if top == "apts_mpi" and there in LEVEL:
            upward = LEVEL[there] > level or (LEVEL[there] == level and there != here and here in ROOMS)
            if upward:
                yield f"{name} imports {module}"
        elif top in OWNERS and here not in OWNERS[top] and not typing and not (late and top in LATE):
            yield f"{name} imports {top}"
        elif top in PICKLES and name not in UNPICKLING:
            yield f"{name} imports {top}"


def broken_words(name: str, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            if caught in ("everything", "Exception", "BaseException") and name != "__main__.py":
                yield f"{name}:{node.lineno} catches {caught}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "torch.load") or (called == "print" and name not in PRINTING):
                yield f"{name}:{node.lineno} calls {called}"


@pytest.mark.parametrize("name", sorted(FILES))
def test_house_rules(name: str) -> None:
    lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
    broken = [*dict.fromkeys(broken_imports(name, FILES[name])), *broken_words(name, FILES[name])]
    broken += [f"{name} has {lines} lines, 250 are allowed"] if lines > 250 else []
    broken += [] if part(name) in LEVEL else [f"{name} belongs to no layer; give it one in LEVEL"]
    assert not broken, "; ".join(broken)


@pytest.mark.parametrize(
    ("name", "source", "words"),
    [
        ("solver/apts.py", "def f():\n import mpi4py.MPI", ["solver/apts.py imports mpi4py"]),
        ("solver/apts.py", "from apts_mpi.parallel import comm", ["solver/apts.py imports apts_mpi.parallel"]),
        ("solver/apts.py", "from apts_mpi import train", ["solver/apts.py imports apts_mpi.train"]),
        ("config.py", "import apts_mpi.settings", ["config.py imports apts_mpi.settings"]),
        ("cli.py", "import torch", ["cli.py imports torch"]),
        ("cli.py", "def f():\n import torch", []),
        ("cli.py", "if TYPE_CHECKING:\n import h5py", []),
        ("study/show.py", "def f():\n import h5py, pickle", ["study/show.py imports h5py", "study/show.py imports pickle"]),
        ("solver/apts.py", "from apts_mpi.solver import lsr1\nimport torch", []),
        ("timing.py", "try: eval(print(1))\nexcept Exception: torch.load(0)", ["catches Exception", "eval", "print", "torch.load"]),
        ("timing.py", "try: pass\nexcept: model.eval()", ["catches everything"]),
    ],
)
def test_the_rules_see_what_breaks_them(name: str, source: str, words: list[str]) -> None:
    tree = ast.parse(source)
    found = [*broken_imports(name, tree), *broken_words(name, tree)]
    assert len(found) == len(words)
    assert all(any(word in line for line in found) for word in words), found


def test_the_document_names_every_file_and_no_other() -> None:
    table = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Files")[2]
    named = []
    for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        folder = ""
        for name in re.findall(r"`([^`]+)`", row):  # `solver/apts`, `sweep`: the second is in the first one's folder
            folder = name.rpartition("/")[0] or folder
            named.append(f"{folder}/{name.rpartition('/')[2]}".lstrip("/"))
    files = {name.removesuffix(".py") for name in FILES if "/__init__" not in name}
    assert files - {*named} == set(), "not in docs/architecture.md"
    assert {*named} - files - {"native/src"} == set(), "in docs/architecture.md and not there"
    assert sorted(named) == sorted({*named}), "named twice"
