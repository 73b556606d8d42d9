"""The table of the fault list: what counts as shown, and that it can say no."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
import table

PARALLEL, SOLVER, LAUNCH = "tests/parallel/test_a.py::test_x", "tests/solver/test_b.py::test_y[1]", "tests/launch/test_c.py::test_z"


def entry(test: str, line: int, outcome: str = "passed", mpi: str = "mpich", ranks: int = 0, rank: int = 0) -> dict[str, Any]:
    return {"test": test, "lines": [line], "outcome": outcome, "mpi": mpi, "ranks": ranks, "rank": rank, "seconds": 0.5}


def write(folder: Path, *entries: dict[str, Any]) -> Path:
    """As the recorder does: a file a process."""
    for number, one in enumerate(entries):
        begun = {**one, "outcome": "begun"}
        lines = [begun] if one["outcome"] == "begun" else [begun, one]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def cells(folder: Path, number: int, *mpis: str) -> list[str]:
    lines = table.read_lines()
    table.merge(lines, table.read_entries(folder))
    return table.verdicts(lines[number], list(mpis), slurm=False)


def test_the_list_has_68_lines() -> None:
    lines = table.read_lines()
    assert list(lines) == list(range(1, 69)) and {line.where for line in lines.values()} == {"T", "2r", "3r", "4r", "slurm", "gpu"}
    assert all(line.what and len(line.what) < 160 for line in lines.values())


@pytest.mark.parametrize(("found", "wanted"), [
    ([entry(PARALLEL, 1, ranks=3)], ["yes", "NO"]),
    ([entry(PARALLEL, 1, ranks=3), entry(PARALLEL, 1, ranks=3, mpi="openmpi")], ["yes", "yes"]),
    ([entry(PARALLEL, 1, ranks=2), entry(SOLVER, 1)], ["NO", "NO"]),  # the line needs three ranks
    ([entry(LAUNCH, 1), entry(LAUNCH, 1, mpi="openmpi")], ["yes", "yes"]),  # starts them itself
    ([entry(LAUNCH, 1), entry(PARALLEL, 1, "failed", ranks=3, rank=2)], ["NO", "NO"]),
    ([entry(LAUNCH, 1), entry(PARALLEL, 1, "begun", ranks=3)], ["NO", "NO"]),  # a hang
    ([entry(PARALLEL, 1, "skipped", ranks=3)], ["NO", "NO"]),
    ([], ["NO", "NO"]),
])  # fmt: skip
def test_a_line_is_shown_where_it_says(tmp_path: Path, found: list[dict[str, Any]], wanted: list[str]) -> None:
    assert cells(write(tmp_path, *found), 1, "mpich", "openmpi") == wanted


def test_lines_without_ranks_and_on_no_gpu(tmp_path: Path) -> None:
    write(tmp_path, entry(SOLVER, 2), entry(PARALLEL, 51, ranks=2))
    assert cells(tmp_path, 2, "mpich", "openmpi") == ["yes", "-"]
    assert cells(tmp_path, 51, "mpich") == ["simulated", "-"]
    assert cells(tmp_path, 46, "mpich") == ["needs Slurm"] * 2
    assert cells(write(tmp_path, entry(LAUNCH, 38)), 38, "mpich") == ["yes", "not run"]


def test_a_mark_that_is_no_line_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="marked as fault 69, which"):
        table.merge(table.read_lines(), table.read_entries(write(tmp_path, entry(SOLVER, 69))))


def test_the_page_is_written_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nEARLIER\n{table.END}\nafter\n")
    monkeypatch.setattr(table, "PAGE", page)
    write(tmp_path, entry(SOLVER, 2), entry(LAUNCH, 1, "begun"))
    assert table.main([str(tmp_path), "--write"]) == 1  # 67 are missing
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "EARLIER" not in text
    assert "| 2 | infinite trial loss" in text and "`solver/test_b.py::test_y`" in text
    assert "1 of 68 lines shown" in capsys.readouterr().out
    assert table.main([str(tmp_path), "--check"]) == 1
    out = capsys.readouterr().out
    assert "hangs: tests/launch/test_c.py::test_z" in out and "1 hangs, slowest 0.5 s" in out and "the page" not in out
    write(tmp_path, entry("tests/solver/test_other.py::test_y", 2), entry(LAUNCH, 1, "begun"))
    table.main([str(tmp_path), "--check"])
    out = capsys.readouterr().out
    assert "the page alone has solver/test_b.py::test_y" in out and "the page lacks solver/test_other.py::test_y" in out


def test_the_recorder_writes_what_happened(pytester_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks of functions, modules and several at once; failures, skips, and errors in fixtures."""
    import subprocess

    (pytester_folder / "conftest.py").write_text((Path(__file__).parents[1] / "conftest.py").read_text())
    (pytester_folder / "faults").symlink_to(Path(__file__).parent)
    (pytester_folder / "test_some.py").write_text(
        "import pytest\npytestmark = pytest.mark.fault(7)\n"
        "@pytest.mark.fault(3)\n@pytest.mark.fault(4)\ndef test_good(): pass\n"
        "def test_bad(): assert False\ndef test_skipped(): pytest.skip('why')\n"
        "@pytest.fixture\ndef broken(): raise OSError\ndef test_broken(broken): pass\n"
    )
    (pytester_folder / "pytest.ini").write_text("[pytest]\nmarkers = fault: a line\n")
    out = pytester_folder / "out"
    monkeypatch.setenv("APTS_FAULTS", str(out))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_some.py"]
    subprocess.run(command, cwd=pytester_folder, timeout=60, capture_output=True, check=False)
    found = {entry["test"].split("::")[1]: (entry["lines"], entry["outcome"]) for entry in table.read_entries(out)}
    assert found == {
        "test_good": ([3, 4, 7], "passed"), "test_bad": ([7], "failed"), "test_skipped": ([7], "skipped"), "test_broken": ([7], "failed"),
    }  # fmt: skip


@pytest.fixture
def pytester_folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    return tmp_path / "inner"
