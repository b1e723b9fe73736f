"""Exports: a trained model as a directory of two files (docs/formats.md).

`params.safetensors` has the parameters; `export.json` says what they are, and vouches for both
files: it holds the other's SHA-256 and, over all its own bytes, another one.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from evatok_jax.storage.tensors import (
    MAX_DEPTH,
    MAX_JSON,
    dump_tensors,
    flatten,
    load_tensors,
    params_from_flat,
    parse_json,
)

FORMAT = "evatok-export"
VERSION = 1
JSON_NAME, PARAMS_NAME = "export.json", "params.safetensors"
_KIND = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TAIL = re.compile(rb',\n  "checksum": "([0-9a-f]{64})"\n}\n')
_TAIL_SIZE = 85
_FIELDS = ["format", "version", "kind", "config", "extra", "params"]


@dataclass(frozen=True)
class Export:
    """A loaded export.

    Attributes:
      kind: what it is, for example "tokenizer".
      config: what builds the model; tuples have become lists.
      params: nested dict of numpy arrays.
      extra: notes that do not change what the model computes.
      digest: 64 hex digits that name the model: of kind, config and parameters, not of `extra`.
    """

    kind: str
    config: dict
    params: dict = field(repr=False)
    extra: dict
    digest: str

    def part_digest(self, part: str) -> str:
        """The digest of one of several models in this export, such as the tokenizer of a generator.

        It is the digest that an export of this part alone would have, of the kind `part`, and so
        the same in whatever company the part is saved.

        Raises KeyError where there is no such part.
        """
        sha256 = hashlib.sha256()
        for piece in dump_tensors(flatten({part: self.params[part]})):
            sha256.update(piece)
        return _digest(part, {part: self.config[part]}, sha256.hexdigest())


def save_export(
    directory: str | os.PathLike,
    kind: str,
    config: Mapping,
    params: Mapping,
    extra: Mapping | None = None,
) -> str:
    """Writes an export and returns its digest.

    The directory is written beside its place (`.name.new`) and renamed; an export that is there is
    moved to `.name.old` for that moment. Killed at any point, a complete export remains: the new
    one or the old one, in its place or, between the two renames, beside it, from where the next
    call puts it back.

    Args:
      directory: where to; an existing directory must hold an export.
      kind: lower case letters, digits and underscores.
      config, extra: what JSON can say: None, bool, int, finite float, str, lists and dicts of them.
      params: nested dicts of arrays (numpy or JAX): floats, bfloat16, integers, bools.

    Raises ValueError where the arguments cannot be stored, or the directory holds something else.
    """
    directory = Path(directory).absolute()
    new, old = (directory.with_name(f".{directory.name}.{word}") for word in ("new", "old"))
    if directory.exists() and not (directory / JSON_NAME).is_file():
        raise ValueError(f"{directory}: it exists and is no export, it will not be replaced")
    if not _KIND.fullmatch(kind):
        raise ValueError(f"kind {kind!r} must be lower case letters, digits and underscores")
    if old.exists() and not directory.exists():
        os.rename(old, directory)  # an earlier process was killed between the two renames
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    flat = flatten(params)
    new.mkdir(parents=True)
    try:
        described = _write_params(new / PARAMS_NAME, flat)
        config, extra = _plain(config, "config"), _plain(extra or {}, "extra")
        content = dict(zip(_FIELDS, (FORMAT, VERSION, kind, config, extra, described), strict=True))
        (new / JSON_NAME).write_bytes(_spell(content))
        if directory.exists():
            os.rename(directory, old)
        os.rename(new, directory)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        if old.exists() and not directory.exists():
            os.rename(old, directory)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return _digest(kind, config, described["sha256"])


def load_export(directory: str | os.PathLike) -> Export:
    """Reads an export; its arrays share one buffer, the file's bytes.

    Raises ValueError with the reason where `save_export` would not have written this.
    """
    directory = Path(directory)
    try:
        content = _read_json(directory / JSON_NAME)
        data = _read_params(directory / PARAMS_NAME, content["params"])
        flat = load_tensors(data)
        described = _describe(flat, data.size, hashlib.sha256(data).hexdigest())
        if json.dumps(described) != json.dumps(content["params"]):
            raise ValueError(f"{PARAMS_NAME} does not hold what {JSON_NAME} says")
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from error
    return Export(
        content["kind"],
        content["config"],
        params_from_flat(flat),
        content["extra"],
        _digest(content["kind"], content["config"], content["params"]["sha256"]),
    )


def _write_params(path: Path, flat: Mapping[str, np.ndarray]) -> dict:
    """Writes the tensors; what `export.json` says of the file."""
    sha256, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for piece in dump_tensors(flat):
            sha256.update(piece)
            size += file.write(piece)
    return _describe(flat, size, sha256.hexdigest())


def _describe(flat: Mapping[str, np.ndarray], size: int, sha256: str) -> dict:
    values = sum(array.size for array in flat.values())
    return {"bytes": size, "sha256": sha256, "tensors": len(flat), "values": values}


def _spell(content: dict) -> bytes:
    """The text of `export.json`: its last field is the SHA-256 of all that stands before."""
    body = json.dumps(content, indent=2, allow_nan=False).encode()[:-2]
    if len(body) + _TAIL_SIZE > MAX_JSON:
        raise ValueError(f"config and extra take {len(body)} bytes, more than {MAX_JSON}")
    return body + f',\n  "checksum": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def _read_json(path: Path) -> dict:
    """The content of `export.json`, without its checksum."""
    text = _read(path, MAX_JSON).tobytes()
    body, tail = text[:-_TAIL_SIZE], _TAIL.fullmatch(text[-_TAIL_SIZE:])
    if not tail or hashlib.sha256(body).hexdigest() != tail[1].decode():
        raise ValueError(f"the checksum of {JSON_NAME} does not match: it is damaged or edited")
    content = parse_json(body + b"\n}")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{JSON_NAME} does not describe an export")
    if content.get("version") != VERSION or type(content["version"]) is not int:
        raise ValueError(f"version {content.get('version')!r:.40}: this reader knows {VERSION}")
    if list(content) != _FIELDS or _spell(content) != text:
        raise ValueError(f"{JSON_NAME} is not spelt as this format spells it")
    if not isinstance(content["kind"], str) or not _KIND.fullmatch(content["kind"]):
        raise ValueError(f"kind {content['kind']!r:.40} is none")
    for name in ("config", "extra", "params"):
        if not isinstance(content[name], dict):
            raise ValueError(f"{name} is no JSON object")
    return content


def _read_params(path: Path, described: dict) -> np.ndarray:
    """The bytes of the tensor file, if they are those that `export.json` describes."""
    size = described.get("bytes")
    if type(size) is not int or size < 0:
        raise ValueError(f"{PARAMS_NAME} of {size!r:.40} bytes is impossible")
    data = _read(path, size)
    if hashlib.sha256(data).hexdigest() != described.get("sha256"):
        raise ValueError(f"the checksum of {PARAMS_NAME} does not match: it is damaged")
    return data


def _read(path: Path, most: int) -> np.ndarray:
    """The bytes of a regular file of at most that size; nothing is allocated before it is known."""
    if not path.is_file():
        raise ValueError(f"there is no file {path.name}")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"{path.name} has {size} bytes, expected are at most {most}")
        data = np.empty(size, np.uint8)
        if file.readinto(data.data) != size:
            raise ValueError(f"{path.name} changed while it was read")
    return data


def _plain(value: object, where: str, depth: int = 1) -> object:
    """A copy that JSON gives back as it is: dicts, lists (from tuples too) and plain values."""
    if depth >= MAX_DEPTH:
        raise ValueError(f"{where}: nested more than {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        strange = [key for key in value if type(key) is not str]
        if strange:
            raise ValueError(f"{where}: the key {strange[0]!r} is no string")
        return {key: _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if value is not None and type(value) not in (bool, int, float, str):
        raise ValueError(f"{where}: {type(value).__name__} cannot be written as JSON")
    return value


def _digest(kind: str, config: dict, sha256: str) -> str:
    """The name of a model: SHA-256 of what determines its results, the tensors by their own."""
    parts = [kind, config, sha256]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
