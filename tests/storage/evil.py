"""Evil HDF5: what can stand in the place of a dataset, and whole files that are not what they seem. Built when asked for."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

Change = Callable[[h5py.File, str, Path], None]  # file, name of a dataset in it, a file elsewhere that nobody may open
LATEST = {"libver": ("v110", "v110")}


def made(**create: object) -> Change:
    """The dataset anew, with its own shape and type unless told."""

    def change(file: h5py.File, name: str, secret: Path) -> None:
        kept = {} if "data" in create else {"shape": file[name].shape, "dtype": file[name].dtype}
        del file[name]
        file.create_dataset(name, **{**kept, **create})

    return change


def link(target: Callable[[Path], object]) -> Change:
    def change(file: h5py.File, name: str, secret: Path) -> None:
        del file[name]
        file[name] = target(secret)

    return change


def soft_link(file: h5py.File, name: str, secret: Path) -> None:
    file.move(name, "elsewhere")
    file[name] = h5py.SoftLink("/elsewhere")


def cycle(file: h5py.File, name: str, secret: Path) -> None:
    del file[name]
    file.create_group(name)["again"] = file["/"]


def second_name(file: h5py.File, name: str, secret: Path) -> None:
    file["second"] = file[name]


def external_storage(file: h5py.File, name: str, secret: Path) -> None:
    made(external=[(str(secret), 0, file[name].nbytes)])(file, name, secret)


def virtual(file: h5py.File, name: str, secret: Path) -> None:
    shape, kind = file[name].shape, file[name].dtype
    del file[name]
    layout = h5py.VirtualLayout(shape, kind)
    layout[...] = h5py.VirtualSource(str(secret), "x", shape, kind)
    file.create_virtual_dataset(name, layout)


def gzip_bomb(file: h5py.File, name: str, secret: Path) -> None:
    """4 GiB of zeros in 4 MB: one chunk of 64 MiB, packed once, stored 64 times."""
    kind, chunk = file[name].dtype, 1 << 26
    del file[name]
    count = chunk // kind.itemsize
    data = file.create_dataset(name, (64 * count,), kind, chunks=(count,), compression="gzip")
    packed = zlib.compress(bytes(chunk), 9)
    for index in range(64):
        data.id.write_direct_chunk((index * count,), packed)


def sparse_chunk(file: h5py.File, name: str, secret: Path) -> None:
    """One chunk of 1 GiB that is not there."""
    kind = file[name].dtype
    del file[name]
    file.create_dataset(name, (4,), kind, maxshape=(None,), chunks=((1 << 30) // kind.itemsize,))


def unwritten(file: h5py.File, name: str, secret: Path) -> None:
    """Chunks that were never written read as zeros."""
    shape, kind = file[name].shape, file[name].dtype
    del file[name]
    file.create_dataset(name, shape, kind, chunks=shape, fletcher32=True)


def crowd(file: h5py.File, name: str, secret: Path) -> None:
    """Groups of ten bytes each, more than any file of ours has."""
    for index in range(30_000):
        h5py.h5g.create(file.id, f"g{index:x}".encode())


def depth(file: h5py.File, name: str, secret: Path) -> None:
    del file[name]
    file.create_group("/".join([name, *("g" * 2000)]))


def huge_attribute(file: h5py.File, name: str, secret: Path) -> None:
    made(data=file[name][()])(file, name, secret)  # only objects of the newer format have room for it
    file[name].attrs.create("huge", np.zeros(10**6))


def many_attributes(file: h5py.File, name: str, secret: Path) -> None:
    for index in range(300):
        file[name].attrs[f"a{index}"] = index


def text_bomb(file: h5py.File, name: str, secret: Path) -> None:
    """200,000 texts of any length that are all the same 1 MB."""
    del file[name]
    data = file.create_dataset(name, (200_000,), h5py.string_dtype())
    data[0] = "x" * 10**6
    data[1:] = ""
    file.flush()
    raw = data.id.get_offset()
    handle = os.dup(file.id.get_vfd_handle())
    first = os.pread(handle, 16, raw)
    os.pwrite(handle, first * 200_000, raw)
    os.close(handle)


def of_type(kind: h5t.TypeID | Callable[[], h5t.TypeID], shape: tuple[int, ...] = (4,)) -> Change:
    def change(file: h5py.File, name: str, secret: Path) -> None:
        del file[name]
        h5d.create(file.id, name.encode(), kind() if callable(kind) else kind, h5s.create_simple(shape))

    return change


def references(region: bool) -> Change:
    def change(file: h5py.File, name: str, secret: Path) -> None:
        del file[name]
        other = file.create_dataset("other", data=np.arange(9))
        kind = h5py.regionref_dtype if region else h5py.ref_dtype
        data = file.create_dataset(name, (4,), kind)
        for index in range(4):
            data[index] = other.regionref[index:5] if region else other.ref

    return change


def nested(levels: int) -> h5t.TypeID:
    """A record in a record in a record ..."""
    kind: h5t.TypeID = h5t.NATIVE_INT8
    for _ in range(levels):
        outer = h5t.create(h5t.COMPOUND, kind.get_size())
        outer.insert(b"x", 0, kind)
        kind = outer
    return kind


def nested_attribute(file: h5py.File, name: str, secret: Path) -> None:
    h5py.h5a.create(file[name].id, b"nested", nested(500), h5s.create(h5s.SCALAR))


def wide_text() -> h5t.TypeID:
    kind = h5t.C_S1.copy()
    kind.set_size((1 << 31) - 1)
    return kind


def unknown_filter(file: h5py.File, name: str, secret: Path) -> None:
    shape, kind = file[name].shape, file[name].dtype
    del file[name]
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk(tuple(max(1, size) for size in shape))
    plist.set_filter(31_000, 1, (1, 2))  # optional, else HDF5 refuses to make it
    h5d.create(file.id, name.encode(), h5t.py_create(kind), h5s.create_simple(shape), plist)


def other_order(file: h5py.File, name: str, secret: Path) -> None:
    data = file[name][()]
    made(data=data.astype(data.dtype.newbyteorder(">") if data.dtype.itemsize > 1 else ">u2"))(file, name, secret)


def with_nan(file: h5py.File, name: str, secret: Path) -> None:
    data = file[name][()].astype("f4")
    data.reshape(-1)[1] = np.nan
    made(data=data)(file, name, secret)


def named_type(file: h5py.File, name: str, secret: Path) -> None:
    del file[name]
    file[name] = np.dtype("f4")


def no_space(file: h5py.File, name: str, secret: Path) -> None:
    del file[name]
    file.create_dataset(name, data=h5py.Empty("f4"))


IN_FILE: dict[str, Change] = {
    "external link": link(lambda secret: h5py.ExternalLink(str(secret), "/x")),
    "external link to itself": link(lambda secret: h5py.ExternalLink(".", "/")),
    "soft-link loop": lambda file, name, secret: link(lambda _: h5py.SoftLink(f"/{name}"))(file, name, secret),
    "soft link": soft_link,
    "hard-link cycle": cycle,
    "second name": second_name,
    "external storage": external_storage,
    "virtual dataset": virtual,
    "shape bomb": made(shape=(10**13,), maxshape=(None,), chunks=(1 << 10,)),
    "shape bomb, contiguous": made(shape=(10**13,)),
    "gzip bomb": gzip_bomb,
    "chunk of 1 GiB": sparse_chunk,
    "never written": unwritten,
    "30,000 groups": crowd,
    "2,000 deep": depth,
    "attribute of 8 MB": huge_attribute,
    "300 attributes": many_attributes,
    "vlen text bomb": text_bomb,
    "object references": references(region=False),
    "region references": references(region=True),
    "enumeration": made(data=np.array([True, False])),
    "record": made(data=np.zeros(4, [("a", "i4"), ("b", "f8")])),
    "opaque": of_type(lambda: h5t.create(h5t.OPAQUE, 8)),
    "vlen numbers": of_type(lambda: h5t.vlen_create(h5t.NATIVE_INT8)),
    "array type": of_type(lambda: h5t.array_create(h5t.NATIVE_INT8, (1 << 20, 1 << 9)), (1 << 10,)),
    "text of 2 GiB": of_type(wide_text, (1,)),
    "records 500 deep": of_type(lambda: nested(500)),
    "attribute 500 deep": nested_attribute,
    "unknown filter": unknown_filter,
    "scale-offset filter": made(chunks=True, scaleoffset=0, shape=(1000,), dtype="i4"),
    "other byte order": other_order,
    "nan": with_nan,
    "named datatype": named_type,
    "no dataspace": no_space,
    "no dataset": lambda file, name, secret: file.__delitem__(name),
    "group instead": lambda file, name, secret: (file.__delitem__(name), file.create_group(name))[0],
}


def replaced_by(content: Callable[[Path], bytes]) -> Callable[[Path, Path], None]:
    return lambda path, secret: path.write_bytes(content(path)) and None


def zipped(path: Path, secret: Path) -> None:
    path.unlink()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../evil", "x")


def instead(make: Callable[[Path, Path], object]) -> Callable[[Path, Path], None]:
    def change(path: Path, secret: Path) -> None:
        path.unlink()
        make(path, secret)

    return change


def hole(path: Path, secret: Path) -> None:
    """A file that says it has 20 GiB."""
    with path.open("r+b") as handle:
        handle.truncate(20 << 30)


def base(path: Path, secret: Path) -> None:
    """The base address and the addresses behind it, in the superblock wherever it begins."""
    raw = bytearray(path.read_bytes())
    start = raw.index(b"\x89HDF\r\n\x1a\n")
    for position in range(start + 12, start + 90, 8):
        raw[position + 5] = 0x7F
    path.write_bytes(raw)


OF_FILE: dict[str, Callable[[Path, Path], None]] = {
    "empty": replaced_by(lambda path: b""),
    "text": replaced_by(lambda path: b"theta = 3\n" * 1000),
    "zip": zipped,
    "pipe": instead(lambda path, secret: os.mkfifo(path)),
    "folder": instead(lambda path, secret: path.mkdir()),
    "device": instead(lambda path, secret: path.symlink_to("/dev/zero")),
    "symlink out of the folder": instead(lambda path, secret: path.symlink_to(secret)),
    "symlink to itself": instead(lambda path, secret: path.symlink_to(path.name)),
    "gone": instead(lambda path, secret: None),
    "20 GiB of nothing": hole,
    "half": replaced_by(lambda path: path.read_bytes()[: path.stat().st_size // 2]),
    "addresses that lie": base,
    "HDF5 at another byte": replaced_by(lambda path: bytes(1024) + path.read_bytes()),
}
