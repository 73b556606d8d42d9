"""Read CIFAR-10's pickled batches without running anything that they say.

A pickle is a program. Here every name that it may call is replaced by a stand-in of ours that
builds plain arrays of numbers from bytes; any other name is refused before anything happens.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apts_mpi.storage.files import DataError

LIMIT = 256 << 20  # bytes of one pickled file


class _Dtype:
    """Stands for numpy.dtype: a code such as "u1" and a byte order."""

    def __init__(self, code: object, *_: object) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else str(code)
        if not re.fullmatch(r"[uif][1248]|b1", text):
            raise DataError(f"refused an array of type {text!r}")
        self.code, self.order = text, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if any(state[2:5]) or order not in ("<", ">", "|", "="):
            raise DataError("refused an array type with fields or an unknown byte order")
        self.order = order

    def numpy(self) -> np.dtype[Any]:
        """The NumPy type."""
        return np.dtype(self.order + self.code)


class _Array:
    """Stands for numpy.ndarray: shape, type and bytes, checked against each other."""

    value: NDArray[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes) or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise DataError("refused an array that is not made of bytes")
        if math.prod(shape) * dtype.numpy().itemsize != len(raw):
            raise DataError(f"refused an array that claims the shape {shape} with {len(raw)} bytes")
        self.value = np.frombuffer(raw, dtype.numpy()).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: object) -> _Array:
    """Stands for NumPy's function of that name, which makes an empty array to be filled."""
    return _Array()


def _encode(text: str, codec: str) -> bytes:
    """Stands for codecs.encode, by which old pickles carry bytes."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise DataError(f"refused the codec {codec!r}")
    return text.encode("latin-1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    """Finds the stand-ins above and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise DataError(f"refused the name {module}.{name}, which no CIFAR-10 file needs")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("refused a persistent object")


def load_batch(name: str, raw: bytes) -> dict[str, Any]:
    """The dictionary of one batch file, its keys as text, its arrays as NumPy arrays; DataError names the file."""
    try:
        content = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{name}: {error}; get the original file") from error
    except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, LookupError, EOFError, OverflowError, MemoryError) as error:
        raise DataError(f"{name}: not a CIFAR-10 batch ({type(error).__name__}: {error}); get the original file") from error
    if not isinstance(content, dict):
        raise DataError(f"{name}: not a CIFAR-10 batch; get the original file")
    return {(key.decode("latin-1") if isinstance(key, bytes) else str(key)): getattr(item, "value", item) for key, item in content.items()}
