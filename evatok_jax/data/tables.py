"""Tables: what a job computed for each clip, in shards of plain arrays.

A row belongs to one window of one record, as it is or mirrored. Curation writes such tables
(assignments, token ids, scores of all assignments) and later stages read them. Each shard is
written beside and renamed, so a shard that exists is whole. `origin.json` says which windows of
which data set the rows are of, which models made them, and how many shards there will be.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from evatok_jax.atomic import replacing
from evatok_jax.config import differences
from evatok_jax.data.clips import Clips
from evatok_jax.workdir import read_json, write_json

ORIGIN = "origin.json"


def grid(clips: Clips) -> dict:
    """What names the windows of a split: data set, and how clips are cut out of its videos.

    A table of other windows says nothing about these.
    """
    names = ("split", "frames", "fps", "short")
    return {"data": clips.manifest["identity"]} | {name: getattr(clips, name) for name in names}


def write_origin(directory: Path, windows: dict, shards: int, kind: str, models: Mapping) -> None:
    """Says what a table is of: windows of a `grid`, a kind of map, name -> digest of its models."""
    content = {"windows": windows, "shards": shards, "kind": kind, "models": dict(models)}
    write_json(directory / ORIGIN, content)


def check_origin(directory: str | Path, windows: dict) -> None:
    """Raises ValueError, naming what differs, where a table is not of the windows of this `grid`.

    FileNotFoundError where it does not say.
    """
    path = Path(directory) / ORIGIN
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there, so nobody can tell of which windows {directory} is: run the job "
            "that makes it again"
        )
    wrong = differences(read_json(path)["windows"], windows)
    if wrong:
        raise ValueError(
            f"{directory} is a table of other windows: make one of these. What differs (there -> "
            "here):\n  " + "\n  ".join(wrong)
        )


def shard_path(directory: Path, index: int) -> Path:
    """Where shard `index` of a table is."""
    return directory / f"shard-{index:05d}.npz"


def write_shard(directory: Path, index: int, columns: dict[str, np.ndarray]) -> None:
    """Writes one shard; columns share their first axis."""
    with replacing(shard_path(directory, index)) as file:
        np.savez_compressed(file, **columns)


def read_table(directory: str | Path) -> dict[str, np.ndarray]:
    """All shards of a finished table, one after another.

    Raises FileNotFoundError where there is none, ValueError where one is missing.
    """
    directory = Path(directory)
    paths = sorted(directory.glob("shard-*.npz"))
    if not paths:
        raise FileNotFoundError(
            f"{directory} holds no shard-*.npz: run the job that makes it first"
        )
    said = (directory / ORIGIN).is_file()
    count = read_json(directory / ORIGIN)["shards"] if said else len(paths)
    for index in range(count):
        if not shard_path(directory, index).exists():
            raise ValueError(
                f"{shard_path(directory, index)} is missing ({len(paths)} of {count} shards are "
                "there): run its job again"
            )
    shards = []
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            shards.append(dict(file))
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


class Sidecar:
    """A finished table beside a data set, its rows found by record, window and flip.

    Attributes:
      columns: those of the table, a row for each window and flip.

    Raises ValueError and FileNotFoundError as `check_origin` and `read_table` do.
    """

    def __init__(self, directory: str | Path, windows: dict):
        check_origin(directory, windows)
        self._directory, self.columns = directory, read_table(directory)
        self._stride = 2 * (int(self.columns["window"].max()) + 1)
        keys = self._key(*(self.columns[name] for name in ("record", "window", "flip")))
        self._order = np.argsort(keys)
        self._keys = keys[self._order]

    def rows(
        self,
        record: Int[np.ndarray, " n"],
        window: Int[np.ndarray, " n"],
        flip: Bool[np.ndarray, " n"],
    ) -> Int[np.ndarray, " n"]:
        """Row numbers of clips, named as batches name them; ValueError for one without a row."""
        place = np.searchsorted(self._keys, self._key(record, window, flip))
        found = self._order[np.minimum(place, len(self._keys) - 1)]
        absent = np.zeros(len(record), bool)
        for name, wanted in (("record", record), ("window", window), ("flip", flip)):
            absent |= self.columns[name][found] != wanted
        if absent.any():
            first = int(absent.argmax())
            raise ValueError(
                f"{self._directory} has no row for {absent.sum()} of {len(record)} clips; the "
                f"first: record {record[first]}, window {window[first]}, flip {flip[first]}"
            )
        return found

    def _key(self, record, window, flip) -> np.ndarray:
        return record.astype(np.int64) * self._stride + 2 * window.astype(np.int64) + flip
