"""Reads PyTorch's state dicts (`torch.save`'s zip files) without PyTorch, trusting nothing in them.

Such a file is a zip with a pickle that names tensors and one raw file for each storage. The pickle
may build nothing but ordered dicts and views of those storages; everything else is refused.
"""

import io
import math
import pickle
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

_TYPES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


def load_torch(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a state dict, nested dicts flattened with "."; other values are left out.

    Raises ValueError where the file is no such zip, or its pickle asks for anything but tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.endswith("/data.pkl")]
            if len(names) != 1:
                raise ValueError("no file of torch.save (one data.pkl expected)")
            root = names[0].removesuffix("data.pkl")
            order = f"{root}byteorder"
            if order in archive.namelist() and archive.read(order) != b"little":
                raise ValueError("written on a big-endian machine")
            tree = _Unpickler(archive, root).load()
        if not isinstance(tree, Mapping):
            raise ValueError(f"a {type(tree).__name__} where a dict of tensors was expected")
        return dict(_tensors(tree, ""))
    except _MALFORMED as error:
        raise ValueError(f"{path}: {error}") from error


# What a pickle can provoke that asks for what it may, in a way that makes no sense.
_MALFORMED = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RecursionError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
)


def _tensors(node: Mapping, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{key}.")
        elif isinstance(value, np.ndarray):
            yield f"{prefix}{key}", value


def _tensor(storage, offset, size, stride, *_) -> np.ndarray:
    """torch._utils._rebuild_tensor_v2 on an array: the view, checked and copied."""
    numbers = [offset, *size, *stride]
    if (
        not isinstance(storage, np.ndarray)
        or len(size) != len(stride)
        or not all(type(n) is int and n >= 0 for n in numbers)
    ):
        raise pickle.UnpicklingError("a tensor that is no view of a storage")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if math.prod(size) and last >= storage.size:
        raise pickle.UnpicklingError("a tensor that reaches beyond its storage")
    if math.prod(size) > storage.size:
        raise pickle.UnpicklingError("a tensor that repeats its storage")
    item = storage.dtype.itemsize
    strides = [s * item for s in stride]
    if not math.prod(size):
        return np.zeros(size, storage.dtype)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()


def _parameter(tensor, *_):
    """torch._utils._rebuild_parameter: the tensor itself."""
    return tensor


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self._archive, self._root, self._storages = archive, root, {}

    def find_class(self, module: str, name: str):
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
        }
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of weights")
        return known[module, name]

    def persistent_load(self, pid) -> np.ndarray:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise pickle.UnpicklingError(f"a reference {pid!r:.60} that is no storage")
        _, dtype, key, _, count = pid
        if not isinstance(dtype, np.dtype) or not isinstance(key, str) or not key.isdigit():
            raise pickle.UnpicklingError("a storage without type or name")
        if key not in self._storages:
            data = np.frombuffer(self._archive.read(f"{self._root}data/{key}"), dtype)
            if data.size != count:
                raise pickle.UnpicklingError(f"storage {key} holds {data.size} values, not {count}")
            self._storages[key] = data
        return self._storages[key]
