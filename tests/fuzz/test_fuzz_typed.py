"""What people type, at random: settings, studies and command lines end in values or in words, never in a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import random
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from fuzz_tree import STUDY, build
from hypothesis import HealthCheck, given
from hypothesis import settings as chosen
from hypothesis import strategies as st

from apts_mpi import __main__, cli, settings
from apts_mpi.regular import TOML_BYTES
from apts_mpi.settings import SettingsError
from apts_mpi.study.definition import StudyError, read_study
from apts_mpi.study.plan import plan

pytestmark = pytest.mark.timeout(1800)
NIGHTLY = os.environ.get("APTS_NIGHTLY") == "1"
SOME = chosen(
    max_examples=1000 if NIGHTLY else 150, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
KEYS = sorted({*settings.keys(), *settings.sections(), *(name.rpartition(".")[2] for name in settings.keys())})
STUDY_KEYS = ["name", "ranks", "scaling", "seeds", "repetitions", "method", "network", "settings", "threads", "samples_per_rank"]
ODD = ["nan", "-inf", "1e999", "0x10", "../../x", "\0", "\ud800", "a" * 5000, "\u0663", "1_0", "\uff11"]

texts = st.one_of(st.text(max_size=20), st.sampled_from(ODD))
numbers = st.one_of(st.integers(), st.integers(-3, 3), st.floats(), st.sampled_from([2**63, -(2**64), 10**400, 1e-320, math.inf]))
values = st.recursive(
    st.one_of(texts, numbers, st.booleans(), st.none(), st.just(date(2026, 1, 1))),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=3)), max_leaves=8,
)  # fmt: skip
keys = st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS), texts)
trees = st.dictionaries(keys, st.one_of(values, st.dictionaries(keys, values, max_size=4)), max_size=6)


@SOME
@given(trees)
def test_any_tree_of_settings(tree: dict[str, Any]) -> None:
    try:
        found = settings.resolve(settings.from_tree(tree, "of whoever typed"))
    except SettingsError as error:
        assert "of whoever typed" in str(error)
        return
    assert settings.from_json(settings.to_json(found.config)) == found.config
    assert settings.to_toml(found.config)


@SOME
@given(st.lists(st.tuples(keys, st.one_of(st.none(), texts, numbers.map(str))), max_size=5), st.dictionaries(keys, texts, max_size=4))
def test_any_options_and_variables(options: list[tuple[str, str | None]], variables: dict[str, str]) -> None:
    environ = {settings.as_variable(name): text for name, text in variables.items()}
    try:
        settings.resolve(settings.from_environment(environ), settings.from_options(options))
    except SettingsError as error:
        sources = [*(f"environment {name}" for name in environ), *(f"command line --{name}" for name, _ in options)]
        assert any(source in str(error) for source in sources), error


def toml(value: Any) -> str:
    """A value as TOML, or as something like it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {toml(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) > 10**100:
        return "1" * 5000
    return str(value) if isinstance(value, int | float | date) else json.dumps(value)


def of_file(path: Path, text: str) -> None:
    """Read a settings file and a study file of this content."""
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(SettingsError):
        settings.resolve(settings.from_file(path))
    with contextlib.suppress(StudyError):
        plan(read_study(path))


@SOME
@given(tree=trees, study=st.dictionaries(st.sampled_from(STUDY_KEYS), values, max_size=3))
def test_any_text_in_files(tmp_path: Path, tree: dict[str, Any], study: dict[str, Any]) -> None:
    lines = [f"{json.dumps(name)} = {toml(value)}" for name, value in tree.items()]
    of_file(tmp_path / "x.toml", "\n".join(lines))
    kept = [line for line in STUDY.splitlines() if line.partition(" ")[0] not in study]
    of_file(tmp_path / "x.toml", "\n".join([*(f"{name} = {toml(value)}" for name, value in study.items()), *kept]))


@pytest.mark.fault(36)
@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 30_000, "a = " + "[" * 30_000 + "]" * 30_000, ".".join("a" * 32_000) + " = 1", "[" + ".".join("a" * 32_000) + "]",
     "\n".join(f"[[a.b{k}]]" for k in range(5000)), "x" * (TOML_BYTES + 1), "a = " + "9" * 60_000, "\0" * 1000, "a = {" * 10_000],
    ids=range(9),
)  # fmt: skip
def test_texts_that_take_long_or_much_are_refused_soon(tmp_path: Path, text: str) -> None:
    began = time.monotonic()
    of_file(tmp_path / "x.toml", text)
    assert time.monotonic() - began < 20
    with pytest.raises(SettingsError, match=r"file .*x\.toml: "):
        settings.from_file(tmp_path / "x.toml")


def test_a_device_that_never_ends_is_no_settings_file() -> None:
    with pytest.raises(SettingsError, match="/dev/zero: cannot be read: more than"):
        settings.from_file("/dev/zero")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("typed")
    run = build(folder)
    (folder / "empty.toml").write_text("")
    (folder / "loop").symlink_to("loop")
    yield folder
    run.close()


COMMANDS = [
    "train --print_config", "show", "plot", "job list", "job render --system lumi-g --nodes 2", "job render --system slurm --nodes 1 --",
    "data info", "data verify", "data convert npz", "data convert text", "data convert digits --dry-run", "data fetch", "tune --lrs 0.1",
    "bench reduce", "bench step", "bench compute", "bench io", "scale plan", "scale status", "scale run", "scale submit --dry-run",
    "scale collect", "scale report", "scale whatif", "", "resume", "train", "help",
]  # fmt: skip
PARTS = [
    "--help", "-h", "--", "-", "--version", "--out", "--out=/nonexistent/x.png", "--run.seed", "--run.seed=1", "--preset", "paper",
    "--samples", "--nodes", "--time", "1:00:00", "--lrs", "0.1,,2", "--repeats", "--shape", "0", "-1", "nan", "9" * 50, "1e999", "",
    " ", "\n", "ü" * 40, "\ud800", "a" * 5000, "/dev/null", "/", ".", "..", "run", "set", "study/study.toml", "run/config.toml",
    "study/points.json", "empty.toml", "loop", "set/manifest.json", "run/records.h5", "missing", "--run.dir=run", "--stop.epochs=-3",
    "--data.path=", "--x.y", "--=", "--.=1", "--data.batch=1", "--method=sgd", "--resume", "--run", "%s", "$(id)", "`id`", "'", '"',
    "*", "~", "--system", "--account=a b", "--restarts=-1",
]  # fmt: skip
# These would start programs, use the network, or train; whether they understand is looked at all the same.
ONLY_PARSED = ("data fetch", "scale run", "scale submit", "data convert")


@pytest.mark.fault(67)
def test_any_command_line(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: the exit code is one of those written down, and nothing else is raised."""
    monkeypatch.chdir(tree)
    monkeypatch.setattr("apts_mpi.study.plots.draw", lambda runs, target: None)  # pictures take long
    monkeypatch.setattr("apts_mpi.study.show.draw", lambda runs, target: None)
    seen = set()
    for number in range(6000 if NIGHTLY else 200):
        rng = random.Random(f"typed {number}")
        words = [*rng.choice(COMMANDS).split(), *rng.choices(PARTS, k=rng.randrange(5))]
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                code = started(words)
            except SystemExit as leaving:
                code = leaving.code  # argparse's own: --help, --version
            except Exception as error:
                raise AssertionError(f"case {number}: {words!r} raised {type(error).__name__}: {error}") from error
        assert code in (None, 0, 2, 4), (number, words, code)
        assert "Traceback" not in out.getvalue()
        assert code in (None, 0) or out.getvalue().strip(), (number, words)
        seen.add(code)
    assert {0, 2} <= seen


def started(words: list[str]) -> int | str | None:
    try:
        command = cli.parse(words)
    except (cli.UsageError, SettingsError) as error:
        command = cli.refuse(error)
        return command.run(None)
    if command.parallel or " ".join(words).startswith(ONLY_PARSED):
        return 0
    return __main__.alone(command)
