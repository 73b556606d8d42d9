"""The settings of a train command: a file may not name code to be run, who types the command may."""

from __future__ import annotations

from pathlib import Path

import pytest

from apts_mpi.presets import preset
from apts_mpi.settings import SettingsError
from apts_mpi.train_settings import read_settings, typed_code

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


def test_a_folder_that_is_no_run() -> None:
    with pytest.raises(SettingsError, match="--resume: nowhere is no run directory, config.toml is missing"):
        read_settings(None, [], "nowhere")
