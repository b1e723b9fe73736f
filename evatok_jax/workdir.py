"""A workdir: one job's folder, with an identity that another config may not take over."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from evatok_jax.atomic import replacing
from evatok_jax.config import differences, to_plain

# Of a config's section `data`: what may change from one start to the next, as all of `run` may.
FREE = "cache_bytes", "cache_dir", "cache_gb", "max_bad", "time_limit"


def write_json(path: Path, content) -> None:
    """Writes JSON, whole or not at all."""
    with replacing(path, "w") as file:
        file.write(json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_json(path: Path):
    """JSON from a file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def claim(workdir: Path, config: ConfigDict, inputs: Mapping[str, str] = MappingProxyType({})):
    """Makes the workdir this config's, or checks that it already is. Every process calls it.

    The identity is the whole config but its `run` section (steps, logging, mesh: these may change)
    and what is `FREE`, and `inputs`, the digests of the models that the job works with.
    Raises ValueError naming every key that differs from the config which made the workdir.
    """
    plain = to_plain(config) | {"inputs": dict(inputs)}
    path = workdir / "config.json"
    if path.exists():
        changed = differences(_identity(read_json(path)), _identity(plain))
        if changed:
            raise ValueError(
                f"{workdir} belongs to another config; choose another --workdir, or give the same "
                "values again. What differs:\n  " + "\n  ".join(changed)
            )
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("claim")  # all have looked before one writes
    if jax.process_index() == 0:
        write_json(path, plain)


def _identity(plain: dict) -> dict:
    kept = {name: value for name, value in plain.items() if name != "run"}
    if "data" in plain:
        kept["data"] = {name: v for name, v in plain["data"].items() if name not in FREE}
    return kept


def check_same_data(other: Path, config: ConfigDict) -> None:
    """Checks that the job in `other` goes through the same records in the same order.

    A data position means nothing elsewhere. Raises ValueError naming what differs.
    """
    keys = ("seed", "batch_size", "data")
    old, new = _identity(read_json(other / "config.json")), _identity(to_plain(config))
    changed = differences(*({k: c[k] for k in keys if k in c} for c in (old, new)))
    if changed:
        raise ValueError(
            f"run.resume={other} went through other data; use run.init_from for its parameters "
            "alone. What differs:\n  " + "\n  ".join(changed)
        )


def finished(workdir: Path) -> dict | None:
    """What the job wrote when it ended, or None while it has not."""
    path = workdir / "done.json"
    return read_json(path) if path.exists() else None
