"""Clips: random access to windows of the videos of a data set, natively or at a frame rate.

A window is named by its record and the number of its first frame, counted in the whole video. Its
frames follow each other; or, at a frame rate, they are those that are shown at equal distances of
time from the first one on, as the time stamps say.
"""

import operator
import os
from collections.abc import Callable
from functools import cached_property
from typing import SupportsIndex

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Int, Int64, UInt8

from evatok_jax.data.container import BadVideo
from evatok_jax.data.deadline import within
from evatok_jax.data.decode import window
from evatok_jax.data.reading import Records
from evatok_jax.data.records import name_hash, read_index, read_manifest
from evatok_jax.data.shard_cache import ShardCache
from evatok_jax.names import nearest

Batch = dict[str, np.ndarray]

SHORT = "skip", "hold"
_LATE = 1e-4  # seconds by which a frame may come late and count as shown all the same


class BadClip(ValueError):
    """A clip that cannot be read; the message names the video and the window.

    Attributes:
      key: of the record, "" where not even that can be read.
      start: first frame of the window, -1 where none was chosen yet.
      cause: in a word or two.
      reason: in a sentence.
    """

    def __init__(self, message: str, key="", start=-1, cause="", reason=""):
        super().__init__(message)
        self.key, self.start, self.cause, self.reason = key, start, cause, reason


class Clips:
    """One split of a built data set.

    Attributes:
      manifest: what the data set is and how it was built (`records.read_manifest`).
      frames, height, width: of a clip.
      fps: frames of a clip in a second of the video, 0 for those of the video as they are.
      short: what a video is for that is too short for a window: "skip", nothing; "hold", one in
        which its last frame is repeated.
      time_limit: seconds that decoding a window may take.

    A split whose frames, at the clips' size, take at most `cache_bytes` is decoded once and kept in
    memory. With `cache_dir`, shards are copied to that folder, where they take at most `cache_gb`
    gigabytes. Neither changes a bit of a clip.

    Raises FileNotFoundError where there is no data set, ValueError for a split that it does not
    have, and for settings that mean nothing.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        split: str,
        frames: int,
        height: int,
        width: int,
        *,
        fps: float = 0.0,
        short: str = "skip",
        time_limit: float = 10.0,
        cache_bytes: int = 0,
        cache_dir: str = "",
        cache_gb: float = 0.0,
    ):
        if short not in SHORT:
            raise ValueError(f"unknown rule for short videos {short!r}: {nearest(short, SHORT)}")
        if fps < 0 or time_limit <= 0:
            raise ValueError(f"fps {fps}, time_limit {time_limit}: expected >= 0, and above 0")
        self.path, self.split = epath.Path(path), split
        self.frames, self.height, self.width = frames, height, width
        self.fps, self.short, self.time_limit = fps, short, time_limit
        self.manifest = read_manifest(self.path)
        if split not in self.manifest["splits"]:
            known = ", ".join(self.manifest["splits"])
            raise ValueError(f"{path} has no split {split!r}, only {known}")
        self._copies = ShardCache(cache_dir, cache_gb * 1e9) if cache_dir else None
        fits = cache_bytes and np.sum(self._lengths) * height * width * 3 <= cache_bytes
        # By record: its row and all frames that belong to the split, None where they do not decode.
        self._kept = {} if fits else None

    @classmethod
    def of(cls, data, split: str, geometry) -> "Clips":
        """Those of a config's section `data`, at the size of a geometry."""
        names = ("fps", "short", "time_limit", "cache_bytes", "cache_dir", "cache_gb")
        settings = {name: data[name] for name in names if name in data}
        g = geometry
        return cls(data.path, split, g.frames, g.height, g.width, **settings)

    def __getstate__(self):
        """What travels to a worker process: no opened files, decoded frames or long columns."""
        left = ("records", "index", "_lengths")
        kept = {name: value for name, value in self.__dict__.items() if name not in left}
        return kept | {"_kept": None if self._kept is None else {}}

    @cached_property
    def index(self):
        """Columns with a row for each record (`records.Index`)."""
        return read_index(self.path, self.split)

    @cached_property
    def records(self) -> Records:
        """Random access to the records."""
        shards = [shard for shard in self.manifest["shards"] if shard["split"] == self.split]
        return Records(self.path, shards, self.classes, self._copies)

    @property
    def classes(self) -> list[str]:
        """Names of the classes; a single one where the source has none."""
        return self.manifest["classes"]

    @cached_property
    def _lengths(self) -> Int[np.ndarray, " n"]:
        """Frames of each record."""
        return self.index["last"] - self.index["first"]

    def _fixed(self) -> Int64[np.ndarray, " n"]:
        """How many windows without overlap each record has, the first from its first frame on."""
        if self.fps:
            # The last frame of a window must be shown at its time, even where the first one is late
            # and the duration, in single precision, a little too long.
            seconds = self.index["duration"].astype(np.float64) * (1 - 1e-7) - 2 * _LATE
            room = seconds * self.fps - (self.frames - 1)
            counts = np.ceil(room / self.frames)
        else:
            counts = self._lengths // self.frames
        return np.maximum(counts, self.short == "hold").astype(np.int64) * (self._lengths > 0)

    def usable(self) -> Int[np.ndarray, " n"]:
        """Records that give clips; the log tells how many are too short.

        Raises ValueError where there is none.
        """
        usable = self._fixed() > 0
        at = f" at {self.fps:g} frames a second" if self.fps else ""
        if not usable.any():
            raise ValueError(
                f"{self.path} {self.split}: none of {len(usable)} videos has {self.frames} "
                f"frames{at}; data.short=hold takes shorter ones"
            )
        if not usable.all():
            logging.warning(
                "%s %s: %d of %d videos are shorter than %d frames%s and give no clip",
                *(self.path, self.split, np.sum(~usable), len(usable), self.frames, at),
            )
        return np.flatnonzero(usable)

    def windows(self) -> Int64[np.ndarray, "n 2"]:
        """All fixed non-overlapping windows in order, as rows of (record, first frame).

        At a frame rate, window n of a video begins with the frame that is shown n times the length
        of a clip after the first one. Videos of varying rate are looked up one by one.
        """
        usable, counts = self.usable(), self._fixed()
        counts = counts[usable]
        records = np.repeat(usable, counts)
        numbers = np.arange(len(records)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = self.index["first"][records] + numbers * self.frames
        if self.fps:
            seconds, rates = numbers * self.frames / self.fps, self.index["rate"][records]
            starts = self.index["first"][records] + np.floor((seconds + _LATE) * rates)
            for record in np.unique(records[(rates == 0) & (numbers > 0)]).tolist():
                row, own = self.records[record], records == record
                starts[own] = _shown(row, row["first"], seconds[own])
            starts = np.minimum(starts, self.index["last"][records] - 1)
        return np.stack([records, starts.astype(np.int64)], axis=1)

    def read(
        self, record: SupportsIndex, start: SupportsIndex, flip: bool | np.bool_ = False
    ) -> Batch:
        """The clip of a window, mirrored if asked.

        Keys: video uint8 [frames, height, width, 3], label int32, key uint32 (`records.name_hash`),
        record int32, window int32 (the first frame), flip bool. Raises BadClip where it cannot be
        read.
        """
        return self._clip(operator.index(record), lambda row: operator.index(start), flip)

    def draw(
        self, record: SupportsIndex, random: np.random.Generator, flip: bool | np.bool_ = False
    ) -> Batch:
        """The clip of a random window of a record, every first frame that fits being as likely."""

        def start(row):
            return int(random.integers(row["first"], self._last_start(row) + 1))

        return self._clip(operator.index(record), start, flip)

    def _clip(self, record: int, choose: Callable[[dict], int], flip) -> Batch:
        key, start = "", -1
        try:
            row, whole = self._load(record)
            key = row["key"].decode()
            start = choose(row)
            numbers = self._numbers(row, start)
            if whole is None:
                video = self._decode(row, numbers, bool(flip))
            else:
                video = whole[numbers - row["first"]]
                video = mirrored(video) if flip else video
        except BadVideo as error:
            raise BadClip(
                f"{self.path}, split {self.split}, record {record} ({key}), frames from "
                f"{start}: {error}",
                *(key, start, error.cause, str(error)),
            ) from error
        return {
            "video": video,
            "label": np.int32(row["label"]),
            "key": np.uint32(name_hash(key)),
            "record": np.int32(record),
            "window": np.int32(start),
            "flip": np.bool_(flip),
        }

    def _load(self, record: int) -> tuple[dict, np.ndarray | None]:
        """A record, and its frames at the clips' size where they are kept in memory."""
        if self._kept is None:
            return self.records[record], None
        if record not in self._kept:
            row = self.records[record]
            try:
                whole = self._decode(row, np.arange(row["first"], row["last"]))
                self._kept[record] = {**row, "video": b""}, whole
            except BadVideo:  # some of its windows may be sound: they are tried one by one
                self._kept[record] = None
        return self._kept[record] or (self.records[record], None)

    def _decode(
        self, row: dict, numbers: np.ndarray, flip: bool = False
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """Frames of a video at the clips' size."""
        # Coded pictures are a little larger than shown ones. What is much larger than the build has
        # seen is damaged, and must not ask for memory.
        pixels = 2 * int(row["height"]) * int(row["width"]) + 2**16
        size = self.height, self.width

        def decode(deadline):
            return window(row["video"], numbers, *size, row["keyframes"], pixels, deadline, flip)

        return within(self.time_limit, decode)

    def _last_start(self, row: dict) -> int:
        """The last frame from which on a window fits, or the first frame where none does."""
        last = row["last"] - self.frames
        if self.fps:
            end = row["times"][row["first"]] + row["duration"]
            latest = end - (self.frames - 1) / self.fps - _LATE
            last = np.searchsorted(row["times"][: row["last"]], latest) - 1
        return max(int(last), int(row["first"]))

    def _numbers(self, row: dict, start: int) -> Int64[np.ndarray, " frames"]:
        """Numbers of the frames of a window."""
        steps, first, last = np.arange(self.frames), row["first"], row["last"]
        if self.fps and first <= start < last:
            numbers = _shown(row, start, steps / self.fps)
            end = row["times"][first] + row["duration"]
            fits = row["times"][start] + steps[-1] / self.fps + _LATE < end
        else:
            numbers = start + steps
            fits = first <= start and numbers[-1] < last
        if not fits and (self.short == "skip" or not first <= start < last):
            raise BadVideo(f"its frames are {first} to {last - 1}", "outside")
        return np.minimum(numbers, last - 1)


def mirrored(video: UInt8[np.ndarray, "*b w 3"]) -> UInt8[np.ndarray, "*b w 3"]:
    """Pictures as a mirror shows them; to copy one colour after another is five times as fast."""
    copy = np.empty_like(video)
    for colour in range(3):
        copy[..., colour] = video[..., ::-1, colour]
    return copy


def _shown(row: dict, start: int, seconds: np.ndarray) -> Int64[np.ndarray, " n"]:
    """Numbers of the frames that are shown so long after frame `start` begins."""
    at = row["times"][start] + seconds + _LATE
    return np.minimum(np.searchsorted(row["times"], at, "right"), row["last"]) - 1
