"""Plans: which clips share a row or a batch, known from their lengths before any of them is read.

`Packing` lays clips end to end into rows of a fixed capacity, for the generator; `Buckets` makes
batches of clips of near-equal length, for tokenizers. Both are pure functions of (lengths, seed,
epoch): any place of the endless stream is found from its global index at the cost of one epoch's
deal, so a run goes on anywhere, on any number of processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class PackedRows:
    """What stands where in some rows.

    Attributes:
      clips: int64 [rows, most], clips from left to right; -1 where a row has fewer than `most`.
      offsets: int32 [rows, most], position of the first token of each clip.
      segments: int32 [rows, capacity], place of each position's clip in its row; -1 on padding.
    """

    clips: np.ndarray
    offsets: np.ndarray
    segments: np.ndarray

    @property
    def positions(self) -> Int[np.ndarray, "rows capacity"]:
        """Place of each position within its clip; 0 on padding."""
        capacity = self.segments.shape[1]
        start = np.take_along_axis(self.offsets, np.maximum(self.segments, 0), axis=1)
        return np.where(self.segments < 0, 0, np.arange(capacity, dtype=np.int32) - start)


class Packing:
    """Rows of whole clips, packed by first fit decreasing.

    How the lengths lie in rows depends on which lengths there are and on nothing else. So this
    template is made once; an epoch deals the clips of each length to the places of that length, and
    shuffles the rows. Every epoch has the same number of rows and each clip once.

    Attributes:
      rows: rows of an epoch.
      most: clips of the fullest row.
      share: share of all positions that hold a token.

    Raises ValueError where a clip does not fit a row: none is ever cut.
    """

    def __init__(self, lengths: Int[np.ndarray, " n"], capacity: int, seed: int):
        self.capacity, self._lengths, self._seed = capacity, _checked(lengths, seed), seed
        if (longest := self._lengths.max()) > capacity:
            raise ValueError(
                f"clip {self._lengths.argmax()} has {longest} positions, a row has {capacity}: "
                "choose longer rows"
            )
        row = first_fit(self._lengths, capacity)
        # Places are numbered from the longest to the shortest; these are those of row 0, row 1, ...
        self._places = np.argsort(row, kind="stable")
        self._counts = np.bincount(row)
        self._starts = np.cumsum(self._counts) - self._counts
        self.rows, self.most = len(self._counts), int(self._counts.max())
        self.share = float(self._lengths.sum() / (self.rows * capacity))
        self._dealt: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}

    def take(self, index: Int[np.ndarray, " b"]) -> PackedRows:
        """The rows at these global indices: epoch times `rows` plus the place in that epoch."""
        epochs, places = np.divmod(index, self.rows)
        clips = np.full((len(index), self.most), -1, np.int64)
        for epoch in np.unique(epochs).tolist():
            dealt, order = self._deal(epoch)
            own = epochs == epoch
            row, column = order[places[own]][:, None], np.arange(self.most)
            place = np.minimum(self._starts[row] + column, len(dealt) - 1)
            clips[own] = np.where(column < self._counts[row], dealt[place], -1)
        lengths = np.where(clips < 0, 0, self._lengths[clips])
        ends = np.cumsum(lengths, axis=1)
        padding = self.capacity - ends[:, -1:]
        names = np.append(np.arange(self.most, dtype=np.int32), np.int32(-1))
        widths = np.concatenate([lengths, padding], axis=1)
        segments = np.repeat(np.tile(names, len(clips)), widths.ravel())
        return PackedRows(
            clips, (ends - lengths).astype(np.int32), segments.reshape(len(clips), self.capacity)
        )

    def _deal(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The clips of row 0, row 1, ... one after another, and the order of the rows."""
        kept = self._dealt.get(epoch % 2)  # of the last two epochs: a batch may begin a new one
        if kept is None or kept[0] != epoch:
            keys = _random(self._seed, epoch, len(self._lengths) + self.rows)
            clips, rows = np.split(keys, [len(self._lengths)])
            by_length = np.lexsort((clips, -self._lengths))
            kept = self._dealt[epoch % 2] = epoch, by_length[self._places], np.argsort(rows)
        return kept[1:]


class Buckets:
    """Batches of clips of near-equal length.

    A position is a global record index. Each epoch has each clip once. Where it does not begin or
    end with a batch, clips drawn at random fill the batch that it shares with its neighbour; all
    others are sorted by length, those of equal length in random order, and cut into batches, which
    are shuffled.
    """

    def __init__(self, lengths: Int[np.ndarray, " n"], batch_size: int, seed: int):
        if batch_size < 1:
            raise ValueError(f"batch of {batch_size}: expected 1 or more clips")
        self.batch_size, self._lengths, self._seed = batch_size, _checked(lengths, seed), seed
        self._dealt: dict[int, tuple[int, np.ndarray]] = {}

    def take(self, index: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        """The clips at these global record indices, of which `batch_size` in a row are a batch."""
        epochs, places = np.divmod(index, len(self._lengths))
        clips = np.zeros(len(index), np.int64)
        for epoch in np.unique(epochs).tolist():
            own = epochs == epoch
            clips[own] = self._deal(epoch)[places[own]]
        return clips

    def _deal(self, epoch: int) -> np.ndarray:
        """The clips of an epoch in their order."""
        kept = self._dealt.get(epoch % 2)
        if kept is None or kept[0] != epoch:
            count, size = len(self._lengths), self.batch_size
            before = min(-epoch * count % size, count)  # they end the batch of the epoch before
            batches = (count - before) // size
            clips, order = np.split(_random(self._seed, epoch, count + batches), [count])
            first, within, last = np.split(np.argsort(clips), [before, before + batches * size])
            within = within[np.argsort(self._lengths[within], kind="stable")]
            within = within.reshape(batches, size)[np.argsort(order)].ravel()
            kept = self._dealt[epoch % 2] = epoch, np.concatenate([first, within, last])
        return kept[1]


def first_fit(lengths: Int[np.ndarray, " n"], capacity: int) -> Int[np.ndarray, " n"]:
    """Row of each clip, clips sorted from the longest to the shortest, by first fit decreasing.

    That is: each goes into the first row that has room for it. The work is done for all clips of
    one length at once, so it grows with the number of different lengths.
    """
    sizes, counts = np.unique(lengths, return_counts=True)
    # Spans of neighbouring rows with equal room, in order. The last one has the empty rows.
    first, rows, room = np.array([[0], [len(lengths)], [capacity]])
    placed = []
    for size, left in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        many = room // size  # clips that a row of each span takes
        taken = np.cumsum(rows * many)
        last = int(np.searchsorted(taken, left))  # the span in which they end
        full, part = divmod(left - (taken[last] - rows[last] * many[last]), many[last])
        # Its first rows are filled, one takes what is left over, and the others stay.
        widths = np.array([full, part > 0, rows[last] - full - (part > 0)])
        begins = first[last] + np.array([0, full, full + (part > 0)])
        many = np.concatenate([many[: last + 1], [part, 0], np.zeros_like(many[last + 1 :])])
        first = np.concatenate([first[:last], begins, first[last + 1 :]])
        rows = np.concatenate([rows[:last], widths, rows[last + 1 :]])
        room = np.insert(room, last, [room[last]] * 2) - many * size
        placed.append(np.stack([first, rows, many])[:, many * rows > 0])
        first, rows, room = np.stack([first, rows, room])[:, (rows > 0) & (room >= sizes[0])]
    first, rows, many = np.concatenate(placed, axis=1)
    within = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
    return np.repeat(np.repeat(first, rows) + within, np.repeat(many, rows))


def host_rows(batch_size: int, process_index: int, process_count: int) -> range:
    """The rows of each global batch that one process reads.

    Raises ValueError where the batch cannot be divided among the processes.
    """
    if batch_size < 1 or batch_size % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"a global batch of {batch_size} cannot be divided among {process_count} processes, "
            f"of which this is number {process_index}"
        )
    size = batch_size // process_count
    return range(process_index * size, (process_index + 1) * size)


def host_indices(
    batch_size: int, start_index: int = 0, process_index: int = 0, process_count: int = 1
) -> Iterator[Int[np.ndarray, " b"]]:
    """Global indices that one process reads, batch after batch. Raises as `host_rows` does."""
    own = np.array(host_rows(batch_size, process_index, process_count))
    while True:
        yield start_index + own
        start_index += batch_size


def _checked(lengths: np.ndarray, seed: int) -> np.ndarray:
    if not lengths.size or lengths.min() < 1:
        raise ValueError(f"a plan needs lengths of 1 or more, not {lengths}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed {seed}: expected 0 to 2**32 - 1")
    return lengths.astype(np.int64)


def _random(seed: int, epoch: int, count: int) -> np.ndarray:
    """Numbers to sort by. Philox's raw ones are the same in every version of NumPy."""
    return np.random.Philox(key=[seed, epoch]).random_raw(count)
