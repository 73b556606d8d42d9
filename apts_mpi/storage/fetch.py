"""Download the public originals: several mirrors, partial files resumed, nothing kept that has the wrong checksum."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apts_mpi import __version__
from apts_mpi.storage.files import DataError, file_hash, require_room, sync

Progress = Callable[[str, int, int], None]  # file, bytes so far, bytes in all
TIMEOUT = 30.0  # seconds without a byte
TRIES = 3  # per mirror; each goes on where the last one ended
_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class Remote:
    """One file: its size in bytes, a checksum (32 hex digits MD5, 64 SHA-256) and where it is kept."""

    name: str
    size: int
    checksum: str
    mirrors: tuple[str, ...]  # folders


_MNIST = ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist")
_FASHION = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
)
_CIFAR = (
    "https://www.cs.toronto.edu/~kriz",
    "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10",
    "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets",
)
SETS: Mapping[str, tuple[Remote, ...]] = {
    "mnist": (
        Remote("train-images-idx3-ubyte.gz", 9912422, "f68b3c2dcbeaaa9fbdd348bbdeb94873", _MNIST),
        Remote("train-labels-idx1-ubyte.gz", 28881, "d53e105ee54ea40749a09fcbcd1e9432", _MNIST),
        Remote("t10k-images-idx3-ubyte.gz", 1648877, "9fb629c4189551a2d022fa330f9573f3", _MNIST),
        Remote("t10k-labels-idx1-ubyte.gz", 4542, "ec29112dd5afa0611ce80d1b7f02629c", _MNIST),
    ),
    "fashion-mnist": (
        Remote("train-images-idx3-ubyte.gz", 26421880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d", _FASHION),
        Remote("train-labels-idx1-ubyte.gz", 29515, "25c81989df183df01b3e8a0aad5dffbe", _FASHION),
        Remote("t10k-images-idx3-ubyte.gz", 4422102, "bef4ecab320f06d8554ea6380940ec79", _FASHION),
        Remote("t10k-labels-idx1-ubyte.gz", 5148, "bb300cfdad3c16e7a12a480ee83cd310", _FASHION),
    ),
    "cifar10": (
        Remote("cifar-10-binary.tar.gz", 170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", _CIFAR),
    ),
}  # fmt: skip


class FetchError(OSError):
    """No mirror gave the file; the message lists what each of them said."""


def fetch(name: str, dest: str | Path, progress: Progress | None = None, sets: Mapping[str, tuple[Remote, ...]] = SETS) -> list[Path]:
    """Fetch the files of one data set into ``dest``; files that are there and right are kept.

    Proxies are taken from the environment (http_proxy, https_proxy, no_proxy). FetchError if no mirror helps.
    """
    if name not in sets:
        raise DataError(f"known data sets are {', '.join(sets)}, got {name!r}")
    folder = Path(dest)
    folder.mkdir(parents=True, exist_ok=True)
    report = progress or (lambda *_: None)
    try:
        return [_fetch_file(remote, folder, report) for remote in sets[name]]
    except FetchError as error:
        files = ", ".join(remote.name for remote in sets[name])
        told = f"or put {files} into {folder} by hand, then: apts-mpi data convert {converter(name)} {folder} data/{name} --shards 4"
        raise FetchError(f"{error}\ntry again later with the same command; {told}") from error


def converter(name: str) -> str:
    """What ``data convert`` calls the format of the set ``name``."""
    return "cifar10" if name == "cifar10" else "mnist"


def is_right(path: Path, checksum: str) -> bool:
    """Whether a file has the checksum, MD5 or SHA-256 by its length."""
    return file_hash(path, "md5" if len(checksum) == 32 else "sha256") == checksum


def _fetch_file(remote: Remote, folder: Path, progress: Progress) -> Path:
    """One file from the first mirror that gives the right bytes."""
    path, part, said = folder / remote.name, folder / f"{remote.name}.part", list[str]()
    if path.is_file() and is_right(path, remote.checksum):
        progress(remote.name, remote.size, remote.size)
        return path
    require_room(folder, remote.size)
    for mirror in remote.mirrors:
        for _ in range(TRIES):
            try:
                _download(f"{mirror}/{remote.name}", remote, part, progress)
            except _ERRORS as error:
                said.append(f"{mirror}: {error}")
                if isinstance(error, urllib.error.HTTPError):
                    if error.code != 416:
                        break  # asking again will not help
                    part.unlink(missing_ok=True)  # nothing of that file begins where ours ends
                continue
            if is_right(part, remote.checksum):
                sync(part)
                part.replace(path)
                sync(folder)
                return path
            part.unlink()
            said.append(f"{mirror}: the file has the wrong checksum")
            break
    raise FetchError(f"{remote.name}: no mirror gave the right file\n  " + "\n  ".join(dict.fromkeys(said)))


def _download(url: str, remote: Remote, part: Path, progress: Progress) -> None:
    """Append what ``part`` lacks; ConnectionError if the answer ends early or does not end."""
    have = part.stat().st_size if part.is_file() else 0
    if have > remote.size:
        part.unlink()
        have = 0
    if have == remote.size:
        return
    headers = {"User-Agent": f"apts_mpi/{__version__}", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    opener = urllib.request.build_opener()  # a fresh one reads the proxy variables of now
    with opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
        have = have if _continues(answer, have) else 0
        with part.open("ab" if have else "wb") as handle:
            while piece := answer.read(1 << 16):
                have += len(piece)
                if have > remote.size:
                    raise ConnectionError(f"gives more than the {remote.size} bytes of {remote.name}")
                handle.write(piece)
                progress(remote.name, have, remote.size)
    if have != remote.size:
        raise ConnectionError(f"ended after {have} of {remote.size} bytes of {remote.name}")


def _continues(answer: Any, have: int) -> bool:
    """Whether the server goes on at byte ``have``; many ignore the wish and start again."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    return answer.status == 206 and found is not None and int(found[1]) == have
