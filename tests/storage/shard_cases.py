"""Small raw data sets in every format, written by independent few-line writers, and small data sets made of them."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.regular import SUM
from apts_mpi.storage.convert import Report, convert
from apts_mpi.storage.files import file_hash

Arrays = dict[str, NDArray[Any]]


def numbered(train: int = 40, test: int = 12, shape: tuple[int, ...] = (3, 2), classes: int = 4) -> Arrays:
    """Samples that all differ, so that a misplaced one is seen."""
    rng = np.random.default_rng(7)
    arrays: Arrays = {}
    for split, count in (("train", train), ("test", test)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % classes
    return arrays


def save_npz(path: Path, **arrays: NDArray[Any]) -> Path:
    np.savez(path, **arrays)
    return path


def make(folder: Path, dest: str = "set", **options: Any) -> tuple[Path, Report]:
    """A small data set of numbered samples in three training shards."""
    source = save_npz(folder / "raw.npz", **numbered())
    return folder / dest, convert("npz", source, folder / dest, **{"shards": 3, **options})


def patch_manifest(dest: Path, change: dict[str, Any], shard: int | None = None) -> None:
    """Overwrite keys of the manifest, or of one shard in it."""
    content = json.loads((dest / "manifest.json").read_text())
    content.pop(SUM, None)  # a manifest without one is read as it is
    (content if shard is None else content["shards"][shard]).update(change)
    (dest / "manifest.json").write_text(json.dumps(content))


def bless(dest: Path, shard: int = 0) -> Path:
    """Make the manifest agree with the size and hash of a tampered shard file, so that only its content speaks."""
    path = dest / json.loads((dest / "manifest.json").read_text())["shards"][shard]["name"]
    patch_manifest(dest, {"bytes": path.stat().st_size, "sha256": file_hash(path)}, shard)
    return path


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, arrays: Arrays, *, packed: bool, dot: str = "-") -> Path:
    folder.mkdir()
    for split, prefix in (("train", "train"), ("test", "t10k")):
        for what, key, dims in (("images", "x", 3), ("labels", "y", 1)):
            raw = idx(arrays[f"{key}_{split}"].astype(np.uint8))
            name = f"{prefix}-{what}{dot}idx{dims}-ubyte"
            (folder / (name + ".gz" if packed else name)).write_bytes(gzip.compress(raw) if packed else raw)
    return folder


def cifar_files(form: str) -> tuple[dict[str, bytes], Arrays]:
    """Six batches of four images in binary or python form, and the arrays they hold."""
    rng = np.random.default_rng(3)
    files, held = {}, {"x_train": [], "y_train": [], "x_test": [], "y_test": []}
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        images, labels = rng.integers(0, 256, (4, 3072), dtype=np.uint8), rng.integers(0, 10, 4)
        if form == "binary":
            files[name + ".bin"] = b"".join(bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True))
        else:
            files[name] = pickle.dumps({b"batch_label": b"x", b"labels": labels.tolist(), b"data": images}, protocol=2)
        split = "test" if name == "test_batch" else "train"
        held[f"x_{split}"].append(images.reshape(-1, 3, 32, 32))
        held[f"y_{split}"].append(labels)
    return files, {key: np.concatenate(parts) for key, parts in held.items()}


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, raw in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    return folder


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, raw in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return path
