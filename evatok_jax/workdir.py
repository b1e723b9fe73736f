"""A workdir: one job's folder, with an identity that another config may not take over."""

import json
import os
from pathlib import Path

from ml_collections import ConfigDict

from evatok_jax.config import differences, to_plain


def write_json(path: Path, content) -> None:
    """Writes JSON beside the target, then renames: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(beside, path)


def read_json(path: Path):
    """JSON from a file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def claim(workdir: Path, config: ConfigDict) -> None:
    """Makes the workdir this config's, or checks that it already is.

    The identity is the whole config but its `run` section (steps, logging, mesh: these may change).
    Raises ValueError naming every key that differs from the config which made the workdir.
    """
    plain = to_plain(config)
    path = workdir / "config.json"
    if path.exists():
        old = read_json(path)
        changed = differences(
            {k: v for k, v in old.items() if k != "run"},
            {k: v for k, v in plain.items() if k != "run"},
        )
        if changed:
            raise ValueError(
                f"{workdir} belongs to another config; choose another --workdir, or give the same "
                "values again. What differs:\n  " + "\n  ".join(changed)
            )
    write_json(path, plain)


def finished(workdir: Path) -> dict | None:
    """What the job wrote when it ended, or None while it has not."""
    path = workdir / "done.json"
    return read_json(path) if path.exists() else None
