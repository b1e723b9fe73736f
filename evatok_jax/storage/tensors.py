"""Nested parameters as a safetensors file, read by a parser that trusts nothing.

The files are plain safetensors, which any library opens: eight bytes with the header's length, a
JSON header, the data. `load_tensors` accepts less than the format allows: exactly what
`dump_tensors` writes, so that every set of tensors has one valid file. `load_published` accepts
what others write, tensors in any order and metadata among them.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from math import prod

import ml_dtypes
import numpy as np
from jaxtyping import UInt8

# The JSON parser's objects take up to thirty times the text that they come from.
MAX_JSON = 2**20
MAX_DEPTH = 32  # of nested names, and of a tensor's axes
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    **{f"{kind}{8 * n}": np.dtype(f"{kind.lower()}{n}") for kind in "IU" for n in (8, 4, 2, 1)},
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PART = re.compile(r"[A-Za-z0-9_.\-]{1,100}")
_FIELDS = {"dtype", "shape", "data_offsets"}


def flatten(params: Mapping) -> dict[str, np.ndarray]:
    """Nested dicts of arrays as one dict of names "a/b/c", in the order of the file.

    Raises ValueError on names that a file could not keep, on empty dicts and on leaves that are no
    arrays of a known dtype.
    """
    flat = {}
    for name, leaf in _leaves(params, ()):
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if dtype not in _NAMES:
            raise ValueError(f"{name}: {dtype} cannot be stored")
        flat[name] = np.asarray(leaf)
    # Wide dtypes first keep every tensor aligned, as the safetensors library does.
    return dict(sorted(flat.items(), key=lambda item: (-item[1].itemsize, item[0])))


def params_from_flat(flat: Mapping[str, np.ndarray]) -> dict:
    """The nested dict that `flatten` came from; ValueError where one name runs through another."""
    params = {}
    for name, array in flat.items():
        *path, last = name.split("/")
        node = params
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ValueError(f"{name}: {part} is a tensor and holds others")
        if last in node:
            raise ValueError(f"{name}: {last} is a tensor and holds others")
        node[last] = array
    return params


def dump_tensors(flat: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    """The pieces of a safetensors file of what `flatten` returned, one tensor at a time."""
    yield _header(flat)
    for array in flat.values():
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def load_tensors(data: UInt8[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    """The tensors of a file as views of its bytes; ValueError where `dump_tensors` wrote another.

    Nothing is allocated but the views and the header's objects.
    """
    header, payload = _split(data)
    flat = _views(header.items(), payload)
    spelt = data[: data.size - payload.size].tobytes()
    if list(flat) != list(flatten(params_from_flat(flat))) or _header(flat) != spelt:
        raise ValueError("the tensor header is not spelt as this format spells it")
    return flat


def load_published(data: UInt8[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    """The tensors of any safetensors file as views of its bytes; ValueError where it is none."""
    header, payload = _split(data)
    header.pop("__metadata__", None)

    def place(item):
        offsets = item[1].get("data_offsets") if isinstance(item[1], dict) else None
        return offsets if isinstance(offsets, list) and all(type(n) is int for n in offsets) else []

    # Views must follow each other without a gap; where a place is missing, `_view` says so.
    return _views(sorted(header.items(), key=place), payload)


def _split(data: np.ndarray) -> tuple[dict, np.ndarray]:
    """Header and payload."""
    if data.size < 8:
        raise ValueError(f"a tensor file of {data.size} bytes has no header")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > min(MAX_JSON, data.size - 8):
        raise ValueError(f"a header of {length} bytes in a tensor file of {data.size}")
    header = parse_json(data[8 : 8 + length].tobytes())
    if not isinstance(header, dict):
        raise ValueError("the tensor header is no JSON object")
    return header, data[8 + length :]


def _views(entries: Iterable[tuple[str, object]], payload: np.ndarray) -> dict[str, np.ndarray]:
    """Tensors that fill the payload, one after another."""
    flat, position = {}, 0
    for name, entry in entries:
        flat[name], position = _view(name, entry, payload, position)
    if position != payload.size:
        raise ValueError(f"tensors fill {position} of {payload.size} bytes")
    return flat


def parse_json(text: bytes) -> object:
    """JSON in UTF-8, nested at most `MAX_DEPTH` deep; ValueError otherwise."""
    try:
        value = json.loads(text.decode())
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for node in level
            if isinstance(node, dict | list)
            for item in (node.values() if isinstance(node, dict) else node)
        ]
    if level:
        raise ValueError(f"JSON nested more than {MAX_DEPTH} deep")
    return value


def _leaves(node: Mapping, path: tuple[str, ...]) -> Iterable[tuple[str, object]]:
    """Names and leaves of nested dicts."""
    where = "/".join(path) or "the parameters"
    if len(path) > MAX_DEPTH:
        raise ValueError(f"{where}: nested more than {MAX_DEPTH} deep")
    if path and not node:
        raise ValueError(f"{where}: an empty dict cannot be stored")
    for key, value in node.items():
        if not isinstance(key, str) or not _PART.fullmatch(key):
            raise ValueError(f"{where}: the name {key!r} needs letters, digits and _.- only")
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield "/".join((*path, key)), value


def _header(flat: Mapping[str, np.ndarray]) -> bytes:
    """Length and header of a file with these tensors."""
    entries, position = {}, 0
    for name, array in flat.items():
        offsets = [position, position + array.nbytes]
        dtype, shape = _NAMES[array.dtype], list(array.shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        position += array.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_JSON:
        raise ValueError(f"{len(flat)} tensors need a header of {len(text)} > {MAX_JSON} bytes")
    return len(text).to_bytes(8, "little") + text


def _view(name: str, entry: object, payload: np.ndarray, start: int) -> tuple[np.ndarray, int]:
    """One tensor and where it ends; it must begin at `start`."""
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise ValueError(f"{name}: a tensor has the fields dtype, shape and data_offsets")
    shape, offsets, dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name}: unknown dtype {dtype!r:.40}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or len(numbers) > MAX_DEPTH:
            raise ValueError(f"{name}: shape and offsets are short lists")
        if any(type(n) is not int or not 0 <= n < 2**48 for n in numbers):
            raise ValueError(f"{name}: shape and offsets are numbers from 0 to 2^48")
    end = start + prod(shape) * DTYPES[dtype].itemsize
    if offsets != [start, end] or end > payload.size:
        raise ValueError(f"{name}: it should lie in bytes {start}..{end} of {payload.size}")
    raw = payload[start:end]
    if dtype == "BOOL" and raw.max(initial=0) > 1:
        raise ValueError(f"{name}: a truth value is neither 0 nor 1")
    return raw.view(DTYPES[dtype]).reshape(shape), end
