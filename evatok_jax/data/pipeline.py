"""Pipelines: Grain over the data source, from records to batches of clips.

Everything random is drawn from (seed, global record index), and the position of a run is that index:
an iterator is rebuilt at any position at no cost and gives the same bits.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import flags, logging
from jaxtyping import Int

from evatok_jax.data.decode import BadVideo, window
from evatok_jax.workdir import read_json


class Clips:
    """One split of a built data set: random access to windows of its videos."""

    def __init__(self, path: str | Path, split: str, frames: int, height: int, width: int):
        self.path, self.split = Path(path), split
        self.frames, self.height, self.width = frames, height, width
        if not (self.path / "manifest.json").exists():
            raise FileNotFoundError(
                f"no data set in {path}: make one with `evatok data build NAME --out {path}`"
            )
        self.manifest = read_json(self.path / "manifest.json")
        if split not in self.manifest["splits"]:
            known = ", ".join(self.manifest["splits"])
            raise ValueError(f"{path} has no split {split!r}, only {known}")
        with np.load(self.path / f"index-{split}.npz", allow_pickle=False) as file:
            self.index = dict(file)

    def __getstate__(self):
        """What travels to a worker process: all but the opened files."""
        return {k: v for k, v in self.__dict__.items() if k != "records"}

    @cached_property
    def records(self):
        """The TFDS data source."""
        return tfds.builder_from_directory(str(self.path)).as_data_source(self.split)

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.manifest["classes"]

    def usable(self) -> np.ndarray:
        """Records that are long enough for one clip, int64 [n]; the others are counted in the log."""
        long = self.index["last"] - self.index["first"] >= self.frames
        if not long.all():
            logging.info(
                "%s %s: %d of %d videos are shorter than %d frames and give no clip",
                *(self.path, self.split, (~long).sum(), len(long), self.frames),
            )
        return np.flatnonzero(long)

    def windows(self) -> Int[np.ndarray, "n 2"]:
        """All fixed non-overlapping windows as rows of (record, first frame)."""
        rows = [
            (record, start)
            for record in self.usable()
            for start in range(
                int(self.index["first"][record]),
                int(self.index["last"][record]) - self.frames + 1,
                self.frames,
            )
        ]
        return np.array(rows, np.int64).reshape(-1, 2)

    def read(self, record: int, start: int, flip: bool = False) -> dict[str, np.ndarray]:
        """One clip: video uint8 [frames, height, width, 3], label, key, record, window, flip.

        `key` is the CRC-32 of the video's name. Raises ValueError naming the video and the window
        where it cannot be decoded.
        """
        row = self.records[int(record)]
        try:
            video = window(
                row["video"], start, self.frames, self.height, self.width, row["keyframes"]
            )
        except BadVideo as error:
            name = row["key"].decode()
            raise ValueError(f"{self.path} {self.split} {name}, frame {start}: {error}") from error
        return {
            "video": np.ascontiguousarray(video[:, :, ::-1]) if flip else video,
            "label": np.int32(row["label"]),
            "key": self.index["crc"][record],
            "record": np.int32(record),
            "window": np.int32(start),
            "flip": np.bool_(flip),
        }


def train_clips(
    path: str | Path,
    *,
    frames: int,
    height: int,
    width: int,
    batch_size: int,
    seed: int,
    start_index: int = 0,
    flip: bool = True,
    split: str = "train",
    windows: Int[np.ndarray, "n 2"] | None = None,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    workers: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches from global record `start_index` on, shuffled anew each epoch.

    A record is a video, of which a random window of consecutive frames is taken, or one of the given
    `windows` (record, first frame), whose row number is then in "row". Both are flipped at random.
    `batch_size` is global; this process gets every process_count-th record of each batch.

    Raises ValueError where the batch cannot be divided among processes.
    """
    if batch_size % process_count:
        raise ValueError(f"batch {batch_size} cannot be divided among {process_count} processes")
    clips = Clips(path, split, frames, height, width)
    records = clips.usable()

    def load(number, rng: np.random.Generator):
        if windows is not None:
            record, start = windows[number]
        else:
            record = records[number]
            first, last = (int(clips.index[name][record]) for name in ("first", "last"))
            start = rng.integers(first, last - frames + 1)
        clip = clips.read(record, int(start), bool(flip and rng.integers(2)))
        return clip if windows is None else {**clip, "row": np.int32(number)}

    count = len(records) if windows is None else len(windows)
    dataset = grain.MapDataset.range(count).seed(seed).shuffle().repeat().random_map(load)
    dataset = dataset[start_index + process_index :: process_count]
    dataset = dataset.batch(batch_size // process_count)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iterable = dataset.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            raise ValueError("worker processes need parsed absl flags: start through absl.app.run")
        iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(iterable)


def eval_clips(
    clips: Clips,
    batch_size: int,
    windows: Int[np.ndarray, "n 2"] | None = None,
    threads: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """Windows in order (all fixed ones by default); the last batch is padded.

    Adds "mask" bool [batch_size], false on padding, which repeats the last clip.
    """
    windows = clips.windows() if windows is None else windows
    if not len(windows):
        return
    whole = -(-len(windows) // batch_size) * batch_size
    rows = np.minimum(np.arange(whole), len(windows) - 1)

    def load(number):
        record, start = windows[rows[number]]
        return {**clips.read(record, int(start)), "mask": np.bool_(number < len(windows))}

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    dataset = grain.MapDataset.range(whole).map(load).batch(batch_size)
    yield from dataset.to_iter_dataset(options)
