"""The run directory: what is written when, what survives a kill or a full disk, and what is refused on reading."""

from __future__ import annotations

import io
import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from apts_mpi import rundir
from apts_mpi.contracts import Status, StepInfo
from apts_mpi.regular import SUM
from apts_mpi.rundir import Completion, parse_columns, read_run
from apts_mpi.storage import records, sealed
from apts_mpi.storage.files import DataError
from apts_mpi.storage.parameters import write_parameters
from apts_mpi.storage.plain import write_atomic
from apts_mpi.storage.records import RunDirectory, digest, read_parameters
from apts_mpi.storage.sealed import write_sealed
from apts_mpi.timing import Timers

FACTS: dict[str, object] = {"seed": 3, "hosts": ["node-ä"], "note": math.nan}
PARAMETERS = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a/odd name": np.array(1.5),
    "A.bias": np.empty(0, np.float32),
}


def info(k: int, **changes: Any) -> StepInfo:
    values: dict[str, Any] = {
        "k": k,
        "epoch": k // 2,
        "loss": 0.1 + k / 3,
        "grad_norm": 1e-300,
        "rho": math.nan,
        "accepted": k % 2 == 0,
        "radius": 2.0**-k,
        "step_norm": 0.25,
        "global_rho": math.inf,
        "global_accepted": True,
        "global_radius": 0.5,
        "local_iters": 10,
        "local_accepted": 9,
        "loss_new": 0.1,
        "gradient_samples": 20_000,
        "value_samples": 5,
        "reductions": 3,
        "status": Status.STATIONARY,
    }
    return StepInfo(**values | changes)


def extra(k: int) -> dict[str, float | None]:
    return {"epoch": k / 2, "time": 0.1 * k, "eta": None, "passes": 7.0 * k, "accuracy": 90.0 + k if k % 2 else None}


def completion(iterations: int = 3) -> Completion:
    return Completion("epochs done", iterations, 1.5, 7, 2, 1, 0.5, math.nan, 21.0, 9, 12, 3456, 1.25, "ab" * 32)


def timer_rows(ranks: int = 2) -> list[list[float]]:
    timers = Timers(clock=iter(range(0, 10**12, 10**9)).__next__)  # every look at the clock takes 1 s
    timers.phase("run")
    with timers("local solve"):
        pass
    timers.count("reduce", 3, 300)
    return [timers.row() for _ in range(ranks)]


def start(path: Path, **options: Any) -> RunDirectory:
    return RunDirectory.create(path, "train", 'preset = "default"\n', FACTS, **options)


def filled(path: Path, iterations: int = 3) -> Path:
    run = start(path)
    for k in range(iterations):
        run.append(info(k), extra(k), {"local solve": 0.5})
    run.finish(completion(iterations), PARAMETERS, timer_rows())
    return path


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writing beyond ``size`` bytes of a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_everything_comes_back(tmp_path: Path) -> None:
    run = read_run(filled(tmp_path / "r ü n"))
    assert run.name == "r ü n" and run.config == 'preset = "default"\n'
    assert run.provenance["seed"] == 3 and run.provenance["hosts"] == ["node-ä"] and run.provenance["note"] is None
    assert run.columns["iteration"].tolist() == [0, 1, 2] and run.columns["iteration"].dtype == np.int64
    assert run.columns["loss"].tolist() == [0.1, 0.1 + 1 / 3, 0.1 + 2 / 3]  # to the last bit
    assert run.columns["epoch"].tolist() == [0.0, 0.5, 1.0]
    assert run.columns["accepted"].tolist() == [1, 0, 1]
    assert np.isnan(run.columns["rho"]).all() and np.isinf(run.columns["global_rho"]).all()
    np.testing.assert_array_equal(run.columns["accuracy"], [math.nan, 91.0, math.nan])
    assert run.columns["status"].tolist() == [Status.STATIONARY.value] * 3
    assert run.columns["seconds_local_solve"].tolist() == [0.5] * 3
    assert run.completion is not None and math.isnan(run.completion.accuracy)
    assert run.completion.status == "epochs done" and run.completion.seconds == 1.25
    lines = {(line.phase, line.region): line for line in run.times}
    assert lines["run", "local solve"].calls == 1 and lines["run", "local solve"].mean == 1.0
    assert lines["run", "reduce"].messages == 3 and lines["run", "reduce"].bytes == 300


def test_pandas_and_xarray_read_in_one_line(tmp_path: Path) -> None:
    pandas, xarray = pytest.importorskip("pandas"), pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    path = filled(tmp_path / "run")
    frame = pandas.read_csv(path / "records.csv")
    columns = read_run(path).columns
    assert list(frame) == list(columns)
    with xarray.open_dataset(path / "records.h5", engine="h5netcdf") as data:
        assert dict(data.sizes) == {"iteration": 3} and set(data.variables) == set(columns)
        assert data["time"].attrs["units"] == "s" and data["accuracy"].attrs["units"] == "percent"
        for name, column in columns.items():
            np.testing.assert_array_equal(data[name].values.astype(column.dtype), column)
            np.testing.assert_array_equal(frame[name].to_numpy().astype(column.dtype), column)
    with xarray.open_dataset(path / "records.h5", engine="h5netcdf", group="timing/run") as data:
        assert data["local solve"].values.tolist() == [1.0, 1.0]
        assert data["local solve"].attrs["calls"].tolist() == [1, 1]


def test_records_grow_line_by_line_and_the_completion_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(tmp_path / "run")
    run.append(info(0), extra(0))
    seen = read_run(tmp_path / "run")
    assert seen.columns["iteration"].tolist() == [0]
    assert seen.completion is None and seen.times == []
    order: list[str] = []

    def watched(path: Path, data: bytes) -> None:
        order.append(path.name)
        write_atomic(path, data)

    monkeypatch.setattr(records, "write_atomic", watched)
    monkeypatch.setattr(sealed, "write_atomic", watched)
    run.finish(completion(1), PARAMETERS, timer_rows())
    assert order == ["timing.csv", "records.h5", "parameters.h5", "completion.json"]


@pytest.mark.fault(65)
def test_atomic_write_is_file_sync_rename_folder_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        order.append("sync " + Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        sync(handle)

    def renamed(self: Path, target: Path) -> Path:
        order.append(f"rename {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_atomic(tmp_path / "file", b"data")
    assert len(order) == 3 and order[0] != "sync file"
    assert order[1:] == ["rename file", f"sync {tmp_path.name}"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_failed_atomic_write_keeps_the_old_file_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with file_size_limit(100), pytest.raises(OSError, match="file") as caught:
        write_atomic(path, bytes(1000))
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old" and [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.fault(68)
@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_cut_last_line_is_left_out(tmp_path: Path, cut: int) -> None:
    path = filled(tmp_path / "run") / "records.csv"
    (path.parent / "completion.json").unlink()
    path.write_bytes(path.read_bytes()[:-cut])
    run = read_run(path.parent)
    assert run.columns["iteration"].tolist() == [0, 1]
    assert run.columns["radius"].tolist() == [1.0, 0.5]


@pytest.mark.fault(68)
def test_garbage_after_whole_lines_is_left_out(tmp_path: Path) -> None:
    path = filled(tmp_path / "run") / "records.csv"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"records\.csv is damaged: it is not the file that the run left"):
        read_run(path.parent)
    path.write_bytes(path.read_bytes()[:-1])
    (path.parent / "completion.json").unlink()  # a run that has not ended does not vouch for it
    for garbage in (b"\0" * 500, b"1,2,3\n", b"\xff\xfe\n", b"x" + path.read_bytes().splitlines(keepends=True)[-1]):
        whole = path.read_bytes()
        path.write_bytes(whole + garbage)
        assert read_run(path.parent).columns["iteration"].tolist() == [0, 1, 2]
        path.write_bytes(whole)
    path.write_bytes(b"iter")  # not even the heading is whole
    assert read_run(path.parent).columns == {}


@pytest.mark.fault(68)
def test_killed_between_two_lines_the_records_are_whole(tmp_path: Path) -> None:
    code = """
import sys; sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_records import info, extra, start
run = start(Path(sys.argv[1]))
k = 0
while True:
    run.append(info(k), extra(k)); k += 1
    if k == 20: print("go", flush=True)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "run"), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "go\n"
        child.send_signal(signal.SIGKILL)
    run = read_run(tmp_path / "run")
    count = len(run.columns["iteration"])
    assert count >= 20 and run.columns["iteration"].tolist() == list(range(count))
    assert run.completion is None


def test_a_full_disk_is_told_once_and_caught_up_later(tmp_path: Path) -> None:
    said: list[str] = []
    run = start(tmp_path / "run", warn=said.append)
    run.append(info(0), extra(0))
    size = (tmp_path / "run" / "records.csv").stat().st_size
    with file_size_limit(size + 50):
        for k in range(1, 6):
            run.append(info(k), extra(k))
        assert len(said) == 1 and "records.csv" in said[0] and "try again" in said[0]
        assert (tmp_path / "run" / "records.csv").stat().st_size == size  # no half line
        assert read_run(tmp_path / "run").columns["iteration"].tolist() == [0]
        with pytest.raises(OSError, match="records.csv"):
            run.finish(completion(6), PARAMETERS)
        assert not (tmp_path / "run" / "completion.json").exists()
    run.append(info(6), extra(6))
    run.finish(completion(7), PARAMETERS)
    assert read_run(tmp_path / "run").columns["iteration"].tolist() == list(range(7))
    assert len(said) == 1


def test_the_hdf5_copy_is_written_every_so_often_and_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    run = start(tmp_path / "run", warn=said.append)
    run.append(info(0), extra(0))
    assert not (tmp_path / "run" / "records.h5").exists()
    monkeypatch.setattr(records, "SAVE_EVERY", 0.0)
    run.append(info(1), extra(1))
    with h5py.File(tmp_path / "run" / "records.h5") as file:
        assert file["iteration"][()].tolist() == [0, 1]
    with file_size_limit(2_000):
        run.append(info(2), extra(2))
    assert len(said) == 1 and "records.h5" in said[0]
    with h5py.File(tmp_path / "run" / "records.h5") as file:  # the old one is still whole
        assert file["iteration"][()].tolist() == [0, 1]
    run.close()


def test_a_run_without_iterations_and_one_that_failed(tmp_path: Path) -> None:
    empty = read_run(filled(tmp_path / "empty", 0))
    assert empty.columns == {} and empty.completion is not None
    run = start(tmp_path / "failed")
    run.close()
    run.close()
    assert read_run(tmp_path / "failed").completion is None


def test_a_new_column_is_refused(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    run.append(info(0), {"time": 0.0})
    with pytest.raises(ValueError, match="no column passes"):
        run.append(info(1), {"time": 1.0, "passes": 1.0})
    run.append(info(1), {})  # a missing one is nan
    assert np.isnan(read_run(tmp_path / "run").columns["time"][1])
    run.close()


def test_folders_are_fresh_or_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = [RunDirectory.create("", "näme", "", {}) for _ in range(3)]
    assert len({run.path for run in made}) == 3
    assert all(run.path.parent == Path("runs") and "-näme" in run.path.name for run in made)
    for run in made:
        run.close()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("important")
    with pytest.raises(FileExistsError, match="theirs is not empty"):
        start(tmp_path / "theirs")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="run.dir .*file is a file; give a new or an empty folder"):
        start(tmp_path / "file")
    for name in ("", "..", "a/b", "a\0b"):
        with pytest.raises(ValueError, match="run.name"):
            RunDirectory.create("", name, "", {})
    with pytest.raises(OSError, match="name too long.*x{300}"):
        RunDirectory.create("", "x" * 300, "", {})


def test_an_earlier_run_is_moved_aside_and_not_lost(tmp_path: Path) -> None:
    filled(tmp_path / "run", 3)
    filled(tmp_path / "run", 2)
    start(tmp_path / "run").close()
    assert read_run(tmp_path / "run").completion is None
    counts = [len(read_run(tmp_path / "run" / f"earlier-{i}").columns["iteration"]) for i in (1, 2)]
    assert counts == [3, 2]
    assert read_parameters(tmp_path / "run" / "earlier-1").keys() == PARAMETERS.keys()


def test_parameters_keep_names_shapes_types_and_order(tmp_path: Path) -> None:
    found = read_parameters(filled(tmp_path / "run"))
    assert list(found) == list(PARAMETERS)
    for name, array in PARAMETERS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
    with h5py.File(tmp_path / "run" / "parameters.h5") as file:
        assert file.attrs["n_params"] == 7


def test_digest_depends_on_values_and_not_on_memory_order() -> None:
    theta = np.arange(5, dtype=np.float32)
    twin = np.arange(10, dtype=np.float32)[::2] / 2
    assert digest(theta) == digest(twin) == digest(theta.astype(">f4"))
    assert digest(theta) != digest(theta[::-1]) and digest(theta) != digest(theta.astype(np.float64))


def attack(path: Path, kind: str) -> None:
    """Put something that is no plain data into a parameters file, and seal it again."""
    with h5py.File(path, "a") as file:
        if kind == "external link":
            file["evil"] = h5py.ExternalLink("/etc/secret.h5", "/data")
        elif kind == "soft link":
            file["evil"] = h5py.SoftLink("/b.weight")
        elif kind == "hard link loop":
            file.create_group("group")["evil"] = file["/"]
        elif kind == "second name":
            file["evil"] = file["b.weight"]
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4,), "f4")
            layout[:] = h5py.VirtualSource("/nowhere.h5", "x", (4,))
            file.create_virtual_dataset("evil", layout)
        elif kind == "external storage":
            file.create_dataset("evil", (4,), "f4", external=[("/etc/passwd", 0, 16)])
        elif kind == "shape bomb":
            file.create_dataset("evil", (10**13,), "f4", chunks=(1024,))
        elif kind == "gzip":
            file.create_dataset("evil", data=np.zeros(10**6), compression="gzip")
        elif kind == "named type":
            file["evil"] = np.dtype("f4")
        elif kind == "depth":
            file.create_group("/".join("g" * 40))
    write_sealed(path, io.BytesIO(path.read_bytes()))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("external link", "links are refused"),
        ("soft link", "links are refused"),
        ("hard link loop", "links are refused"),
        ("second name", "links are refused"),
        ("virtual", "virtual dataset"),
        ("external storage", "another file"),
        ("shape bomb", "claims 40000000000000 bytes"),
        ("gzip", "is compressed"),
        ("named type", "neither a dataset nor a group"),
        ("depth", "at most 16 deep"),
    ],
)
def test_parameters_with_tricks_are_refused_and_named(tmp_path: Path, kind: str, reason: str) -> None:
    path = tmp_path / "parameters.h5"
    write_parameters(path, PARAMETERS)
    attack(path, kind)
    with pytest.raises(ValueError, match=reason) as caught:
        read_parameters(path)
    assert str(path) in str(caught.value)


def test_other_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "parameters.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(ValueError, match="holds no parameters"):
        read_parameters(path)
    path.write_bytes(b"no HDF5 at all")
    with pytest.raises(DataError, match=r"parameters\.h5: cannot be read as HDF5"):
        read_parameters(path)


def edit(path: Path, changes: Mapping[str, object]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(changes)))


def test_what_is_no_run_of_ours_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing is no run directory"):
        read_run(tmp_path / "nothing")
    path = filled(tmp_path / "run")
    values = json.loads((path / "completion.json").read_text())
    old = {name: value for name, value in values.items() if name not in (SUM, "files", "format_version")}  # as before there were checksums
    (path / "completion.json").write_text(json.dumps(old))
    (path / "timing.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"timing\.csv must have the columns"):
        read_run(path)
    (path / "timing.csv").unlink()
    assert read_run(path).times == []
    (path / "completion.json").write_text('{"status": "done"}')
    with pytest.raises(ValueError, match=r"completion\.json lacks iterations"):
        read_run(path)
    edit(path / "provenance.json", {"format_version": 99})
    with pytest.raises(ValueError, match="format version 99"):
        read_run(path)
    for text, reason in (("{", "not JSON"), ("[]", "JSON object"), ("{}", "not written by apts-mpi")):
        (path / "provenance.json").write_text(text)
        assert not rundir.is_run(path)
        with pytest.raises(ValueError, match=reason):
            read_run(path)


def test_record_names_every_field_of_the_step() -> None:
    row = records.record(info(4), {"epoch": 2.25}, {"local solve": 1.0})
    assert row["iteration"] == 4 and "k" not in row and row["epoch"] == 2.25 and row["seconds_local_solve"] == 1.0
    assert set(StepInfo.__dataclass_fields__) - {"k", "raised"} <= set(row)


def test_columns_find_their_types(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("i,f,t,big\n1,2,a\n")
    assert {name: len(column) for name, column in rundir.read_columns(tmp_path / "x.csv").items()} == {"i": 0, "f": 0, "t": 0, "big": 0}
    (tmp_path / "x.csv").write_text('i,f,t,big\n1,2.5,"a,b",99999999999999999999\n-2,3,c,1\n')
    found: dict[str, NDArray[Any]] = rundir.read_columns(tmp_path / "x.csv")
    assert [found[name].dtype.kind for name in found] == ["i", "f", "U", "f"]
    assert found["t"].tolist() == ["a,b", "c"]


@pytest.mark.fault(36)
def test_a_long_cell_claims_no_memory() -> None:
    """numpy makes all cells of a column as wide as the widest: 200,000 short ones beside a long one would be gigabytes."""
    rows = "".join(f"{k},running\n" for k in range(200_000))
    columns = parse_columns(f"iteration,status\n{rows}200000,{'x' * 100_000}\n200001,running\n".encode())
    assert len(columns["iteration"]) == 200_000 and columns["status"].nbytes < 10_000_000
