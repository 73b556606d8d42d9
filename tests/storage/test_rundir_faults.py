"""A run directory that is taken up again, shared by mistake, lost on the way, or damaged afterwards."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import pytest
from test_records import FACTS, PARAMETERS, completion, extra, filled, info, start

from apts_mpi import rundir
from apts_mpi.lock import LockError
from apts_mpi.regular import SUM, DataError
from apts_mpi.rundir import finished, read_run
from apts_mpi.storage import lines, records
from apts_mpi.storage.lines import Lines
from apts_mpi.storage.records import RunDirectory

CONFIG = 'preset = "default"\n'


def iterations(path: Path) -> list[int]:
    return read_run(path).columns["iteration"].tolist()  # type: ignore[no-any-return]


def resumed(path: Path, text: bytes, **options: Any) -> RunDirectory:
    return RunDirectory.resume(path, text, options.pop("config", CONFIG), {"note": "again"}, **options)


def stopped(path: Path, done: int = 5, saved: int = 3) -> bytes:
    """A run that ended after ``done`` iterations, and its records after ``saved``."""
    run, text = start(path), b""
    for k in range(done):
        run.append(info(k), extra(k), {"local solve": 0.5})
        text = run.text() if k + 1 == saved else text
    run.close()
    return text


@pytest.mark.parametrize("damage", ["none", "gone", "cut", "other", "longer"])
def test_a_run_goes_on_where_its_records_were_saved(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "run"
    text = stopped(path)
    assert text.count(b"\n") == 4 and (path / "records.csv").read_bytes().startswith(text)
    if damage == "gone":
        (path / "records.csv").unlink()
    elif damage != "none":
        (path / "records.csv").write_bytes({"cut": text[:-30], "other": b"iteration\n7\n", "longer": text + b"\0" * 10**6}[damage])
    run = resumed(path, text)
    assert run.text() == text == (path / "records.csv").read_bytes()
    for k in range(3, 6):
        run.append(info(k), extra(k), {"local solve": 0.5})
    run.finish(completion(6), PARAMETERS)
    whole = filled(tmp_path / "whole", 6)
    assert (path / "records.csv").read_bytes() == (whole / "records.csv").read_bytes()
    with h5py.File(path / "records.h5") as ours, h5py.File(whole / "records.h5") as theirs:
        for name in read_run(path).columns:
            assert ours[name].dtype == theirs[name].dtype
            np.testing.assert_array_equal(ours[name][()], theirs[name][()])
    assert read_run(path).provenance["seed"] == 3 and json.loads((path / "resumed-1.json").read_text()) == {"note": "again"}


def test_a_run_goes_on_before_its_first_record(tmp_path: Path) -> None:
    stopped(tmp_path / "run", 2)
    for _ in range(2):
        run = resumed(tmp_path / "run", b"")
        run.append(info(0), {"other": 1.0})
        run.close()
    assert list(read_run(tmp_path / "run").columns)[-1] == "other" and iterations(tmp_path / "run") == [0]
    assert (tmp_path / "run" / "resumed-2.json").exists()


def test_what_cannot_be_resumed_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no run directory of apts-mpi"):
        resumed(tmp_path, b"")
    path = filled(tmp_path / "run")
    text, before = (path / "records.csv").read_bytes(), sorted(path.iterdir())
    with pytest.raises(FileExistsError, match="has finished"):
        resumed(path, text)
    assert sorted(path.iterdir()) == before
    run = resumed(path, text, reopen=True, config='preset = "paper"\n')
    assert read_run(path).completion is None and read_run(path).config == 'preset = "paper"\n'
    assert (path / "config-until-1.toml").read_text() == CONFIG
    run.close()


def test_an_earlier_run_takes_its_checkpoints_and_resumptions_with_it(tmp_path: Path) -> None:
    path = tmp_path / "run"
    text = stopped(path)
    resumed(path, text, config="x = 1\n").close()
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "000001.json").write_text("{}")
    (path / ".records.h5.tmp").write_text("left by a kill")
    start(path).close()
    assert not (path / "checkpoints").exists() and (path / "earlier-1" / "checkpoints" / "000001.json").exists()
    names = {"checkpoints", "config.toml", "config-until-1.toml", "provenance.json", "records.csv", "resumed-1.json"}
    assert {entry.name for entry in (path / "earlier-1").iterdir()} == names
    for left in ("lock", ".provenance.json.tmp", ".lock.abc.tmp"):  # killed before the first file was there
        folder = tmp_path / left
        folder.mkdir()
        (folder / left).write_text("")
        os.utime(folder / left, (0, 0))
        with pytest.warns(UserWarning, match="taken over") if left == "lock" else pytest.MonkeyPatch.context():
            start(folder).close()


@pytest.mark.fault(56)
def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "run"
    code = "import sys, signal; sys.path.insert(0, sys.argv[2]); from pathlib import Path; from test_records import *\n"
    code += "run = start(Path(sys.argv[1])); run.append(info(0), extra(0)); print('go', flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code, str(path), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "go\n"
        for attempt in (lambda: start(path), lambda: resumed(path, b"")):
            with pytest.raises(LockError, match=f"process {child.pid} .* delete {path}/lock"):
                attempt()
        assert iterations(path) == [0]
        child.send_signal(signal.SIGKILL)
    said: list[str] = []
    run = resumed(path, (path / "records.csv").read_bytes(), warn=said.append)
    assert "was taken over" in said[0]
    run.append(info(1), extra(1))
    run.close()
    assert iterations(path) == [0, 1] and not (path / "lock").exists()


@pytest.mark.fault(56)
def test_a_run_whose_folder_was_taken_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apts_mpi.lock.TOUCH", 0.0)
    run, lock = start(tmp_path / "run"), tmp_path / "run" / "lock"
    run.append(info(0), extra(0))
    ours = lock.read_bytes()
    lock.unlink()
    run.append(info(1), extra(1))
    assert lock.read_bytes() == ours  # deleted by mistake: it is there again
    lock.unlink()
    code = "import os, sys; from pathlib import Path; from apts_mpi.lock import RunLock; RunLock.take(Path(sys.argv[1])); os._exit(0)"
    subprocess.run([sys.executable, "-c", code, str(lock)], check=True, timeout=30)
    with pytest.raises(LockError, match="has taken the lock from us"):
        run.append(info(2), extra(2))
    run.close()
    assert lock.exists()


@pytest.mark.fault(66)
def test_a_folder_that_is_gone_for_a_while_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LOOK", 0.0)
    monkeypatch.setattr("apts_mpi.lock.TOUCH", 0.0)
    path, said = tmp_path / "run", list[str]()
    run = start(path, warn=said.append)
    run.append(info(0), extra(0))
    shutil.rmtree(path)
    for k in range(1, 4):
        run.append(info(k), extra(k))
    assert len(said) == 1 and "records.csv" in said[0] and "the run goes on" in said[0]
    assert run.text().count(b"\n") == 5
    with pytest.raises(FileNotFoundError, match=str(path / "records.csv")):
        run.finish(completion(4), PARAMETERS)
    path.mkdir()
    run.append(info(4), extra(4))
    assert iterations(path) == [0, 1, 2, 3, 4] and read_run(path).config == CONFIG
    (aside := tmp_path / "aside").mkdir()
    path.rename(aside / "run")  # and one that is moved away and back
    run.append(info(5), extra(5))
    (aside / "run").rename(path)
    run.append(info(6), extra(6))
    run.finish(completion(7), PARAMETERS)
    assert iterations(path) == list(range(7)) and read_run(path).completion is not None
    assert len(said) == 2


@pytest.mark.fault(66)
def test_a_folder_that_is_read_only_for_a_while_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere, so the file system says no here."""
    monkeypatch.setattr(records, "SAVE_EVERY", 0.0)
    path, said = tmp_path / "run", list[str]()
    run = start(path, warn=said.append)
    run.append(info(0), extra(0))
    open_, file = os.open, run._lines._file

    class ReadOnly:
        def write(self, data: bytes) -> int:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

    def refusing(name: Any, flags: int, *more: int, **others: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(name))
        return open_(name, flags, *more, **others)

    with monkeypatch.context() as patched:
        patched.setattr(run._lines, "_file", ReadOnly())
        patched.setattr(os, "open", refusing)
        for k in range(1, 4):
            run.append(info(k), extra(k))
        with pytest.raises(OSError, match=f"Read-only.*{path}/records.csv"):
            run.finish(completion(4), PARAMETERS)
    assert sorted(text.split("'")[1].rpartition("/")[2] for text in said) == ["records.csv", "records.h5"]
    assert iterations(path) == [0]
    run.append(info(4), extra(4))
    run.finish(completion(5), PARAMETERS)
    assert iterations(path) == list(range(5))


def test_records_of_a_long_run_cost_little_memory(tmp_path: Path) -> None:
    """In a process of its own: the peak of 20,000 iterations over that of 1,000."""
    code = """
import resource, sys; sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_records import *
run = start(Path(sys.argv[1]))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for k in range(20_000):
    run.append(info(k), extra(k), {f"region {i}": 0.1 for i in range(8)})
    if k == 1000:
        run.save(); before = peak()
run.save()
print(peak() - before, run._columns.names.__len__())
run.close()
"""
    command = [sys.executable, "-c", code, str(tmp_path / "run"), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    grown, columns = map(int, done.stdout.split())
    values = 8 * 20_000 * columns / 1024  # KiB
    assert columns > 25 and grown < 4 * values  # the arrays, and the image of records.h5 twice in passing


@pytest.mark.fault(68)
def test_killed_while_it_writes_the_metrics_are_read_up_to_there(tmp_path: Path) -> None:
    """kill -9 at moments of its own, and cut anywhere in the last line as a power cut does."""
    code = "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; from test_records import *\n"
    code += "run = start(Path(sys.argv[1]))\n"
    code += "for k in range(10**6):\n    run.append(info(k), extra(k))\n    if k == int(sys.argv[3]): print('go', flush=True)"
    for number, after in enumerate((0, 17, 300)):
        path = tmp_path / str(number)
        command = [sys.executable, "-c", code, str(path), str(Path(__file__).parent), str(after)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None and child.stdout.readline() == "go\n"
            child.send_signal(signal.SIGKILL)
        found = iterations(path)
        assert len(found) > after and found == list(range(len(found)))
        raw = (path / "records.csv").read_bytes()
        last = raw.rstrip(b"\n").rfind(b"\n") + 1
        for cut in range(last, len(raw), 9):
            (path / "records.csv").write_bytes(raw[:cut])
            assert iterations(path) == found[:-1]


@pytest.mark.fault(42)
def test_no_damaged_completion_record_is_taken_for_success(tmp_path: Path) -> None:
    path = filled(tmp_path / "run")
    file, told = path / "completion.json", read_run(path).completion
    raw, refused = file.read_bytes(), 0
    assert finished(path, CONFIG) and not finished(path, CONFIG + " ")
    for k in range(len(raw)):
        for bit in (1, 16):
            file.write_bytes(raw[:k] + bytes([raw[k] ^ bit]) + raw[k + 1 :])
            try:
                found = read_run(path).completion
            except DataError as error:
                assert str(file) in str(error) and not finished(path, CONFIG)
                refused += 1
            else:
                assert repr(found) == repr(told), k  # white space
        file.write_bytes(raw[:k])
        with pytest.raises(DataError, match="if it is damaged, move it away") if k < len(raw) - 1 else pytest.MonkeyPatch.context():
            read_run(path)
    assert refused > 1.5 * len(raw)


@pytest.mark.fault(64)
def test_a_completion_record_of_the_first_format_is_read(tmp_path: Path) -> None:
    path = filled(tmp_path / "run")
    values = json.loads((path / "completion.json").read_text())
    assert values["format_version"] == 2
    old = {name: value for name, value in values.items() if name not in (SUM, "format_version")}
    (path / "completion.json").write_text(json.dumps(old))
    assert read_run(path).completion is not None
    for change, words in (({"iterations": "3"}, "something else than a int"), ({"format_version": 3}, "of another version")):
        (path / "completion.json").write_text(json.dumps({**old, **change}))
        with pytest.raises(DataError, match=words):
            read_run(path)


@pytest.mark.fault(35)
@pytest.mark.parametrize("name", [rundir.CONFIG, rundir.PROVENANCE, rundir.RECORDS, rundir.TIMING, rundir.COMPLETION, rundir.PARAMETERS])
def test_no_file_of_a_run_may_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    path = filled(tmp_path / "run")
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=f"{name}: leads out of its folder"):
        records.read_parameters(path) if name == rundir.PARAMETERS else read_run(path)


def test_facts_are_kept(tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    resumed(tmp_path / "run", b"").close()
    assert FACTS["seed"] == read_run(tmp_path / "run").provenance["seed"]


def test_where_no_more_files_may_be_open_a_checkpoint_fails_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Lines(tmp_path / "records.csv")
    kept.add(b"a\n")
    kept.flush()
    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", mock.Mock(side_effect=OSError(errno.EMFILE, os.strerror(errno.EMFILE))))
        read = kept.later()
    with pytest.raises(OSError, match=r"Too many open files: .*records\.csv"):
        read()
    assert kept.text() == b"a\n"
    kept.close()
