"""The command line: what starts what, one message for all ranks, exit codes, and the public names of the package."""

from __future__ import annotations

import importlib.util
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import apts_mpi
from apts_mpi import cli, settings
from apts_mpi.__main__ import alone, in_parallel, main
from apts_mpi.config import Config
from apts_mpi.contracts import Communicator
from apts_mpi.parallel.handshake import HandshakeError, SetupError
from apts_mpi.parallel.serial import SerialCommunicator

ROOT = Path(__file__).parents[2]
MPIEXEC = Path(sys.executable).parent / "mpiexec"
QUIET = {name: text for name, text in os.environ.items() if not name.startswith("COVERAGE")}
ENVIRON = QUIET | {
    "PYTHONPATH": str(ROOT),
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def typed(*words: str, launcher: Sequence[str] = (), python: Sequence[str] = ("-m", "apts_mpi")) -> subprocess.CompletedProcess[str]:
    command = [*launcher, sys.executable, *python, *words]
    return subprocess.run(command, env=ENVIRON, capture_output=True, text=True, timeout=60, check=False)


def test_help_is_quick() -> None:
    def seconds() -> float:
        """Processor time, which a busy machine does not stretch; no less than a quiet one's wall time."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert typed("train", "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(seconds() for _ in range(5)) <= 0.3


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["train", "--help"], 0),
        (["train", "--print_config"], 0),
        (["data", "convert", "--help"], 0),
        (["data", "info", "nowhere"], 2),
        (["train", "--local.iter", "3"], 2),
    ],
)
def test_neither_mpi_nor_torch_is_started(words: list[str], code: int) -> None:
    script = """
import sys
from apts_mpi.__main__ import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print(code or 0, [name for name in ("torch", "mpi4py") if name in sys.modules])
"""
    assert typed(*words, python=("-c", script)).stdout.splitlines()[-1].startswith(f"{code} []")


def test_help_lists_every_option_with_its_default() -> None:
    lines = " ".join(typed("train", "--help").stdout.split())
    for key in settings.keys().values():
        assert f"--{key.name} {key.expects}" in lines
        assert " ".join(key.meaning.split()[:3]) in lines
    assert "[0.05]" in lines
    assert "[64, 32]" in lines


def test_printed_config_reads_back(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APTS_LOCAL__PASSES", "4")
    words = ["--preset=paper", "--stop.target_loss", "-inf", "--stop.wall-time", "1e2", "--model.widths=8"]
    assert main(["train", "--print_config", *words]) == 0
    text = capsys.readouterr().out
    for line in ("preset paper", "environment APTS_LOCAL__PASSES", "command line --stop.wall_time", "default"):
        assert line in text
    (tmp_path / "again.toml").write_text(text)
    monkeypatch.delenv("APTS_LOCAL__PASSES")
    config = cli.read_settings(str(tmp_path / "again.toml"), []).config
    assert (config.preset, config.local.passes, config.stop.wall_time, config.model.widths) == ("paper", 4, 100.0, (8,))
    assert config.trust_region.eta1 == 0.25
    assert main(["train", str(tmp_path / "again.toml"), "--print_config"]) == 0
    assert f"file {tmp_path / 'again.toml'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "kept", "options"),
    [
        (["train", "a.toml", "--local.iters", "7"], ["train", "a.toml"], [("local.iters", "7")]),
        (["--stop.target_loss", "-inf", "a.toml"], ["a.toml"], [("stop.target_loss", "-inf")]),
        (["--run.dir=a=b c"], [], [("run.dir", "a=b c")]),
        (["--run.dir="], [], [("run.dir", "")]),
        (["--run.dir", ""], [], [("run.dir", "")]),
        (["--trust-region.eta-1", "2"], [], [("trust_region.eta_1", "2")]),
        (["--local.iters", "--help"], ["--help"], [("local.iters", None)]),
        (["--local.iters"], [], [("local.iters", None)]),
        (["-h", "--print_config"], ["-h", "--print_config"], []),
    ],
)
def test_dotted_options_are_taken_out(words: list[str], kept: list[str], options: list[tuple[str, str | None]]) -> None:
    assert cli.split_options(words) == (kept, options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", "a.toml", "b.toml"], "unrecognized arguments: b.toml"),
        (["train", "nowhere.toml"], "file nowhere.toml: cannot be read"),
        (["train", "--iters", "3"], "did you mean --local.iters?"),
        (["train", "--trust_region.eta1", "1.2"], "trust_region.eta1 must be in (0, 1), got 1.2 (trust_region.eta1 from command line"),
        (["train", "--print_config", "--local.iters"], "command line --local.iters: a value is missing"),
        (["show", "nowhere"], "nowhere"),
        (["plot", "nowhere", "--out", "x.png"], "nowhere"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_why(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == cli.USAGE
    caught = capsys.readouterr()
    assert message in caught.err
    assert "Traceback" not in caught.err
    assert not caught.out


@pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec beside the interpreter")
@pytest.mark.parametrize("words", [["train", "--iters", "3"], ["trian"]])
def test_all_ranks_end_together_with_one_message(words: list[str]) -> None:
    ended = typed(*words, launcher=[str(MPIEXEC), "-n", "2"])
    assert ended.returncode == cli.USAGE
    assert ended.stderr.count("apts-mpi:") == 1


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (HandshakeError("settings differ on rank 1"), cli.ENVIRONMENT, "apts-mpi: settings differ on rank 1"),
        (SetupError("no data set at x", usage=True), cli.USAGE, "apts-mpi: no data set at x"),
        (SetupError("disk full"), cli.ENVIRONMENT, "apts-mpi: disk full"),
        (FileNotFoundError(2, "No such file", "x.h5"), cli.ENVIRONMENT, "FileNotFoundError: [Errno 2] No such file: 'x.h5'"),
        (ImportError("No module named torch"), cli.ENVIRONMENT, "ImportError: No module named torch"),
    ],
)
def test_errors_that_leave_nobody_waiting_give_a_code(error: Exception, code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    def run(comm: Communicator | None) -> int:
        raise error

    assert in_parallel(cli.Command(run, parallel=True)) == code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("parallel", [True, False])
def test_ctrl_c_ends_a_command_in_one_line_with_130(parallel: bool, capsys: pytest.CaptureFixture[str]) -> None:
    def run(comm: Communicator | None) -> int:
        raise KeyboardInterrupt

    command = cli.Command(run, parallel, "interrupted, and nothing is lost")
    assert (in_parallel(command) if parallel else alone(command)) == 130
    assert capsys.readouterr().err == "apts-mpi: interrupted, and nothing is lost\n"


def test_ctrl_c_while_the_command_line_is_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def parse(words: Sequence[str]) -> cli.Command:
        os.kill(os.getpid(), signal.SIGINT)
        return cli.Command(lambda comm: 0, len(words) > 1)

    monkeypatch.setattr(cli, "parse", parse)
    for words in (["show"], ["train", "x"]):
        assert main(words) == 130
        assert capsys.readouterr().err == "apts-mpi: interrupted\n"


class OneOfTwo(SerialCommunicator):
    """A rank that must not decide alone."""

    size = 2


def test_an_error_of_one_rank_among_several_is_left_to_the_abort_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(comm: Communicator | None) -> int:
        raise OSError("disk full")

    monkeypatch.setattr("apts_mpi.parallel.launch.start", OneOfTwo)
    with pytest.raises(OSError, match="disk full"):
        in_parallel(cli.Command(run, parallel=True))


class Second(SerialCommunicator):
    """Rank 1, to which rank 0 sends ``text``."""

    rank, size = 1, 2

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def share(self, text: str, root: int = 0) -> str:
        assert text == "", "only rank 0 reads settings"
        return self.text


def test_settings_are_read_on_rank_0_only() -> None:
    def read() -> settings.Settings:
        raise AssertionError("read on rank 1")

    assert cli.shared_config(read, Second("")) is None
    assert cli.shared_config(read, Second(settings.to_json(Config()))) == Config()
    assert cli.shared_config(lambda: settings.resolve(), SerialCommunicator()) == Config()


def test_colour_is_for_people_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cli.complain("plain")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    cli.complain("[bold]red[/bold]")
    plain, coloured = capsys.readouterr().err.splitlines()
    assert plain == "apts-mpi: plain"
    assert "\x1b[31m" in coloured
    assert "[bold]red[/bold]" in coloured


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = "import sys, apts_mpi as a; a.Config, a.Status, a.preset; print([n for n in ('torch', 'mpi4py') if n in sys.modules])"
    assert typed(python=("-c", script)).stdout == "[]\n"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        apts_mpi.nothing  # noqa: B018
    assert set(apts_mpi.__all__) <= set(dir(apts_mpi))


@pytest.mark.skipif(importlib.util.find_spec("apts_mpi.train") is None, reason="apts_mpi/train.py is not there")
@pytest.mark.parametrize("first", ["from apts_mpi import run_training", "import apts_mpi.train", "import apts_mpi.solver.apts"])
def test_public_names_are_found_whatever_was_imported_before(first: str) -> None:
    names = ", ".join(apts_mpi.__all__)
    script = f"{first}\nfrom apts_mpi import {names}\nfrom apts_mpi.train import train as there\nassert train is there and callable(APTS)"
    ended = typed(python=("-c", script))
    assert ended.returncode == 0, ended.stderr
