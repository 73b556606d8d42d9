"""The settings of a train command: a file may not name code to be run, who types the command may."""

from __future__ import annotations

from pathlib import Path

import pytest

from apts_mpi.presets import preset
from apts_mpi.settings import SettingsError
from apts_mpi.train_settings import read_settings, typed_code, unread

NAMES = {"model.name": "evil:factory", "model.loss": "evil:loss"}


def written(folder: Path, name: str) -> Path:
    section, key = name.split(".")
    path = folder / "config.toml"
    path.write_text(f'[{section}]\n{key} = "{NAMES[name]}"\n')
    return path


@pytest.mark.fault(67)
@pytest.mark.parametrize("name", NAMES)
def test_a_file_may_not_name_code(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name)
    for ways in ((str(path), [], None), (None, [], str(tmp_path))):  # a settings file; a run directory
        with pytest.raises(SettingsError, match=f"config.toml names code that would be run, {name} = '{NAMES[name]}'; if you trust it"):
            read_settings(*ways)


@pytest.mark.parametrize("name", NAMES)
def test_who_types_it_trusts_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, name)
    section, key = name.split(".")
    found = read_settings(str(path), [(name, NAMES[name])])
    assert getattr(getattr(found.config, section), key) == NAMES[name]
    monkeypatch.setenv(f"APTS_{section}__{key}".upper(), NAMES[name])
    assert getattr(getattr(read_settings(str(path), []).config, section), key) == NAMES[name]


@pytest.mark.parametrize(("method", "wrong", "right"), [
    ("adam", "solver.average", "baseline.average"), ("trust-region", "solver.average", "baseline.average"),
    ("apts", "baseline.average", "solver.average"),
])  # fmt: skip
def test_a_mean_that_the_method_does_not_read_is_refused(method: str, wrong: str, right: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"--{wrong} is not read by method {method}; type --{right} 3 instead"):
        read_settings(None, [("method", method), (wrong, "3")])
    assert read_settings(None, [("method", method), (right, "3")]).config.average == 3
    shared = tmp_path / "shared.toml"  # a file may serve several methods
    shared.write_text("[solver]\naverage = 4\n[baseline]\naverage = 4\n")
    assert read_settings(str(shared), [("method", method)]).config.average == 4


def test_a_study_types_what_its_methods_name() -> None:
    assert typed_code(preset("default")) == []
    assert typed_code(preset("default", model={"name": "mine:net"})) == ["--model.name", "mine:net"]


def test_a_run_that_is_older_than_a_key_goes_on_with_what_was_done_before_it(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[local]\nsolver = "sweep"\n')
    found = read_settings(None, [], str(tmp_path))
    assert (found.config.solver.momentum, found.config.solver.average, found.config.trust_region.reached) == (False, 0, 0.55)
    assert found.sources["solver.momentum"].endswith("config.toml, which is older than this key")
    assert read_settings(None, [("solver.momentum", "true")], str(tmp_path)).config.solver.momentum
    (tmp_path / "config.toml").write_text('[local]\nsolver = "sweep"\n[solver]\nmomentum = true\n')
    assert read_settings(None, [], str(tmp_path)).config.solver.momentum


def test_what_is_typed_and_not_read_is_told_with_the_reason() -> None:
    typed = "solver.momentum (command line --solver.momentum) is not read by apts with local.solver"
    for options, told in (
        ([("solver.combine", "sum")], [f"{typed} sweep and solver.combine sum"]), ([("preset", "lsr1")], [f"{typed} lsr1"]), ([], []),
    ):  # fmt: skip
        assert unread(read_settings(None, [*options, ("solver.momentum", "true")])) == told


def test_a_folder_that_is_no_run() -> None:
    with pytest.raises(SettingsError, match="--resume: nowhere is no run directory, config.toml is missing"):
        read_settings(None, [], "nowhere")
