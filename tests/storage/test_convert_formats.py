"""Every raw format gives the arrays that an independent reader gives; what is malformed is refused by name."""

from __future__ import annotations

import io
import itertools
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shard_cases import cifar_files, numbered, save_npz, write_files, write_mnist, write_tar

from apts_mpi.storage.convert import Report, convert
from apts_mpi.storage.files import DataError
from apts_mpi.storage.order import shuffled
from apts_mpi.storage.restricted import load_batch
from apts_mpi.storage.shards import open_dataset
from apts_mpi.storage.sources import Options


def arrays_of(dest: Path) -> dict[str, Any]:
    held = {}
    for split in ("train", "test"):
        part = open_dataset(dest).split(split)
        held[f"x_{split}"], held[f"y_{split}"] = part.read(0, part.samples)
    return held


def assert_holds(dest: Path, raw: dict[str, Any], seed: int = 0) -> None:
    """The data set is the raw arrays, the training part in the order of the seed."""
    held, order = arrays_of(dest), shuffled(len(raw["y_train"]), seed)
    for key in ("x", "y"):
        assert np.array_equal(held[f"{key}_train"], raw[f"{key}_train"][order])
        assert np.array_equal(held[f"{key}_test"], raw[f"{key}_test"])


@pytest.mark.parametrize(("packed", "dot"), [(True, "-"), (False, "-"), (True, "."), (False, ".")])
def test_mnist(tmp_path: Path, packed: bool, dot: str) -> None:
    raw = numbered(shape=(4, 3))
    write_mnist(tmp_path / "raw", raw, packed=packed, dot=dot)
    report = convert("mnist", tmp_path / "raw", tmp_path / "set", shards=3)
    assert_holds(tmp_path / "set", {key: value[:, np.newaxis] if key[0] == "x" else value for key, value in raw.items()})
    assert open_dataset(tmp_path / "set").split("train").sample_shape == (1, 4, 3)
    assert "train has no sample of 6 of the classes: 4, 5, 6, 7, 8, 9" in report.warnings


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("train-images-idx3-ubyte", lambda raw: raw[:-1], "ends inside row"),
        ("train-images-idx3-ubyte", lambda raw: raw + b"x", "goes on after"),
        ("train-images-idx3-ubyte", lambda raw: b"\x00" + raw[2:], "not an IDX file"),
        ("train-images-idx3-ubyte", lambda raw: raw[:7], "not an IDX file"),
        ("train-labels-idx1-ubyte", lambda raw: raw[:4] + b"\0\0\0\5" + raw[8:], "40 images"),
        ("t10k-images-idx3-ubyte", lambda raw: raw[:8] + b"\0\0\0\3\0\0\0\4" + raw[16:], "training images are 4 x 3"),
        ("t10k-labels-idx1-ubyte", lambda raw: raw[:-2] + b"\x0a\1", r"target of sample 50 must be an integer in \[0, 10\), got 10"),
        ("t10k-labels-idx1-ubyte", None, "apts-mpi data fetch mnist"),
    ],
)
def test_mnist_damaged(tmp_path: Path, name: str, damage: Any, words: str) -> None:
    path = write_mnist(tmp_path / "raw", numbered(shape=(4, 3)), packed=False) / name
    path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    with pytest.raises(DataError, match=words):
        convert("mnist", tmp_path / "raw", tmp_path / "set")
    assert not (tmp_path / "set").exists()  # nothing half-written, and no room lost


def test_mnist_damaged_gzip(tmp_path: Path) -> None:
    path = write_mnist(tmp_path / "raw", numbered(shape=(4, 3)), packed=True) / "train-images-idx3-ubyte.gz"
    raw = path.read_bytes()
    for cut in (raw[:60], raw[:-6] + b"\0\0\0\0\0\0", raw[:2]):
        path.write_bytes(cut)
        with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz"):
            convert("mnist", tmp_path / "raw", tmp_path / "set")


@pytest.mark.parametrize("form", ["binary", "python"])
@pytest.mark.parametrize("packed", [False, True, "inside a folder"])
def test_cifar10(tmp_path: Path, form: str, packed: bool | str) -> None:
    files, raw = cifar_files(form)
    files = {f"cifar-10-batches/{name}": content for name, content in files.items()} | {"cifar-10-batches/readme.html": b"hello"}
    source = write_files(tmp_path / "raw", files) if not packed else write_tar(tmp_path / "cifar.tar.gz", files)
    if packed == "inside a folder":
        (tmp_path / "fetched").mkdir()
        source.rename(tmp_path / "fetched" / "cifar.tar.gz")
        source = tmp_path / "fetched"
    convert("cifar10", source, tmp_path / "set", shards=2)
    assert_holds(tmp_path / "set", raw)
    manifest = open_dataset(tmp_path / "set").manifest
    assert manifest.layout.class_names[:2] == ("airplane", "automobile")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data_batch_3": None}, "needs data_batch_1 to"),
        ({"data_batch_3": pickle.dumps({b"data": 3, b"labels": []})}, "not an array of uint8"),
        ({"data_batch_3": pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]})}, "not a list of 2 integers"),
        ({"data_batch_3": pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]})}, "labels must be 0 to 9"),
        ({"data_batch_3": pickle.dumps([1, 2])}, "not a CIFAR-10 batch"),
        ({"data_batch_3": b"\x80\x02garbage"}, "not a CIFAR-10 batch"),
        ({"copy/data_batch_3": b""}, "two files are named data_batch_3"),
    ],
)
def test_cifar10_damaged(tmp_path: Path, change: dict[str, bytes | None], words: str) -> None:
    files = {name: raw for name, raw in {**cifar_files("python")[0], **change}.items() if raw is not None}
    with pytest.raises(DataError, match=words):
        convert("cifar10", write_files(tmp_path / "raw", files), tmp_path / "set")


class Attack:
    """Pickles to a call of any importable function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def attacks() -> Iterator[bytes]:
    yield pickle.dumps({b"data": Attack(open, "pwned", "w")})
    yield pickle.dumps({b"data": Attack(eval, "open('pwned', 'w')")})
    yield pickle.dumps({b"data": Attack(np.load, "pwned")})
    yield b"cos\nsystem\n(S'touch pwned'\ntR."
    yield b"cnumpy\nndarray\n(I1000000000\ntR."  # a huge empty array, were it NumPy's
    yield b"cnumpy\ndtype\n(S'O8'\ntR."
    yield b"Ppersistent\n."
    yield pickle.dumps({b"data": np.array([b"x", None])})  # an array of objects
    yield pickle.dumps({b"data": np.zeros(3, [("a", "i4")])})


@pytest.mark.parametrize("raw", list(attacks()))
def test_an_evil_pickle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="batch_1: (refused|not a CIFAR-10)"):
        load_batch("batch_1", raw)
    assert not list(tmp_path.iterdir())


def test_a_pickled_array_must_have_the_bytes_it_claims() -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for protocol in (0, 1, 2, 3, 4):
        assert np.array_equal(load_batch("b", pickle.dumps({b"data": array}, protocol))["data"], array)
        assert np.array_equal(load_batch("b", pickle.dumps({"data": np.asfortranarray(array)}, protocol))["data"], array)
        wide = array.astype(">i4")
        assert np.array_equal(load_batch("b", pickle.dumps({"data": wide}, protocol))["data"], wide)
    lie = pickle.dumps({b"data": array}, 2).replace(b"K\x02K\x03\x86", b"K\x02K\x09\x86")
    with pytest.raises(DataError, match=r"claims the shape \(2, 9\) with 6 bytes"):
        load_batch("b", lie)


@pytest.mark.parametrize("form", ["npz", "compressed", "folder"])
def test_npz(tmp_path: Path, form: str) -> None:
    raw, source = numbered(), tmp_path / "raw"
    if form == "folder":
        source.mkdir()
        for name, values in raw.items():
            np.save(source / f"{name}.npy", values)
    else:
        source = tmp_path / "raw.npz"
        (np.savez if form == "npz" else np.savez_compressed)(source, **raw)
    convert("npz", source, tmp_path / "set", shards=3, seed=4)
    assert_holds(tmp_path / "set", raw, seed=4)


@pytest.mark.fault(31)
@pytest.mark.parametrize("dtype", [">f8", "<f2", "<i8", "u2", "?"])
def test_npz_other_types_and_byte_orders_become_float32(tmp_path: Path, dtype: str) -> None:
    raw = {key: value.astype(dtype) if key[0] == "x" else value.astype(">i2") for key, value in numbered().items()}
    convert("npz", save_npz(tmp_path / "raw.npz", **raw), tmp_path / "set")
    assert_holds(tmp_path / "set", {key: value.astype(np.float32) if key[0] == "x" else value for key, value in raw.items()})


def test_npz_draws_the_test_by_the_seed(tmp_path: Path) -> None:
    x, y = np.arange(50, dtype=np.float32)[:, np.newaxis], np.arange(50) % 3
    source = save_npz(tmp_path / "raw.npz", x=x, y=y)
    convert("npz", source, tmp_path / "set", options=Options(test_share=0.2), seed=5)
    held = arrays_of(tmp_path / "set")
    assert (len(held["x_train"]), len(held["x_test"])) == (40, 10)
    assert sorted([*held["x_train"][:, 0], *held["x_test"][:, 0]]) == list(range(50))
    assert held["x_test"][:, 0].tolist() == sorted(shuffled(50, 5)[40:])
    assert np.array_equal(held["y_test"], held["x_test"][:, 0].astype(int) % 3)


def labelled(values: list[Any], dtype: str = "f8") -> dict[str, Any]:
    return {"x": np.zeros((len(values), 2), np.float32), "y": np.array(values, dtype)}


@pytest.mark.fault(29)
@pytest.mark.fault(31)
@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        (labelled([0, 1, 2, 1.5, 0]), {"classes": 3}, r"sample 3 must be an integer in \[0, 3\), got 1.5"),
        (labelled([0, 1, -1, 1, 0], "i8"), {}, r"sample 2 must be an integer in \[0, 2\), got -1"),
        (labelled([0, 1, 2, 3, 0], "i8"), {"classes": 3}, r"sample 3 must be an integer in \[0, 3\), got 3"),
        (labelled([0, 256, 0, 1], "i8"), {"classes": 3}, "sample 1 must be an integer"),  # 256 would wrap to 0 in uint8
        (labelled([0, float("nan"), 2]), {"classes": 3}, "sample 1 must be an integer"),
        (labelled([0, float("nan"), 2]), {}, "sample 1 must be finite, got nan"),
        (labelled([0, 1e300, 2]), {}, "sample 1 must be finite"),
        ({"x": np.array([[0.0], [np.inf], [1.0]]), "y": np.zeros(3)}, {}, "sample 1 has inputs that are nan, infinite"),
        ({"x": np.array([[0.0], [0.0], [np.nan]]), "y": np.zeros(3)}, {}, "sample 2 has inputs that are nan, infinite"),
        ({"x": np.array([[0.0], [0.0], [1e200]]), "y": np.zeros(3)}, {}, "sample 2 has inputs that are nan, infinite or beyond float32"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(4)}, {}, "the same number of samples"),
        ({"x": np.zeros(3), "y": np.zeros(3)}, {}, "two or more dimensions"),
        ({"x": np.zeros((3, 2)), "z": np.zeros(3)}, {}, "needs x_train, y_train, x_test and y_test, or x and y; it has x, z"),
        ({"x": np.zeros((3, 2), complex), "y": np.zeros(3)}, {}, "holds complex128"),
        ({"x": np.array([["a"], ["b"]]), "y": np.zeros(2)}, {}, "needed are integers or floats"),
        ({"x": np.asfortranarray(np.zeros((3, 2))), "y": np.zeros(3)}, {}, "Fortran order"),
        ({"x": np.array([[None], [1]], object), "y": np.zeros(2)}, {}, "holds object"),
    ],
)
def test_npz_malformed(tmp_path: Path, arrays: dict[str, Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        convert("npz", save_npz(tmp_path / "raw.npz", **arrays), tmp_path / "set", options=Options(**options))
    assert not (tmp_path / "set").exists()


def test_npz_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "raw.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"not an \.npz file"):
        convert("npz", tmp_path / "raw.npz", tmp_path / "set")


def picture(value: int, size: tuple[int, int] = (5, 4), mode: str = "RGB", form: str = "PNG") -> bytes:
    rng, buffer = np.random.default_rng(value), io.BytesIO()
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode=None).save(buffer, form)
    return buffer.getvalue()


def pictures() -> dict[str, bytes]:
    files = {}
    for number, (split, label) in enumerate(itertools.product(("test", "train"), ("ant", "bee", "cow"))):
        files |= {f"top/{split}/{label}/{k}.png": picture(10 * number + k) for k in range(4)}
    return files


def expected(files: dict[str, bytes]) -> dict[str, Any]:
    held: dict[str, list[Any]] = {"x_train": [], "y_train": [], "x_test": [], "y_test": []}
    for name, raw in files.items():
        _, split, label, _ = name.split("/")
        held[f"x_{split}"].append(np.asarray(Image.open(io.BytesIO(raw))).transpose(2, 0, 1))
        held[f"y_{split}"].append(("ant", "bee", "cow").index(label))
    return {key: np.array(parts) for key, parts in held.items()}


@pytest.mark.parametrize("form", ["folder", "tar", "tar.gz", "tar.xz", "zip"])
def test_imagefolder(tmp_path: Path, form: str) -> None:
    files = pictures()
    extra = {**files, "top/README": b"text"}
    if form == "folder":
        source = write_files(tmp_path / "raw", extra)
    elif form == "zip":
        source = tmp_path / "raw.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for name, raw in extra.items():
                archive.writestr(name, raw)
    else:
        source = write_tar(tmp_path / f"raw.{form}", extra, {"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz"}[form])
    report = convert("imagefolder", source, tmp_path / "set", shards=2)
    assert_holds(tmp_path / "set", expected(files))
    assert open_dataset(tmp_path / "set").manifest.layout.class_names == ("ant", "bee", "cow")
    assert report.warnings == ("1 other files were left out",)


def test_imagefolder_sizes_and_channels(tmp_path: Path) -> None:
    files = {**pictures(), "top/train/ant/odd.png": picture(1, (7, 3)), "top/train/ant/gray.png": picture(1, mode="L")}
    source = write_files(tmp_path / "raw", files)
    with pytest.raises(DataError, match=r"train/ant/.*use --image-size HEIGHT WIDTH"):
        convert("imagefolder", source, tmp_path / "set")
    convert("imagefolder", source, tmp_path / "set", options=Options(image_size=(6, 8), gray=True))
    assert open_dataset(tmp_path / "set").split("train").sample_shape == (1, 6, 8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"top/train/ant/x.png": b"no image"}, "train/ant/x.png is not an image"),
        ({"top/train/ant/x.png": picture(1)[:60]}, "train/ant/x.png is not an image"),
        ({"top/train/ant/x.png": picture(1, form="GIF")}, "train/ant/x.png is not an image"),
        ({"top/test/dog/x.png": picture(1)}, r"classes \['dog'\] are in test and not in train"),
        ({"../train/ant/x.png": picture(1)}, "leads out of the archive"),
        ({"/train/ant/x.png": picture(1)}, "leads out of the archive"),
    ],
)
def test_imagefolder_malformed(tmp_path: Path, change: dict[str, bytes], words: str) -> None:
    with pytest.raises(DataError, match=words):
        convert("imagefolder", write_tar(tmp_path / "raw.tar", {**pictures(), **change}, "w"), tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["raw.tar"]


def test_imagefolder_bomb(tmp_path: Path) -> None:
    """A small file that claims many pixels is refused by its header."""
    header = picture(1)
    bomb = header[:16] + (20_000).to_bytes(4, "big") * 2 + header[24:]
    crc = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    files = {**pictures(), "top/train/ant/a.png": bomb[:29] + crc + bomb[33:]}
    with pytest.raises(DataError, match=r"a\.png has too many pixels|a\.png has 20000 x 20000 pixels"):
        convert("imagefolder", write_files(tmp_path / "raw", files), tmp_path / "set")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_a_link_in_an_archive_is_refused(tmp_path: Path, kind: bytes) -> None:
    path = write_tar(tmp_path / "raw.tar", pictures(), "w")
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("top/train/ant/link.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(DataError, match="a link or device"):
        convert("imagefolder", path, tmp_path / "set")


def test_a_cut_archive_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "raw.tar.gz", pictures())
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"raw\.tar\.gz: not a folder, tar or zip that can be read"):
        convert("imagefolder", path, tmp_path / "set")


def test_text_windows_and_next_characters(tmp_path: Path) -> None:
    text = "the cat sät on the mat\r\n" * 9
    (tmp_path / "a.txt").write_text(text, newline="")
    convert("text", tmp_path / "a.txt", tmp_path / "set", options=Options(window=5, test_share=0.25), shards=2)
    data = open_dataset(tmp_path / "set")
    names = data.manifest.layout.class_names
    assert "".join(names) == "".join(sorted(set(text)))
    held, windows = arrays_of(tmp_path / "set"), (len(text) - 1) // 5
    cut = lambda tokens: ["".join(names[t] for t in row) for row in tokens]  # noqa: E731
    wanted_in = [text[5 * k : 5 * k + 5] for k in range(windows)]
    wanted_out = [text[5 * k + 1 : 5 * k + 6] for k in range(windows)]
    train = windows - round(0.25 * windows)
    order = shuffled(train, 0)
    assert cut(held["x_train"]) == [wanted_in[k] for k in order]
    assert cut(held["y_train"]) == [wanted_out[k] for k in order]
    assert cut(held["x_test"]) == wanted_in[train:]
    assert cut(held["y_test"]) == wanted_out[train:]
    split = data.split("train")
    assert (split.classes, split.mean, split.std, split.scale) == (len(names), 0.0, 1.0, 1.0)


def test_text_in_pieces_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "a.txt").write_text("".join(map(chr, rng.integers(32, 400, 3000))))
    first = convert("text", tmp_path / "a.txt", tmp_path / "one", options=Options(window=7))
    monkeypatch.setattr("apts_mpi.storage.text._PIECE", 11)
    monkeypatch.setattr("apts_mpi.storage.sources.BATCH_BYTES", 200)
    second = convert("text", tmp_path / "a.txt", tmp_path / "two", options=Options(window=7))
    assert first.manifest == second.manifest
    assert first.manifest is not None and first.manifest.layout.input_dtype == "<u2"


@pytest.mark.parametrize(("raw", "words"), [(b"short", "too few"), (b"\xff" * 300, "not UTF-8"), (b"", "too few")])
def test_text_malformed(tmp_path: Path, raw: bytes, words: str) -> None:
    (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(DataError, match=words):
        convert("text", tmp_path / "a.txt", tmp_path / "set")


def test_digits(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    convert("digits", None, tmp_path / "set", seed=3)
    held, raw, order = arrays_of(tmp_path / "set"), load_digits(), shuffled(1797, 3)
    assert np.array_equal(held["x_train"].reshape(1500, 64), raw.data[order[:1500]])
    assert np.array_equal(held["y_test"], raw.target[np.sort(order[1500:])])
    split = open_dataset(tmp_path / "set").split("train")
    assert (split.sample_shape, split.scale, split.input_dtype) == ((1, 8, 8), 16.0, np.uint8)
    assert split.mean == pytest.approx(held["x_train"].mean() / 16)


def test_digits_without_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'apts_mpi\[demo\]'"):
        convert("digits", None, tmp_path / "set")


def test_an_unknown_kind_and_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="kind must be one of digits, mnist"):
        convert("jpeg", tmp_path, tmp_path / "set")
    with pytest.raises(DataError, match="source .*nothing does not exist"):
        convert("mnist", tmp_path / "nothing", tmp_path / "set")


REAL = Path(__file__).parents[3] / "shared" / "data" / "mnist"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real MNIST files are not beside the checkout")
def test_real_mnist(tmp_path: Path) -> None:
    report: Report = convert("mnist", REAL, tmp_path / "set", shards=4)
    assert report.manifest is not None
    assert (report.manifest.samples("train"), report.manifest.samples("test")) == (60000, 10000)
    assert report.manifest.histogram("train") == (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    assert report.manifest.statistics.mean == pytest.approx(0.1306604762738)
    assert report.manifest.statistics.std == pytest.approx(0.3081078038564)
