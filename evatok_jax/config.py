"""Configs: files of plain functions that take a strict argument string.

`configs/proxy.py:data=ucf_mini,size=tiny` names a file and the arguments of its `get_config`. A
file is looked for from the working directory first; where it is not, `configs/NAME.py` and a bare
`NAME.py` mean the one shipped with the package.
"""

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from evatok_jax.names import nearest


def parse_arguments(text: str | None, **defaults) -> ConfigDict:
    """Parses `key=value,key=value` into the defaults' types.

    A bare `key` sets a bool to True. Unknown keys and values of another type raise ValueError,
    which names the nearest key. A default of None takes a string.
    """
    values = dict(defaults)
    for part in filter(None, (text or "").split(",")):
        key, given, value = part.partition("=")
        if key not in defaults:
            raise ValueError(f"unknown config argument {key!r}: {nearest(key, defaults)}")
        values[key] = _convert(key, value if given else "true", defaults[key])
    return ConfigDict(values)


def _convert(key: str, value: str, default: Any):
    if default is None or isinstance(default, str):
        return value
    if isinstance(default, bool):
        if value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise ValueError(f"config argument {key}={value}: expected true or false")
    try:
        return type(default)(value)
    except ValueError:
        kind = type(default).__name__
        raise ValueError(
            f"config argument {key}={value}: expected a value of type {kind}"
        ) from None


def find_config(path: str) -> Path:
    """The config file: as given, or, for `configs/NAME.py` and `NAME.py`, the shipped one.

    Raises FileNotFoundError that lists the shipped configs.
    """
    if Path(path).is_file():
        return Path(path)
    shipped = Path(__file__).parent / "configs"  # in a wheel
    if not shipped.is_dir():
        shipped = Path(__file__).parent.parent / "configs"  # in a checkout
    # Any other folder is somebody's own: a file missing there must not turn into a shipped one.
    if str(Path(path).parent) in (".", "configs") and (shipped / Path(path).name).is_file():
        return shipped / Path(path).name
    names = [p.stem for p in shipped.glob("*.py") if p.stem != "__init__"]
    raise FileNotFoundError(f"no config file {path!r}: {nearest(Path(path).stem, names)}")


def load_config(spec: str) -> ConfigDict:
    """The config that `path.py:arguments` names, locked against new keys."""
    path, _, arguments = spec.partition(":")
    module_spec = importlib.util.spec_from_file_location("evatok_config", find_config(path))
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module.get_config(arguments or None).lock()


def override(config: ConfigDict, assignments) -> None:
    """Applies `section.key=value` strings in place, values in JSON or plain text.

    Raises ValueError for an unknown key (it names the nearest) or a value of another type.
    """
    for assignment in assignments:
        path, given, text = assignment.partition("=")
        *sections, key = path.split(".")
        section = config
        for name in [*sections, key]:
            if not isinstance(section, ConfigDict) or name not in section:
                known = section.keys() if isinstance(section, ConfigDict) else ()
                raise ValueError(f"unknown config key {path!r}: {nearest(name, known)}")
            parent, section = section, section[name]
        if not given:
            raise ValueError(f"{assignment!r}: expected section.key=value")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        if isinstance(value, list):
            value = tuple(value)
        try:
            parent[key] = value
        except TypeError:
            kind = type(section).__name__
            raise ValueError(f"config key {path}={text}: expected a value of type {kind}") from None


def to_plain(config: ConfigDict) -> dict:
    """The config as JSON-able dictionaries and lists."""
    return json.loads(config.to_json_best_effort())


def digest(plain: dict) -> str:
    """A short hash of JSON-able content."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """`key: old -> new` for every leaf in which two plain configs differ."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines
