"""Random access to the records of a split, wherever its shards lie.

Local shards, and those on gs://, are read in place; with a cache they are copied to a local disk
first, and so can come from anywhere that `etils.epath` opens. A pod's data set has thousands of
shards: only the last used ones are kept open.
"""

import os
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from itertools import accumulate
from threading import Lock

from array_record.python.array_record_module import ArrayRecordReader
from etils import epath
from google.protobuf.message import DecodeError

from evatok_jax.data.container import BadVideo
from evatok_jax.data.records import features
from evatok_jax.data.shard_cache import ShardCache, used

_OPEN = 256  # shards; a process may have 1,024 files
_PAUSES = (1.0, 3.0)  # seconds before a record is asked for again: networks have bad moments
# No reading ahead, and small reads: records are asked for in random order.
_OPTIONS = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}


class Records:
    """The records of a split by number, as dictionaries (see `records.features`).

    `shards` are those of its manifest. Raises ValueError where they lie at an address that
    ArrayRecord does not read and there is no cache.
    """

    def __init__(
        self,
        directory: epath.Path,
        shards: list[dict],
        classes: Iterable[str],
        cache: ShardCache | None = None,
    ):
        scheme, remote, _ = os.fspath(directory).partition("://")
        if remote and scheme != "gs" and cache is None:
            raise ValueError(
                f"{directory}: ArrayRecord reads local files and gs:// only; copy the data set, "
                "mount it, or give data.cache_dir and data.cache_gb"
            )
        self._directory, self._shards, self._cache = directory, shards, cache
        self._ends = list(accumulate(shard["records"] for shard in shards))
        self._features = features(classes)
        self._open, self._lock = OrderedDict(), Lock()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, record: int) -> dict:
        """One record; IndexError past the end, BadVideo where it cannot be read."""
        if not 0 <= record < len(self):
            raise IndexError(f"record {record} of {len(self)}")
        shard = bisect_right(self._ends, record)
        place = record - (self._ends[shard] - self._shards[shard]["records"])
        for pause in (*_PAUSES, None):
            try:
                return self._features.deserialize_example_np(self._reader(shard).read([place])[0])
            except (RuntimeError, OSError, DecodeError) as error:
                if pause is None:
                    where = f"{self._directory / self._shards[shard]['file']}, record {place}"
                    raise BadVideo(f"{where}, cannot be read: {error}", "unreadable") from error
                time.sleep(pause)

    def _reader(self, shard: int):
        """The opened shard; other threads may have it too."""
        with self._lock:
            reader, copy = self._open.get(shard, (None, None))
            if reader is not None and (copy is None or used(copy)):
                self._open.move_to_end(shard)
                return reader
        source = self._directory / self._shards[shard]["file"]
        copy = self._cache.fetch(source, self._shards[shard]["bytes"]) if self._cache else None
        reader = ArrayRecordReader(os.fspath(copy or source), **_OPTIONS)
        found, stated = reader.num_records(), self._shards[shard]["records"]
        if found != stated:
            raise ValueError(
                f"{source} has {found} records, its manifest says {stated}: the data set is "
                "damaged, build it again"
            )
        with self._lock:
            self._open[shard] = reader, copy
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)  # closed when the last thread has done with it
        return reader
