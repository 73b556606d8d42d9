"""show and plot: what a reader finds, finished run or not, and refusals that say what to do."""

from __future__ import annotations

import io
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from apts_mpi import cli
from apts_mpi.contracts import Status, StepInfo
from apts_mpi.rundir import Completion, Run, read_run
from apts_mpi.storage.records import RunDirectory
from apts_mpi.study import style, tables
from apts_mpi.study.plots import labels
from apts_mpi.study.show import plot_runs, show_run
from apts_mpi.timing import Timers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIG = 'preset = "default"\n[local]\niters = 7\n[model]\nname = "mlp"\nwidths = [64, 32]\n[trust_region]\neta1 = 0.25\neta2 = 0.75\n'
FACTS = {"ranks": 3, "versions": {"python": "3.11", "torch": "2.13"}, "hosts": ["n1", "n1", "n2"]}
FACTS |= {"git_commit": "c0ffee", "started_utc": "today"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make(path: Path, iterations: int = 12, finish: bool = True, config: str = CONFIG) -> Path:
    """A run directory as train leaves it."""
    run = RunDirectory.create(path, "train", config, FACTS)
    timers = Timers()
    timers.phase("run")
    for k in range(iterations):
        with timers("evaluate"):
            rho = math.nan if k == 3 else 1.0 - 0.3 * k
        accepted = rho > 0.25
        info = StepInfo(
            k, k // 4, 2.0 * 0.8**k, 0.1, rho, accepted, 2.0**-k, 0.1, math.nan, False, 1.0, 10, 8, 1.0, 9, 9, 3, Status.RUNNING
        )
        extra = {"epoch": k / 4, "time": 0.5 * k, "passes": 7.0 * k, "accuracy": 50.0 + k if k % 2 else None, "reductions_total": 3.0 * k}
        run.append(info, extra)
    if finish:
        done = Completion("epochs done", iterations, 3.0, 6_570, 4, 2, 0.125, 97.75, 84.0, 36, 40, 2_000_000, 12.5, "5ha")
        run.finish(done, {}, [timers.row(), timers.row()])
    run.close()
    return path


def shown(path: Path) -> str:
    out = io.StringIO()
    show_run(path, out)
    return out.getvalue()


def test_an_unfinished_run_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make(tmp_path / "run", finish=False)
    (path / "checkpoints").mkdir()
    for sequence, iteration in ((999_999, 7), (1_000_000, 9)):  # by number, not by name
        (path / "checkpoints" / f"{sequence:06d}.json").write_text(f'{{"iteration": {iteration}}}')
    show_run(path)
    told = capsys.readouterr().out
    assert "did not finish" in told and f"mpiexec -n 3 apts-mpi train --resume {path}   (from the checkpoint after iteration 9)" in told


def test_a_run_that_was_stopped_and_saved_is_no_failure(tmp_path: Path) -> None:
    path = make(tmp_path / "run", finish=False)
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "000003.h5").write_bytes(b"12 bytes....")
    record = path / "checkpoints" / "000003.json"
    record.write_text('{"iteration": 12, "bytes": 12}')
    assert "stopped, saved after iteration 12" in shown(path) and "train --resume" in shown(path) and "did not finish" not in shown(path)
    (path / "lock").write_text("of a process that was killed, or is at work")
    assert "did not finish" in shown(path) and "from the checkpoint after iteration 12" in shown(path)
    (path / "lock").unlink()
    record.write_text('{"iteration": 12, "bytes": 13}')
    assert "did not finish" in shown(path) and "train --resume" not in shown(path), "the file was cut"


def test_without_an_accuracy_there_is_no_word_of_it(tmp_path: Path) -> None:
    run = read_run(make(tmp_path / "run"))
    assert run.completion is not None
    nothing = np.full(12, math.nan)
    odd = replace(run, columns={**run.columns, "accuracy": nothing}, completion=replace(run.completion, accuracy=math.nan))
    text = "\n".join(line for _, lines in tables.sections(odd) for line in lines)
    assert "test" not in text and "training loss" in text


@pytest.mark.parametrize(("facts", "wanted"), [
    ({"command": "apts-mpi train", "ranks": 2}, "command apts-mpi train (on 2 ranks)"),
    ({"command": "apts-mpi train", "ranks": 1}, "command apts-mpi train"),
    ({"native": "compiled, x86-64-v4, CUDA", "devices": ["cpu", "cpu"]}, "kernels compiled, x86-64-v4"),
    ({"native": "compiled, x86-64-v4, CUDA", "devices": ["cuda:0"]}, "kernels compiled, x86-64-v4, CUDA"),
])  # fmt: skip
def test_ranks_stand_beside_the_command_and_kernels_that_served_alone(facts: dict[str, Any], wanted: str) -> None:
    assert wanted in [" ".join(line.split()) for line in tables.provenance(facts)]


def test_a_finished_run_shows_result_settings_origin_records_and_phases(tmp_path: Path) -> None:
    text = shown(make(tmp_path / "run"))
    for wanted in ("epochs done", "97.75 %", "n = 6,570 parameters, N = 4 subdomains, P = 2 ranks", "36 vector reductions", "2 MB"):
        assert wanted in text
    for wanted in ("c0ffee", "torch 2.13", "n1, n2", "Last iterations of 12", "evaluate", "total"):
        assert wanted in text
    assert "\x1b" not in text and "did not finish" not in text


@pytest.mark.parametrize("command", ["show", "data"])
def test_a_reader_that_leaves_early_is_no_error(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """apts-mpi show RUN | head: the writer's BrokenPipeError reaches ``__main__``, which knows it."""

    def gone(*args: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("apts_mpi.study.show.show_run", gone)
    monkeypatch.setattr("apts_mpi.storage.verify.info", gone)
    words = ["show", str(tmp_path)] if command == "show" else ["data", "info", str(tmp_path)]
    with pytest.raises(BrokenPipeError):
        cli.parse(words).run(None)


def test_settings_show_basics_and_changes_only(tmp_path: Path) -> None:
    lines = tables.settings(read_run(make(tmp_path / "run")))
    assert [line.split()[0] for line in lines] == ["preset", "model.name", "local.iters"]
    assert lines[-1].split() == ["local.iters", "7"]


def test_the_last_iterations_stand_under_their_names(tmp_path: Path) -> None:
    lines = tables.iterations(read_run(make(tmp_path / "run")))
    assert len(lines) == 1 + tables.LAST
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= 98
    assert lines[0].split() == ["epoch", "k", "loss", "|g|", "rho", "radius", "acc", "local", "evals", "reds", "test%", "time", "s"]
    assert lines[-1].split() == ["2.75", "11", "0.1718", "0.100", "-2.30", "0.000488", "n", "10", "77.0", "33", "61.00", "5.5"]
    assert lines[2].split()[4] == "0.125"  # k = 3: the ratio is nan and stays blank


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    path = make(tmp_path / "run", finish=False)
    assert "did not finish" in shown(path) and "12 outer iterations on record" in shown(path)
    (path / "records.csv").unlink()
    (path / "config.toml").unlink()
    assert "did not finish" in shown(path) and "Last iterations" not in shown(path)


@pytest.mark.parametrize(("row", "wanted"), [
    ({"accepted": 1, "global_accepted": 0, "global_rho": 0.1}, "y/n"), ({"accepted": 0, "global_accepted": 1, "global_rho": 0.9}, "n/y"),
    ({"accepted": 1, "global_accepted": 0, "global_rho": math.nan}, "y"), ({"accepted": 0}, "n"),
])  # fmt: skip
def test_acceptance_as_in_the_log(row: dict[str, float], wanted: str) -> None:
    assert tables._cell(row, "accepted", "yes") == wanted


def test_a_terminal_gets_colour_and_no_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    show_run(make(tmp_path / "run [bold]", finish=False), out)
    assert "\x1b[1;36mRun" in out.getvalue() and "run [bold]" in out.getvalue()
    assert "\x1b[1;31m" in out.getvalue()  # did not finish


def test_standard_output_is_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_run(make(tmp_path / "run"))
    assert "epochs done" in capsys.readouterr().out


def test_a_bad_config_is_named(tmp_path: Path) -> None:
    path = make(tmp_path / "run", config="a = = 1")
    with pytest.raises(ValueError, match=r"config\.toml is not TOML"):
        shown(path)


@pytest.mark.parametrize(("ending", "magic"), [("pdf", b"%PDF"), ("SVG", b"<?xml")])
def test_pictures_by_their_ending(tmp_path: Path, ending: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib")
    out = plot_runs([make(tmp_path / "b", 5, finish=False)], tmp_path / f"x.{ending}")
    assert out.read_bytes().startswith(magic)


def drawn(*runs: Run) -> Figure:
    pytest.importorskip("matplotlib")
    from apts_mpi.study.plots import _figure

    return _figure(runs)


def test_what_the_picture_holds(tmp_path: Path) -> None:
    figure = drawn(read_run(make(tmp_path / "a")), read_run(make(tmp_path / "b", 3, finish=False)))
    axes = figure.axes
    assert len(axes) == 12
    loss, accuracy, radius, rho = axes[0::3]
    assert loss.get_yscale() == radius.get_yscale() == "log" and accuracy.get_yscale() == rho.get_yscale() == "linear"
    line = loss.get_lines()[0]
    assert line.get_label() == "a" and np.array_equal(line.get_xdata(), range(13))
    assert np.array_equal(accuracy.get_lines()[0].get_xdata(), [2, 4, 6, 8, 10, 12])  # only where it was evaluated
    assert loss.get_lines()[1].get_label() == "b (did not finish)"
    assert [axis.get_xlabel().split()[0] for axis in axes[9:]] == ["outer", "gradient", "time,"]
    assert {float(entry.get_ydata()[0]) for entry in rho.get_lines()} == {0.25, 0.75}  # type: ignore[index, arg-type]


def test_a_loss_stands_at_the_work_that_led_to_it(tmp_path: Path) -> None:
    """Before the step: at the end of the iteration before; the last one, if it was evaluated, at the end."""
    run = read_run(make(tmp_path / "a", 3))
    columns = {**run.columns, "passes": np.array([4.0, 7.0, 10.0])}
    last = np.array([1.6, 1.28, math.nan])
    for after, wanted in (([1.6, 1.28, 1.0], [(0, 2.0), (4, 1.6), (7, 1.28), (10, 1.0)]), (last, [(0, 2.0), (4, 1.6), (7, 1.28)])):
        axes = drawn(replace(run, columns={**columns, "loss_new": np.array(after)})).axes
        assert axes[1].get_lines()[0].get_xydata() == pytest.approx(np.array(wanted))
    assert axes[4].get_lines()[0].get_xdata() == [7.0]  # the accuracy after the second iteration
    assert np.array_equal(axes[7].get_lines()[0].get_xydata(), [(0, 1), (4, 0.5), (7, 0.25), (10, 0.25)])
    assert np.array_equal(np.asarray(axes[10].collections[0].get_offsets())[:, 0], [4, 7, 10])


def test_ratios_beyond_the_axis_are_triangles_that_point_there(tmp_path: Path) -> None:
    run = read_run(make(tmp_path / "a", 6))
    rho = np.array([4.21, 1.0, math.nan, 0.1, -0.7, -math.inf])
    axes = drawn(replace(run, columns={**run.columns, "rho": rho, "accepted": np.array([1, 1, 0, 0, 0, 0])})).axes
    found = [np.asarray(marks.get_offsets()).tolist() for marks in axes[9].collections]
    assert found[0] == [[2, 1.0]] and found[1][1:] == [[4, 0.1]] and math.isnan(found[1][0][1])
    assert found[2:] == [[[5, -0.6], [6, -0.6]], [[1, 1.6]]]
    down, up = (marks.get_paths()[0].vertices for marks in axes[9].collections[2:])
    assert len({x for x, y in down if y < 0}) == len({x for x, y in up if y > 0}) == 1  # the tip
    assert "triangle: beyond the axis" in axes[9].get_ylabel()


@pytest.mark.parametrize(("values", "ticks"), [
    ([2.0, 8.0, 4.0], ["8", "4", "2"]), ([0.1, 0.4], ["0.5", "0.25", "0.125", "0.0625"]), ([4.0, 4.0], ["8", "4", "2"]),
    ([2.0**-12, 1.0], ["1", "0.25", "0.0625", "$2^{-6}$", "$2^{-8}$", "$2^{-10}$", "$2^{-12}$"]),
])  # fmt: skip
def test_the_radius_has_ticks_at_powers_of_two(tmp_path: Path, values: list[float], ticks: list[str]) -> None:
    run = read_run(make(tmp_path / "a", len(values)))
    panel = drawn(replace(run, columns={**run.columns, "radius": np.array(values)})).axes[6]
    low, high = panel.get_ylim()
    assert [text.get_text() for text in panel.get_yticklabels()] == ticks
    assert all(low < tick < high for tick in panel.get_yticks()) and low < min(values) and max(values) < high


def test_rows_without_values_are_left_out(tmp_path: Path) -> None:
    """A run of SGD has neither radius nor rho, and the thresholds in its settings say nothing."""
    run = read_run(make(tmp_path / "a", 5))
    sgd = replace(run, columns={**run.columns, "radius": np.full(5, math.nan), "rho": np.full(5, math.nan)}, config='method = "sgd"\n')
    axes = drawn(sgd).axes
    assert [panel.get_ylabel() for panel in axes[::3]] == ["training loss", "test accuracy, %"]
    assert axes[-1].get_xlabel() == "time, s"
    thresholds = '[trust_region]\neta1 = 0.5\n'
    assert {line.get_ydata()[0] for line in drawn(run, replace(sgd, config=thresholds)).axes[9].get_lines()} == {0.25, 0.75}


def test_thresholds_are_named_once_and_not_on_top_of_each_other(tmp_path: Path) -> None:
    run = read_run(make(tmp_path / "a"))
    other = replace(run, config="[trust_region]\neta0 = 0.25\neta1 = 0.3\neta2 = 0.75\n")
    figure = drawn(run, other)
    figure.draw_without_rendering()
    named = figure.axes[11].texts
    assert [text.get_text() for text in named] == ["eta0, eta1 0.25", "eta1 0.3", "eta2 0.75"]
    boxes = [text.get_window_extent() for text in named]
    assert all(lower.y1 <= upper.y0 for lower, upper in zip(boxes, boxes[1:], strict=False))


@pytest.mark.parametrize("letters", [20, 60, 400])
def test_the_legend_is_not_wider_than_the_picture(tmp_path: Path, letters: int) -> None:
    run = read_run(make(tmp_path / "a", 3))
    figure = drawn(*(replace(run, path=Path("/".join((f"{k}" + letters * "w", "run")))) for k in range(6)))
    figure.draw_without_rendering()
    box = figure.legends[-1].get_window_extent()
    assert len(figure.legends) == 1 and 0 <= box.x0 and box.x1 <= figure.bbox.width


def test_runs_that_are_compared_are_named_with_their_methods(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from apts_mpi.study.plots import labels

    run = read_run(make(tmp_path / "a"))
    runs = [replace(run, config=f'method = "{method}"\npreset = "{preset}"\n') for method, preset in
            (("adam", "default"), ("apts", "default"), ("apts", "lsr1"))]  # fmt: skip
    assert [label.rpartition("a, ")[2] for label in labels(runs)] == ["adam", "apts", "apts lsr1"]
    assert labels(runs[:1]) == ["a"]


def test_the_default_picture_lies_in_the_first_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = make(tmp_path / "a")
    assert plot_runs([path, make(tmp_path / "b", 5)]) == path / "plot.png"
    assert (path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [read_run(make(tmp_path / name)) for name in ("x/run", "y/run", "z")]
    assert labels(runs) == [str(tmp_path / "x/run"), str(tmp_path / "y/run"), "z"]


def test_refusals_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "run")
    with pytest.raises(ValueError, match=r"ends in \.png, \.pdf"):
        plot_runs([path], tmp_path / "x.docx")
    with pytest.raises(ValueError, match="no iteration on record in .*empty"):
        plot_runs([make(tmp_path / "empty", 0)])
    assert plot_runs([path, tmp_path / "empty"]).is_file()  # what has begun is drawn, and the legend names what has not
    assert labels([read_run(path), read_run(tmp_path / "empty")])[1].endswith(" (no iteration on record)")
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere for the picture"):
        plot_runs([path], tmp_path / "nowhere" / "x.png")
    with pytest.raises(ValueError, match="at least one run"):
        plot_runs([])
    with pytest.raises(FileNotFoundError, match="is no run directory"):
        show_run(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'apts_mpi\[plot\]'"):
        plot_runs([path])


def test_lines_are_opaque_in_a_legend() -> None:
    figure = style.new_figure(4, 3)
    lines = figure.subplots().plot([0, 1], [0, 1], alpha=0.6)
    style.legend(figure, lines, ["a line"], 4)
    assert lines[0].get_alpha() == 0.6 and [line.get_alpha() for line in figure.legends[0].get_lines()] == [1]
