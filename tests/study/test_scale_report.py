"""The report of a study: what it says follows from the points, its files are whole, its texts are escaped."""

from __future__ import annotations

import base64
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from points_cases import MACHINE, point, predictions, study

from apts_mpi.study import document, report_tables, report_words
from apts_mpi.study.document import Bullets, Code, Heading, Paragraph, Part, Picture, Table
from apts_mpi.study.points import Point, Points, from_json, to_json
from apts_mpi.study.report import write_report
from apts_mpi.study.statistics import Estimate, all_series

for module in ("scipy", "matplotlib", "markdown_it"):
    pytest.importorskip(module)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on the made-up study, predictions and a what-if of one sentence."""
    out = tmp_path_factory.mktemp("study") / "report"
    points = from_json(to_json(study()))
    files = write_report(points, out, predictions(points), [Heading("What if"), Paragraph("a_b < 1 & 50 % | $x$")])
    assert set(files) == {path for path in out.rglob("*") if path.is_file()}
    return out


def few(*runs: Point, target: float = 97.0, **changes: object) -> Points:
    points = Points("x", "", 1, 5, target, len(runs), (), runs, "", {})
    return replace(points, **changes)  # type: ignore[arg-type]


def test_figures_for_each_network(report: Path) -> None:
    names = {path.stem for path in (report / "figures").iterdir()}
    both = ("target", "curves", "regions")
    wanted = ["times", "speedup", "model", *(f"{kind}-{scaling}" for kind in both for scaling in ("strong", "weak"))]
    assert names == {f"{name}-{network}" for name in wanted for network in ("real", "cloud")}
    for path in (report / "figures").iterdir():
        assert 2_000 < path.stat().st_size < (120_000 if path.suffix == ".png" else 200_000), path.name
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"%PDF")


def test_tables_hold_the_known_numbers(report: Path) -> None:
    text = (report / "report.md").read_text(encoding="utf-8")
    assert "| APTS | 2 | 1.106 " in text and "| 1.82 | 0.909 | 8 |" in text  # 2.0 (0.1 + 0.9 / 2) times a median wobble of 1.005
    assert "| APTS | 4\u2020 | 0.6533\u2020 | 0.0933\u2020 | - | - | 8 |" in text
    assert "| local SGD | 4\u2020 | not reached | not reached\u2020 | not reached | not reached | not reached | 95.5 | 0 of 8 |" in text
    assert "24 of 24 cases within 10 %" in text and "| +4.0 | yes |" in text
    assert "| strong | real network | SGD | 1 | 15.1 | 30.1 | 45.2 |" in text  # 60 passes at 30 in 15.07 s
    assert "interpolation between 2 rank counts | 0.9 |" in text
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", text)


def test_words_of_the_report(report: Path) -> None:
    text = (report / "report.md").read_text(encoding="utf-8")
    assert "288 of 289 planned runs finished; 0 not tried." in text and "1 run failed (no result, not used): sgd-strong-P2-rep9." in text
    assert "4 runs begun on a busy machine" in text and "No case noisy." in text and "apts-cloud-weak-P2-rep3" in text
    assert "12 cases oversubscribed" in text and "SGD, weak, real network, 4 ranks (8 of 8 runs)" in text
    assert "APTS on P0 = 1 rank takes 2.01 " in text
    assert "commit: c0ffee" in text and "MPICH Version: 5.0.2" in text and "WARNING" not in text
    assert r"a\_b \< 1 \& 50 % \| $x$" in text
    assert "range at best" not in text  # 8 values


def test_the_page_is_one_file(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    images = re.findall(r'src="(.*?)"', page)
    assert len(images) == 18 and all(each.startswith("data:image/png;base64,") for each in images)
    assert base64.b64decode(images[0].split(",")[1]) == (report / "figures/times-real.png").read_bytes()
    assert "a_b &lt; 1 &amp; 50 % | $x$" in page and page.count("<table>") == 13
    assert "prefers-color-scheme: dark" in page and "@media print" in page


def test_latex_is_balanced(report: Path) -> None:
    text = (report / "tables.tex").read_text(encoding="utf-8")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\toprule") == 13
    assert "Table 1" not in text  # LaTeX counts by itself
    assert not re.search(r"(?<!\\)%", text.split("\n", 1)[1]) and text.isascii()


def test_latex_escapes() -> None:
    assert document.tex(r"a_b & 5 % of $x^2 #1 {y} ~\z <>|") == (
        r"a\_b \& 5 \% of \$x\textasciicircum{}2 \#1 \{y\} \textasciitilde{}\textbackslash{}z \textless{}\textgreater{}\textbar{}"
    )
    assert document.tex("4\u2020") == r"4\textdagger{}"


def test_markdown_and_html_show_texts_as_they_are(tmp_path: Path) -> None:
    odd = "*a* _b_ `c` [d](e) <f> | g & h # i ~j~ &lt; \\"
    table = Table(odd, ("x", odd), (("1", odd),), "t")
    parts: list[Part] = [Heading(odd), Paragraph(odd, loud=True), Bullets((odd,)), table, Code("```\n<x>")]
    page = document.html(odd, parts, tmp_path)
    wanted = odd.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert page.count(wanted) == 8  # title twice, heading, loud paragraph, list, caption, cell, header
    assert "<em>" not in page and "<del>" not in page and "<pre><code>```\n&lt;x&gt;" in page


def test_documents_refuse_what_they_cannot_show(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="table t: a row has 1 cells, the header 2"):
        Table("", ("a", "b"), (("1",),), "t")
    with pytest.raises(ValueError, match="must lie in"):
        document.markdown("", [Picture(Path("/elsewhere/x.png"), "")], tmp_path)


def test_numbers_for_people() -> None:
    shown = [report_tables.number(value) for value in (math.nan, math.inf, 0.0, 0.01234, 12.34, 1234567.0, -3.0)]
    assert shown == ["-", "not reached", "0", "0.0123", "12.3", "1,234,567", "-3"]
    assert report_tables.spread(Estimate(2.0, 1.0, math.inf, 5)) == "2 [1, not reached]"
    assert report_tables.spread(Estimate(2.0, 1.999, 2.001, 5)) == "2"
    assert [report_words.plural(count, "run") for count in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]


@pytest.mark.parametrize(("ours", "theirs", "words"), [
    ((30.0, 5.0), (10.0, 6.0), ["1 rank: APTS needs 30 s to the target, SGD 10 (3 times as long)."]),
    ((10.0, 8.0), (30.0, 4.0), ["1 rank: APTS needs 8 passes of gradient evaluations to the target, SGD 4 (2 times as many)."]),
    ((10.0, 5.0), (30.0, 6.0), ["In 1 comparison by"]),
    ((10.0, 5.0), (10.0, 5.0), ["In 1 comparison by"]),
    ((math.nan, math.nan), (30.0, 6.0), ["APTS does not reach the target in most runs; SGD does with 30 s"] + ["SGD does with 6 passes"]),
    ((10.0, 5.0), (math.nan, math.nan), ["In 1 comparison by"]),
])  # fmt: skip
def test_where_apts_does_not_win(ours: tuple[float, float], theirs: tuple[float, float], words: list[str]) -> None:
    runs = [point(name, target_seconds=s, target_passes=p) for name, (s, p) in (("APTS", ours), ("SGD", theirs))]
    points = few(*runs)
    found = report_words.losses(points, all_series(points))
    assert len(found) == len(words) and all(word in text for word, text in zip(words, found, strict=True)), found


def test_those_ahead_share_a_sentence() -> None:
    runs = [point(name, target_seconds=s, target_passes=1.0) for name, s in (("APTS", 12.0), ("SGD", 4.0), ("local SGD", 6.0))]
    points = few(*runs)
    [found] = report_words.losses(points, all_series(points))
    assert found.endswith("APTS needs 12 s to the target, SGD 4 (3 times as long), local SGD 6 (2 times as long).")


def test_the_best_apts_method_stands_for_all() -> None:
    runs = [point(target_seconds=seconds, target_passes=1.0, per_rank=k) for k, seconds in ((1, 9.0), (2, 3.0))]
    points = few(*runs, point("SGD", target_seconds=5.0, target_passes=2.0))
    assert "never needed more" in report_words.losses(points, all_series(points))[0]
    crowded = few(*(replace(p, oversubscribed=True) for p in points.points))
    assert "never needed more" in report_words.losses(crowded, all_series(crowded))[0]  # seconds of oversubscribed runs are not compared


def test_one_rank_count_has_no_picture_of_speed_ups(tmp_path: Path) -> None:
    for ranks, wanted in (((2,), False), ((1, 2), True)):
        made = write_report(few(*(point(ranks=P) for P in ranks)), tmp_path / str(len(ranks)))
        assert any(path.name == "speedup-real.png" for path in made) is wanted


def test_nothing_to_compare_is_said() -> None:
    alone = few(point())
    assert "no method beside APTS" in report_words.losses(alone, all_series(alone))[0]
    free = few(point(), target=math.inf)
    assert "no target accuracy" in report_words.losses(free, all_series(free))[0]


def test_mixed_origins_are_loud() -> None:
    other = {**MACHINE, "git_commit": "badcafe", "hosts": ["n2", "n2"]}
    found = report_words.warnings(few(point(), point(repetition=1, machine=other)))
    assert found == [
        "The runs come from 2 different commits: badcafe; c0ffee.", "The runs on 1 node come from 2 different sets of hosts: n1; n2.",
    ]  # fmt: skip
    assert report_words.warnings(few(point(), point(nodes=2, ranks=2, machine={**MACHINE, "hosts": ["n1", "n2"]}))) == []


def test_few_values_are_owned_up_to() -> None:
    points = few(*(point(repetition=k) for k in range(5)))
    text = " ".join(report_words.methods(points, all_series(points)))
    assert "The smallest case has 5 runs. With fewer than 6 values the interval is the range at best" in text and "93.8 %" in text


def test_predictions_off_by_more_than_ten_per_cent() -> None:
    points = few(point(), point(ranks=2, oversubscribed=True), point("SGD", scalings=("strong", "weak")))
    guesses = predictions(points, 1.04)
    guesses[points.points[0].run]["seconds"] *= 1.2
    table = report_tables.errors(all_series(points), guesses)
    assert [row[-2:] for row in table.rows] == [("+24.8", "NO"), ("+4.0", "yes")] and "1 of 2 cases" in table.caption
    assert [row[0] for row in table.rows] == ["strong", "strong and weak"]  # the shared case stands there once


SHAKY = (1.0, 1.0, 0.9, 1.15, 1.2)  # of repetitions


def shaky(method: str = "APTS", ranks: int = 1, factor: float = 1.0, **changes: object) -> list[Point]:
    """Five runs whose seconds differ by a third."""
    return [point(method, ranks=ranks, repetition=k, iteration_seconds=factor * wobble, **changes) for k, wobble in enumerate(SHAKY)]


def test_a_machine_that_was_not_quiet_is_told_at_the_top(tmp_path: Path) -> None:
    quiet = [point("SGD", repetition=k) for k in range(5)]
    crowded = [replace(run, oversubscribed=True) for run in shaky("SGD", 4)]
    both = shaky(scalings=("strong", "weak"))  # one case
    points = few(*both, *shaky(ranks=2), *quiet, *crowded)
    write_report(points, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    told = (
        "**WARNING: 2 of 3 cases are noisy: their 95 % intervals of the seconds of an outer iteration are wider than 20 % of the median; "
        "the machine was not quiet.**"
    )
    assert text.split("\n\n")[1] == told
    assert "not tried; 2 cases noisy, 0 runs begun on a busy machine." in text
    assert "of the median): APTS, strong, real network, 1 rank; APTS, strong, real network, 2 ranks." in text
    assert report_words.noise(all_series(few(*quiet))) == []
    assert report_words.noise(all_series(few(*shaky())))[0].startswith("1 of 1 case is noisy: its 95 % interval of the seconds")


def test_no_parallel_share_is_said_in_words() -> None:
    """A p of -6 means that two ranks take four times as long as one; an interval may begin there."""
    slower = all_series(few(*shaky(), *shaky(ranks=2, factor=4.0)))
    names = [row[-1] for row in report_tables.fits(slower, math.inf).rows]
    assert names[0] == "none: slower on 2 ranks"
    mixed = [point(ranks=2, repetition=k, iteration_seconds=seconds) for k, seconds in enumerate((2.0, 0.6, 0.6, 0.6, 1.4))]
    values = [row[-1] for row in report_tables.fits(all_series(few(*shaky(), *mixed)), math.inf).rows]
    assert re.fullmatch(r"0\.\d+ \[none, [\d.]+\]", values[0])


def test_what_the_cost_model_misses_is_a_warning() -> None:
    points = few(*shaky(), *shaky(ranks=2), point("SGD"))
    guesses = predictions(points, 1.0)
    for run in points.points[:5]:
        guesses[run.run]["seconds"] = 0.5
    [told] = report_words.trust(all_series(points), guesses)
    assert told.startswith("WARNING: The cost model misses 1 of 3 cases measured here by more than 10 %, at worst by -50 %:")
    assert report_words.trust(all_series(points), predictions(points)) == report_words.trust(all_series(points), {}) == []


def test_the_smallest_study(tmp_path: Path) -> None:
    write_report(few(point(), target=math.inf), tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "there is no speed-up" in text and "Predicted and measured" not in text and "Time to the target" not in text
    assert not (tmp_path / "figures/target-strong-real.png").exists()


def test_no_points_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished run, so nothing to report"):
        write_report(few(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
