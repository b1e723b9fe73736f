"""Pipelines: Grain over the records of a data set, from encoded videos to batches of clips.

A position in the endless training stream is a global record index: epoch times number of records
plus the place in that epoch's order. Everything random is drawn from (seed, global record index)
alone, so an iterator is rebuilt at any position at no cost and gives the same bits, on any number
of processes, threads and workers.
"""

import operator
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import SupportsIndex

import grain
import numpy as np
from absl import flags, logging
from jaxtyping import Int

from evatok_jax.data.decode import BadVideo, window
from evatok_jax.data.records import open_records, read_index, read_manifest

Batch = dict[str, np.ndarray]


class Clips:
    """One split of a built data set: random access to windows of its videos.

    Attributes:
      manifest: what the data set is and how it was built (`records.read_manifest`).
      index: columns with a row for each record; "first" and "last" bound the frames of the video
      that
        belong to this split.
      frames, height, width: of a clip.
      cache_bytes: a split whose frames, at the clips' size, take no more than this is decoded once
        and kept in memory. The clips are the same bits.

    Raises FileNotFoundError where there is no data set, ValueError for a split that it does not
    have.
    """

    def __init__(
        self,
        path: str | Path,
        split: str,
        frames: int,
        height: int,
        width: int,
        cache_bytes: int = 0,
    ):
        self.path, self.split = Path(path), split
        self.frames, self.height, self.width = frames, height, width
        self.manifest = read_manifest(self.path)
        if split not in self.manifest["splits"]:
            known = ", ".join(self.manifest["splits"])
            raise ValueError(f"{path} has no split {split!r}, only {known}")
        self.index = read_index(self.path, split)
        held = np.sum(self.index["last"] - self.index["first"]) * height * width * 3
        self._cache = {} if held <= cache_bytes else None

    def __getstate__(self):
        """What travels to a worker process: all but opened files and decoded frames."""
        kept = {name: value for name, value in self.__dict__.items() if name != "records"}
        return kept | {"_cache": None if self._cache is None else {}}

    @cached_property
    def records(self):
        """The TFDS data source."""
        return open_records(self.path, self.split)

    def open(self) -> None:
        """Opens the records now: an error comes early, and threads do not all open them."""
        len(self.records)

    @property
    def classes(self) -> list[str]:
        """Names of the classes; a single one where the source has none."""
        return self.manifest["classes"]

    def usable(self) -> Int[np.ndarray, " n"]:
        """Records that are long enough for a clip; the log tells how many are not.

        Raises ValueError where there is none.
        """
        long = self.index["last"] - self.index["first"] >= self.frames
        if not long.any():
            raise ValueError(
                f"{self.path} {self.split}: none of {len(long)} videos has {self.frames} frames"
            )
        if not long.all():
            logging.warning(
                "%s %s: %d of %d videos are shorter than %d frames and give no clip",
                *(self.path, self.split, np.sum(~long), len(long), self.frames),
            )
        return np.flatnonzero(long)

    def windows(self) -> Int[np.ndarray, "n 2"]:
        """All fixed non-overlapping windows in order, as rows of (record, first frame)."""
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

    def read(
        self, record: SupportsIndex, start: SupportsIndex, flip: bool | np.bool_ = False
    ) -> Batch:
        """One clip: frames start .. start + frames of the video in a record, mirrored if asked.

        Keys: video uint8 [frames, height, width, 3], label int32, key uint32 (`records.name_hash`),
        record int32, window int32 (the start, counted in the whole video), flip bool. Raises
        ValueError naming the video and the window where it cannot be decoded.
        """
        record, start = operator.index(record), operator.index(start)
        if self._cache is None:
            video, label = self._decode(record, start, self.frames)
        else:
            first, last = (int(self.index[name][record]) for name in ("first", "last"))
            if record not in self._cache:
                self._cache[record] = self._decode(record, first, last - first)
            whole, label = self._cache[record]
            video = whole[start - first : start - first + self.frames]
        return {
            "video": np.ascontiguousarray(video[:, :, ::-1]) if flip else video,
            "label": np.int32(label),
            "key": self.index["hash"][record],
            "record": np.int32(record),
            "window": np.int32(start),
            "flip": np.bool_(flip),
        }

    def _decode(self, record: int, start: int, count: int) -> tuple[np.ndarray, int]:
        """Frames of a record at the clips' size, and its label."""
        row = self.records[record]
        try:
            video = window(row["video"], start, count, self.height, self.width, row["keyframes"])
        except BadVideo as error:
            name = row["key"].decode()
            raise ValueError(
                f"{self.path}, split {self.split}, record {record} ({name}), frames from "
                f"{start}: {error}"
            ) from error
        return video, row["label"]


class _TrainStream:
    """The clip at any global record index, a pure function of (seed, index)."""

    def __init__(self, clips: Clips, seed: int, flip: bool, windows: np.ndarray | None):
        self._clips, self._seed, self._flip, self._windows = clips, seed, flip, windows
        self._records = clips.usable() if windows is None else windows[:, 0]
        if not len(self._records):
            raise ValueError(f"{clips.path} {clips.split}: no windows to read")
        clips.open()
        self._order = grain.MapDataset.range(len(self._records)).seed(seed).shuffle().repeat()

    def __call__(self, index: int) -> Batch:
        clips, row = self._clips, self._order[index]
        record = int(self._records[row])
        random = np.random.Generator(np.random.Philox(key=[self._seed, index]))
        mirrored = self._flip and bool(random.integers(2))
        if self._windows is not None:
            clip = clips.read(record, int(self._windows[row, 1]), mirrored)
            return {**clip, "row": np.int32(row)}
        first, last = (int(clips.index[name][record]) for name in ("first", "last"))
        return clips.read(record, int(random.integers(first, last - clips.frames + 1)), mirrored)


class _EvalStream:
    """The clip at any place of a list of windows, past whose end the last one is repeated."""

    def __init__(self, clips: Clips, windows: np.ndarray):
        self._clips, self._windows = clips, windows
        clips.open()

    def __call__(self, index: int) -> Batch:
        row = min(index, len(self._windows) - 1)
        record, start = (int(value) for value in self._windows[row])
        clip = self._clips.read(record, start)
        return {**clip, "row": np.int32(row), "mask": np.bool_(index < len(self._windows))}


class _HostRows:
    """Global index of the n-th clip that one process reads: whole rows of each global batch."""

    def __init__(self, start: int, batch_size: int, process_index: int, process_count: int):
        if batch_size < 1 or batch_size % process_count or not 0 <= process_index < process_count:
            raise ValueError(
                f"a global batch of {batch_size} cannot be divided among {process_count} "
                f"processes, of which this is number {process_index}"
            )
        self.size = batch_size // process_count
        self._batch_size, self._start = batch_size, start + process_index * self.size

    def __call__(self, position: int) -> int:
        batch, row = divmod(position, self.size)
        return self._start + batch * self._batch_size + row


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
    cache_bytes: int = 0,
) -> Iterator[Batch]:
    """Endless batches of clips from global record `start_index` on, shuffled anew each epoch.

    An epoch visits each video once, at a random window of consecutive frames, or each of the given
    `windows` (record, first frame), whose row number is then in "row". With `flip`, every second
    clip is mirrored at random. `batch_size` is global: each process gets its rows of every global
    batch, in order. `workers` are processes (they need parsed absl flags), `threads` are those in
    each.

    Yields what `Clips.read` gives, stacked along a new first axis. Raises ValueError where the
    batch cannot be divided among the processes or nothing is long enough; while iterating, where a
    clip cannot be decoded.
    """
    if not 0 <= seed < 2**32 or start_index < 0:
        raise ValueError(
            f"seed {seed}, start_index {start_index}: expected 0 to 2**32 - 1, and >= 0"
        )
    stream = _TrainStream(
        Clips(path, split, frames, height, width, cache_bytes), seed, flip, windows
    )
    rows = _HostRows(start_index, batch_size, process_index, process_count)
    endless = grain.MapDataset.range(sys.maxsize // 4)
    return iter(_batches(endless.map(rows).map(stream), rows.size, threads, workers))


def eval_clips(
    clips: Clips,
    batch_size: int,
    windows: Int[np.ndarray, "n 2"] | None = None,
    threads: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Windows in order (all fixed ones by default), each once, in batches as those of
    `train_clips`.

    Adds "row" int32, the number of the window, and "mask" bool, false on the clips that fill the
    last batch by repeating the last window. Every process gets the same number of batches.
    """
    windows = clips.windows() if windows is None else windows
    rows = _HostRows(0, batch_size, process_index, process_count)
    count = -(-len(windows) // batch_size) * rows.size
    dataset = grain.MapDataset.range(count).map(rows).map(_EvalStream(clips, windows))
    return iter(_batches(dataset, rows.size, threads, 0) if count else ())


def _batches(dataset: grain.MapDataset, size: int, threads: int, workers: int) -> grain.IterDataset:
    """Batches read ahead by threads, in this process or in workers."""
    # Batching comes before the workers, each of which makes whole batches: any number gives the
    # same.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iterable = dataset.batch(size).to_iter_dataset(options)
    if not workers:
        return iterable
    if not flags.FLAGS.is_parsed():
        raise ValueError("worker processes need parsed absl flags: start through absl.app.run")
    return iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
