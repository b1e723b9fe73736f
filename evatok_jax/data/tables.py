"""Tables: what a job computed for each clip, in shards of plain arrays.

A row belongs to one window of one record. Curation writes such tables (scores of all assignments,
token ids) and later stages read them. Each shard is written beside and renamed, so a shard that
exists is whole.
"""

from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np

from evatok_jax.atomic import replacing


def shard_path(directory: Path, index: int) -> Path:
    """Where shard `index` of a table is."""
    return directory / f"shard-{index:05d}.npz"


def write_shard(directory: Path, index: int, columns: dict[str, np.ndarray]) -> None:
    """Writes one shard; columns share their first axis."""
    with replacing(shard_path(directory, index)) as file:
        np.savez_compressed(file, **columns)


def read_table(directory: str | Path) -> dict[str, np.ndarray]:
    """All shards of a finished table, one after another.

    Raises FileNotFoundError where there is none, ValueError where one in the middle is missing.
    """
    paths = sorted(Path(directory).glob("shard-*.npz"))
    if not paths:
        raise FileNotFoundError(
            f"{directory} holds no shard-*.npz: run the job that makes it first"
        )
    for index, path in enumerate(paths):
        if path != shard_path(Path(directory), index):
            raise ValueError(f"{shard_path(Path(directory), index)} is missing: run its job again")
    shards = []
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            shards.append(dict(file))
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


def table_batches(
    table: dict[str, np.ndarray],
    batch_size: int,
    seed: int,
    start_index: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless shuffled batches of rows from global record `start_index` on, each epoch anew.

    Raises ValueError where the table has no row, or the batch cannot be divided among processes.
    """
    rows = len(next(iter(table.values())))
    if not rows:
        raise ValueError("the table has no rows")
    if batch_size % process_count or start_index % batch_size:
        raise ValueError(
            f"batch {batch_size}, start {start_index}: not whole on {process_count} hosts"
        )
    order = grain.MapDataset.range(rows).seed(seed).shuffle().repeat()
    local = batch_size // process_count
    position = start_index + process_index * local
    while True:
        index = np.array([order[position + i] for i in range(local)])
        yield {"row": index, **{name: column[index] for name, column in table.items()}}
        position += batch_size
