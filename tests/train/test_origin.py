"""A run of a program that calls train() is told apart from one of settings: what it read, and how it goes on."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from train_cases import QUIET, network, settings, shards, task

from apts_mpi import Result, train
from apts_mpi.__main__ import main
from apts_mpi.origin import GIVEN, go_on
from apts_mpi.parallel.handshake import HandshakeError
from apts_mpi.parallel.serial import SerialCommunicator
from apts_mpi.rundir import read_run
from apts_mpi.study.tables import sections


def begun(folder: Path, resume: str = "never") -> Result:
    stop = {"epochs": 0, "iterations": 3}
    config = settings(stop=stop, checkpoint={"every": "2"}, model={"widths": (9,)}, run={"dir": str(folder), "resume": resume})
    return train(network(), *task(), config=config, comm=SerialCommunicator())


def cut_off(folder: Path) -> None:
    """As if it had been killed."""
    (folder / "completion.json").unlink()


def test_what_a_program_gave_is_not_shown_as_a_setting(tmp_path: Path) -> None:
    begun(tmp_path / "mine")
    cut_off(tmp_path / "mine")
    shown = {heading.split()[0]: "\n".join(lines) for heading, lines in sections(read_run(tmp_path / "mine"))}
    assert "model Sequential, tensors in memory" in shown["Where"]
    assert "data.batch" in shown["Settings"] and not any(name in shown["Settings"] for name in GIVEN)
    assert f'with run={{"dir": "{tmp_path / "mine"}", "resume": "auto"}} in its call of train()' in shown["Result"]
    assert "--resume" not in shown["Result"]
    text = (tmp_path / "mine" / "config.toml").read_text()
    assert text.count("# the program decides by its call") == len(GIVEN) and tomllib.loads(text)["data"]["path"]


def test_a_record_that_does_not_say_is_shown_as_one_of_settings(tmp_path: Path) -> None:
    begun(tmp_path / "older")
    cut_off(tmp_path / "older")
    path = tmp_path / "older" / "provenance.json"
    facts = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("origin", "model", "samples")}
    path.write_text(json.dumps(facts))
    shown = {heading.split()[0]: "\n".join(lines) for heading, lines in sections(read_run(tmp_path / "older"))}
    assert "apts-mpi train --resume" in shown["Result"] and "model.widths" in shown["Settings"] and "\norigin " not in shown["Where"]


@pytest.mark.parametrize("way", ["--resume", "run.resume"])
def test_a_command_cannot_go_on_with_it_and_says_who_can(tmp_path: Path, way: str, capsys: pytest.CaptureFixture[str]) -> None:
    begun(tmp_path / "mine")
    mine, words = str(tmp_path / "mine"), ["--resume", str(tmp_path / "mine")]
    if way == "run.resume":
        words = f"--run.dir {mine} --run.resume must --run.allow_changes true --data.path {shards(tmp_path)} --model.widths 4".split()
    assert main(["train", *words, "--run.monitor", "none"]) == 2
    said = capsys.readouterr().err
    assert f"{mine} is a run of a program that calls train()" in said and "in its call of train()" in said


def test_a_program_cannot_go_on_with_the_run_of_a_command(tmp_path: Path) -> None:
    words = ["--data.path", str(shards(tmp_path)), "--run.dir", str(tmp_path / "run"), "--stop.epochs", "2", "--checkpoint.every", "1"]
    assert main(["train", *words, *(word for name, value in QUIET.items() for word in (f"--run.{name}", value))]) == 0
    with pytest.raises(HandshakeError, match=f"is a run of apts-mpi train; go on with .*apts-mpi train --resume {tmp_path / 'run'}"):
        config = settings("default", run={"dir": str(tmp_path / "run"), "resume": "must"})
        train(network(), *task(), config=config, comm=SerialCommunicator())


def test_a_program_goes_on_with_its_own(tmp_path: Path) -> None:
    begun(tmp_path / "mine")
    assert len(begun(tmp_path / "mine", "must").steps) == 3
    told = 'the same program, under mpiexec -n 2 and with run={"dir": "a b", "resume": "auto"} in its call of train()'
    assert go_on("a b", 2, program=True) == told
