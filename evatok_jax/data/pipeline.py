"""Pipelines: Grain over the records of a data set, from encoded videos to batches of clips.

A position in the endless training stream is a global record index: epoch times number of records
plus the place in that epoch's order. Everything random is drawn from (seed, global record index)
alone, so an iterator is rebuilt at any position at no cost and gives the same bits, on any number
of hosts, threads and workers.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from evatok_jax.data.clips import BadClip, Batch, Clips
from evatok_jax.data.faults import NONE_KNOWN, Fault, Known, Quarantine
from evatok_jax.data.plans import host_rows
from evatok_jax.data.watch import Journal, begin_worker, watched

_TRIES = 10  # clips at one place; where so many fail, it is not the clips
_BY_SHARED_MEMORY = 2**16  # bytes from which an array does not go through a pipe


class _TrainStream:
    """The clip at any global record index, a pure function of (seed, index) and known faults."""

    def __init__(
        self,
        clips: Clips,
        seed: int,
        flip: bool,
        windows: Int[np.ndarray, "n 2"] | None,
        known: Known,
        journal: Journal,
    ):
        self._clips, self._seed, self._flip, self._windows = clips, seed, flip, windows
        self._known, self._journal = known, journal
        self._records = clips.usable() if windows is None else windows[:, 0]
        if not len(self._records):
            raise ValueError(f"{clips.path} {clips.split}: no windows to read")
        self._order = grain.MapDataset.range(len(self._records)).seed(seed).shuffle().repeat()

    def __call__(self, index: int) -> tuple[Batch | None, list[Fault]]:
        """The clip, None where all attempts fail, and the faults that were met on the way."""
        faults = []
        for attempt in range(_TRIES):
            # Attempts draw from streams of their own.
            philox = np.random.Philox(key=[self._seed, index], counter=[0, 0, 0, attempt])
            random = np.random.Generator(philox)
            row = int(random.integers(len(self._records))) if attempt else self._order[index]
            mirrored = self._flip and bool(random.integers(2))
            record = int(self._records[row])
            if self._known.get((index, attempt)) == record:
                continue
            try:
                with self._journal.reading(record):
                    clip = self._read(row, record, random, mirrored)
                return {**clip, "attempts": np.int32(attempt)}, faults
            except BadClip as bad:
                said = bad.key, bad.start, bad.cause, bad.reason
                faults.append(Fault(index, attempt, record, *said))
        return None, faults

    def _read(self, row: int, record: int, random: np.random.Generator, flip: bool) -> Batch:
        if self._windows is None:
            return self._clips.draw(record, random, flip)
        clip = self._clips.read(record, self._windows[row, 1], flip)
        return {**clip, "row": np.int32(row)}


class _EvalStream:
    """The clip at any place of a list of windows, past whose end the last one is repeated."""

    def __init__(self, clips: Clips, windows: Int[np.ndarray, "n 2"]):
        self._clips, self._windows = clips, windows

    def __call__(self, index: int) -> tuple[Batch, list[Fault]]:
        """The clip, and no faults: each is an error."""
        row = min(index, len(self._windows) - 1)
        clip = self._clips.read(*self._windows[row])
        mask = np.bool_(index < len(self._windows))
        return {**clip, "row": np.int32(row), "mask": mask}, []


class _HostBatches:
    """The rows of the n-th global batch that one host reads, clip by clip, stacked."""

    def __init__(
        self,
        stream: Callable[[int], tuple[Batch | None, list[Fault]]],
        start: int,
        batch_size: int,
        process_index: int,
        process_count: int,
    ):
        self._stream, self._start, self._batch_size = stream, start, batch_size
        self._rows = host_rows(batch_size, process_index, process_count)

    def __call__(self, number: int) -> tuple[Batch, list[Fault]]:
        """The batch, empty where a place of it could not be filled, and all faults of its clips."""
        batch, faults = {}, []
        for place, row in enumerate(self._rows):
            clip, own = self._stream(self._start + number * self._batch_size + row)
            faults += own
            if clip is None:
                return {}, faults
            for name, value in clip.items():
                if name not in batch:
                    shape = (len(self._rows), *np.shape(value))
                    batch[name] = np.empty(shape, np.asarray(value).dtype)
                batch[name][place] = value
        return batch, faults


def train_clips(
    clips: Clips,
    *,
    batch_size: int,
    seed: int,
    start_index: int = 0,
    flip: bool = True,
    windows: Int[np.ndarray, "n 2"] | None = None,
    quarantine: Quarantine | None = None,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    workers: int = 0,
) -> Iterator[Batch]:
    """Endless batches of clips from global record `start_index` on, shuffled anew each epoch.

    An epoch visits each video once, at a random window, or each of the given `windows` (record,
    first frame), whose row number is then in "row". With `flip`, every second clip is mirrored at
    random. `batch_size` is global: each process gets its rows of every global batch, in order.
    `workers` are processes (they need parsed absl flags), `threads` are those in each.

    A clip that cannot be read is replaced by another one, drawn from the seed and the global record
    index; "attempts" int32 counts how often that happened. Faults are listed in `quarantine` before
    the batch is handed out; by default there must be none.

    Yields what `Clips.read` gives, stacked along a new first axis. Raises ValueError where the
    batch cannot be divided among the processes or nothing is long enough; while iterating, where
    too many clips cannot be read, and ChildProcessError where a worker has died.
    """
    if not 0 <= seed < 2**32 or start_index < 0:
        raise ValueError(
            f"seed {seed}, start_index {start_index}: expected 0 to 2**32 - 1, and >= 0"
        )
    quarantine, journal = quarantine or Quarantine(), Journal()
    # What was known before this place is of no use to anybody, and travels to all workers.
    known = {place: r for place, r in quarantine.known.items() if place[0] >= start_index}
    stream = _TrainStream(clips, seed, flip, windows, known or NONE_KNOWN, journal)
    batches = _HostBatches(stream, start_index, batch_size, process_index, process_count)
    dataset = _read_ahead(grain.MapDataset.range(sys.maxsize // 4).map(batches), threads)
    if workers:
        if not flags.FLAGS.is_parsed():
            raise ValueError("worker processes need parsed absl flags: start through absl.app.run")
        options = grain.MultiprocessingOptions(num_workers=workers)
        dataset = dataset.mp_prefetch(options, worker_init_fn=partial(begin_worker, journal))

    def handed_out():
        iterator = iter(dataset)
        try:
            for batch, faults in watched(iterator, journal, partial(_name, clips)):
                quarantine.add(len(batch["attempts"]) if batch else 0, faults)
                if not batch:
                    raise ValueError(f"{_TRIES} clips in a row cannot be read: {quarantine}")
                yield batch
        except ChildProcessError:
            raise  # to close would be to wait for a worker that is gone
        except BaseException:
            iterator.close()
            raise

    return handed_out()


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
    last batch by repeating the last window. Every process gets the same number of batches. A clip
    that cannot be read is an error (BadClip): what is measured is what was asked for.
    """
    windows = clips.windows() if windows is None else windows
    stream = _EvalStream(clips, windows)
    batches = _HostBatches(stream, 0, batch_size, process_index, process_count)
    count = -(-len(windows) // batch_size)
    dataset = _read_ahead(grain.MapDataset.range(count).map(batches), threads)
    return (batch for batch, _ in (dataset if count else ()))


def _read_ahead(dataset: grain.MapDataset, threads: int) -> grain.IterDataset:
    """Batches made by threads, each of which makes whole ones: any number gives the same."""
    # One more than threads, so that they are busy while the oldest batch is waited for.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
    own = grain.experimental.DatasetOptions(min_shm_size=_BY_SHARED_MEMORY)
    return grain.experimental.WithOptionsIterDataset(dataset.to_iter_dataset(options), own)


def _name(clips: Clips, record: int) -> str:
    return f"record {record} ({clips.index['key'][record]})"
