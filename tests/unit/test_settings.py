"""Settings: layers and their order, provenance, refusals, and texts that read back to the same values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apts_mpi import settings, train_settings
from apts_mpi.config import Config, ModelConfig, RunConfig, StopConfig
from apts_mpi.presets import PRESETS, preset
from apts_mpi.settings import SettingsError, from_environment, from_file, from_options, resolve


def write(folder: Path, text: str) -> Path:
    path = folder / "x.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_field_of_every_section_is_a_key_with_a_meaning() -> None:
    fields = {f"{section}.{name}" for section, owner in settings.sections().items() for name in owner.__dataclass_fields__}
    assert set(settings.keys()) == fields | {"preset", "method"}
    assert all(key.meaning and "\n" not in key.meaning for key in settings.keys().values())


def test_without_layers_all_is_default() -> None:
    found = resolve()
    assert found.config == Config()
    assert set(found.sources.values()) == {"default"}


def test_each_layer_beats_the_one_below(tmp_path: Path) -> None:
    path = write(tmp_path, 'preset = "lsr1"\n[local]\niters = 6\nmemory = 6\npasses = 6\n[trust_region]\neta1 = 0.3\n')
    environ = {"APTS_LOCAL__ITERS": "7", "APTS_LOCAL__MEMORY": "7", "HOME": "x"}
    found = resolve(from_file(path), from_environment(environ), from_options([("local.iters", "8")]))
    assert (found.config.local.iters, found.config.local.memory, found.config.local.passes) == (8, 7, 6)
    assert found.config.trust_region.eta1 == 0.3  # an explicit key beats the preset
    assert found.config.trust_region.radius_init == 0.1
    expected = {
        "local.iters": "command line --local.iters",
        "local.memory": "environment APTS_LOCAL__MEMORY",
        "local.passes": f"file {path}",
        "trust_region.eta1": f"file {path}",
        "trust_region.radius_init": "preset lsr1",
        "preset": f"file {path}",
        "run.seed": "default",
    }
    assert {name: found.sources[name] for name in expected} == expected


GLOBAL = {
    "global_step.solver": "lsr1", "global_step.memory": 5, "local.gamma": 1e-6, "trust_region.radius_init": 0.1,
    "trust_region.radius_min": 1e-6, "trust_region.radius_max": 8.0, "trust_region.eta0": 0.0, "trust_region.eta1": 0.1,
    "trust_region.eta2": 0.75,
}  # fmt: skip


def test_a_global_trust_region_alone_has_a_model_and_radii_of_its_own_below_every_preset() -> None:
    found = resolve(from_options([("method", "trust-region")]))
    assert {name: settings.values(found.config)[name] for name in GLOBAL} == GLOBAL
    assert found.sources["global_step.solver"] == "method trust-region" and found.config.average == 0
    assert found.config == preset("default", "trust-region")
    papers = resolve(from_options([("method", "trust-region"), ("preset", "paper"), ("trust_region.eta2", "0.8")]))
    assert papers.config == preset("paper", "trust-region", trust_region={"eta2": 0.8})
    assert papers.config.trust_region == replace(preset("paper").trust_region, eta2=0.8) and papers.config.local.gamma == 1
    assert papers.sources["trust_region.eta1"] == "preset paper"
    with pytest.raises(SettingsError, match="needs global_step.solver lsr1 or first, got none .*global_step.solver from command line"):
        resolve(from_options([("method", "trust-region"), ("global_step.solver", "none")]))


PAPER = {
    "solver": {"subdomains": 0, "combine": "sum", "radius": "shared", "consistent": True, "average": 0},
    "trust_region": {"radius_init": 0.01, "radius_min": 0.001, "radius_max": 4.0, "shrink": 0.5, "grow": 2.0, "eta0": 0.0, "eta1": 0.25,
                     "eta2": 0.75, "reached": 0.8},
    "local": {"solver": "lsr1", "iters": 5, "memory": 5, "gamma": 1.0, "radius_start": 1.0, "carry": False},
    "global_step": {"solver": "lsr1", "memory": 5},
}  # fmt: skip


def test_the_papers_preset_is_algorithm_1_with_the_published_constants_whatever_the_defaults_are() -> None:
    found = settings.values(preset("paper"))
    wanted = {f"{section}.{name}": value for section, keys in PAPER.items() for name, value in keys.items()}
    assert {name: found[name] for name in wanted} == wanted
    rest = {name.partition(".")[2] for name in found if name.startswith("local.")} - set(PAPER["local"])
    assert rest == {"chunk", "chunks_min", "chunks_max", "passes", "momentum"}  # of a sweep alone


def test_the_preset_of_the_highest_layer_wins_and_lies_below_all_explicit_keys(tmp_path: Path) -> None:
    path = write(tmp_path, 'preset = "lsr1"\n[solver]\ncombine = "mean"\n')
    found = resolve(from_file(path), from_environment({"APTS_PRESET": "paper"}))
    assert found.config.preset == "paper"
    assert found.config.trust_region.radius_max == 4.0  # nothing of lsr1 is left
    assert found.config.solver.combine == "mean"  # a lower layer, but explicit
    assert found.config.solver.radius == "shared"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_equal_those_of_the_library(name: str) -> None:
    assert resolve(from_options([("preset", name)])).config == preset(name)


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("model.widths", "5,6", (5, 6)),
        ("model.widths", "[5, 6]", (5, 6)),
        ("model.widths", "5 6", (5, 6)),
        ("model.widths", "", ()),
        ("stop.target_loss", "-inf", -math.inf),
        ("stop.grad_norm", "1e-3", 1e-3),
        ("stop.wall_time", "60", 60.0),
        ("run.share_gpu", "True", True),
        ("run.dir", "with space/ünï=x", "with space/ünï=x"),
    ],
)
def test_texts_become_values(option: str, text: str, value: object) -> None:
    found = settings.values(resolve(from_options([(option, text)])).config)[option]
    assert found == value
    assert type(found) is type(value)


def test_what_a_method_does_not_read_is_told() -> None:
    typed = [("local.iters", "3"), ("baseline.lr", "0.5"), ("local.passes", "2"), ("stop.epochs", "1")]
    told = train_settings.unread(resolve(from_environment({"APTS_LOCAL__CARRY": "false"}), from_options(typed)))
    assert [words.split()[0] for words in told] == ["local.iters", "local.carry", "baseline.lr"]
    assert told[0] == "local.iters (command line --local.iters) is not read by apts with local.solver sweep"
    assert [words.split()[0] for words in train_settings.unread(resolve(from_options([*typed, ("method", "adam")])))] == [
        "local.iters", "local.passes",
    ]  # fmt: skip


def test_the_switch_of_the_kernels_is_no_setting() -> None:
    assert list(from_environment({"APTS_NATIVE": "0", "APTS_LOCAL__ITERS": "7"})) == ["local.iters"]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: from_options([("local.iter", "3")]), "command line --local.iter: unknown key local.iter; did you mean --local.iters?"),
        (lambda: from_options([("iters", "3")]), "did you mean --local.iters?"),
        (lambda: from_options([("locl.iters", "3")]), "did you mean --local.iters?"),
        (lambda: from_options([("qqq", "3")]), "command line --qqq: unknown key qqq"),
        (lambda: from_options([("solver", "x")]), "solver is a section; give one of its keys, such as --solver.subdomains"),
        (lambda: from_options([("local.iters", None)]), "command line --local.iters: a value is missing, INT"),
        (lambda: from_options([("local.iters", "3.5")]), "local.iters expects INT, got '3.5'"),
        (lambda: from_options([("local.iters", str(2**70))]), "local.iters expects INT"),
        (lambda: from_options([("stop.wall_time", "nan")]), "stop.wall_time expects FLOAT, got nan"),
        (lambda: from_options([("run.share_gpu", "maybe")]), "run.share_gpu expects {true,false}, got 'maybe'"),
        (lambda: from_options([("model.widths", "5,x")]), "model.widths expects INT,INT,..., got '5,x'"),
        (lambda: from_options([("run.dir", "\udcff")]), "run.dir expects TEXT"),
        (lambda: from_options([("preset", "papr")]), "expects {default,lsr1,paper}, got 'papr'; did you mean paper?"),
        (lambda: from_environment({"APTS_LOCAL__ITER": "3"}), "APTS_LOCAL__ITER: unknown key local.iter; did you mean APTS_LOCAL__ITERS?"),
        (lambda: from_environment({"APTS_LOCAL__ITERS": ""}), "environment APTS_LOCAL__ITERS: local.iters expects INT, got ''"),
        (lambda: from_file("nowhere.toml"), "file nowhere.toml: cannot be read: No such file"),
    ],
)
def test_refusals_name_key_source_and_remedy(build: Callable[[], object], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        build()
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[local]\niter = 3", "unknown key local.iter; did you mean local.iters?"),
        ("[locl]\n", "unknown key locl"),
        ("local = 3", "local is a section; give one of its keys, such as local.solver"),
        ("[local]\niters = true", "local.iters expects INT, got True"),
        ("[local]\niters = 3.0", "local.iters expects INT, got 3.0"),
        ('[local]\niters = "3"', "local.iters expects INT, got '3'"),
        ("[local.iters]\nx = 3", "local.iters expects INT, got {'x': 3}"),
        ("[model]\nwidths = [1, 2.5]", "model.widths expects INT,INT,..., got [1, 2.5]"),
        ("[local]\niters = \n", "cannot be read: Invalid value (at line 2"),
        ('["a.b"]\n"c.d" = 1', "unknown key a.b.c.d"),
    ],
)
def test_files_are_refused_with_their_name(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        from_file(path)
    assert str(caught.value).startswith(f"file {path}: ")
    assert words in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="cannot be read"):
        from_file(tmp_path / "x.toml")


def test_a_value_out_of_bounds_names_every_key_that_may_be_to_blame() -> None:
    with pytest.raises(SettingsError) as caught:
        resolve(from_options([("trust_region.radius_max", "0.01")]))
    assert str(caught.value) == (
        "trust_region.radius_init must be in [1e-06, 0.01], got 1 (trust_region.radius_max from command line --trust_region.radius_max)"
    )


def test_a_share_of_the_ball_is_one() -> None:
    with pytest.raises(SettingsError, match=r"trust_region.reached must be in \[0, 1\], got 1.1"):
        resolve(from_options([("trust_region.reached", "1.1")]))


ODD = Config(
    model=ModelConfig(widths=(), name='odd "name"\\ \x7f \n ünï 😀'),
    stop=StopConfig(target_loss=-math.inf, wall_time=1e-300, grad_norm=0.1),
    run=RunConfig(dir="a b", share_gpu=True),
)


@pytest.mark.parametrize("config", [Config(), preset("paper"), preset("lsr1"), ODD])
def test_toml_and_json_read_back_equal(tmp_path: Path, config: Config) -> None:
    sources = dict.fromkeys(settings.keys(), "file with\nnewline")
    path = write(tmp_path, settings.to_toml(config, sources))
    assert resolve(from_file(path)).config == config
    assert settings.from_json(settings.to_json(config)) == config


@given(st.text(st.characters(codec="utf-8")), st.floats(min_value=0, allow_nan=False), st.integers(0, 2**62))
def test_any_value_survives_json(text: str, number: float, count: int) -> None:
    config = Config(run=RunConfig(dir=text, seed=count), stop=StopConfig(grad_norm=number))
    assert settings.from_json(settings.to_json(config)) == config


def test_digest_changes_with_every_value_and_with_nothing_else() -> None:
    assert settings.digest(Config()) == settings.digest(resolve().config)
    assert settings.digest(Config(stop=StopConfig(wall_time=60))) == settings.digest(Config(stop=StopConfig(wall_time=60.0)))
    others = {settings.digest(config) for config in (Config(), preset("paper"), preset("lsr1"), ODD)}
    assert len(others) == 4


def test_json_of_another_version_is_refused() -> None:
    text = settings.to_json(Config()).replace('"local.iters"', '"local.nu"')
    with pytest.raises(SettingsError, match=r"keys of one rank only: local.iters, local.nu"):
        settings.from_json(text)


def test_a_config_built_with_a_wrong_type_is_refused_when_shared() -> None:
    with pytest.raises(SettingsError, match=r"model.name expects TEXT, got 3"):
        settings.to_json(Config(model=ModelConfig(name=3)))  # type: ignore[arg-type]
