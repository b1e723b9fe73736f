"""Listings: what a data set is made of, before any video is read.

A source lists groups in a fixed order: single videos, or archives of them. Nothing is held in
memory but what names them, so that a list of ten million rows fits.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import SEEK_CUR, SEEK_END, SEEK_SET, RawIOBase
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from evatok_jax.data.container import BadVideo

UNLABELLED = ("unlabelled",)  # the class of a source without classes; one is no class worth a gFVD
_READ_AHEAD = 2**20


@dataclass(frozen=True, slots=True)
class VideoFile:
    """One video of a source, or the part of it that belongs to one split.

    Attributes:
      path: the file, or the archive that holds it.
      key: its name within the source; parts of one video share it.
      label: class number.
      caption: what the source says of it in words, "" where it says nothing.
      share: which part of its frames belongs to this split, as fractions of its length.
      sha256: what the file must hash to, "" where the source does not say.
      start, size: where its bytes are in `path`; without a size, to the end.
      problem: why there is nothing to read, where the listing knows of one.
    """

    path: Path
    key: str
    label: int = 0
    caption: str = ""
    share: tuple[float, float] = (0.0, 1.0)
    sha256: str = ""
    start: int = 0
    size: int | None = None
    problem: BadVideo | None = None

    def videos(self) -> Iterable["VideoFile"]:
        """Itself: a video is a group of one."""
        return (self,)

    def open(self) -> "Section":
        """Its bytes, to be read from the disk."""
        there = max(0, self.path.stat().st_size - self.start)  # an archive may be cut off
        return Section(self.path, self.start, there if self.size is None else min(self.size, there))


@runtime_checkable
class Group(Protocol):
    """What a source lists as one, and one shard holds: a video, or an archive of them."""

    key: str

    def videos(self) -> Iterable[VideoFile]:
        """Its videos in order."""
        ...


class Section(RawIOBase):
    """A part of a file, to be read as if it was a file.

    It has no name on purpose: FFmpeg shall judge a video by its bytes, which are all that a record
    will hold.
    """

    def __init__(self, path: Path, start: int, size: int):
        self._file = path.open("rb", buffering=_READ_AHEAD)
        self._start, self.size, self._at = start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        base = {SEEK_SET: 0, SEEK_CUR: self._at, SEEK_END: self.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer) -> int:
        wanted = min(len(buffer), max(0, self.size - self._at))
        self._file.seek(self._start + self._at)
        count = self._file.readinto(memoryview(buffer)[:wanted])
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True)
class Source:
    """The groups of each split with the names of their classes, and a word on the split.

    Attributes:
      name: that of the source.
      splits: the groups of each split, in order.
      classes: names of the classes, in the order of their numbers.
      split_rule: how the splits were made, in words.
      identity: a hash of the listing: another one makes another data set.
      min_frames: how short a video may be, unless a build says otherwise.
      absent_is_bad: whether a listed file that is not there counts as a fault. It does not where
        lists name videos that nobody has any more.
      archives: whether a group holds many videos, so that nobody knows their number beforehand.
    """

    name: str
    splits: Mapping[str, Sequence[Group]]
    classes: tuple[str, ...]
    split_rule: str
    identity: str
    min_frames: int = 16
    absent_is_bad: bool = True
    archives: bool = False


class Lazy(Sequence):
    """A sequence whose items are made when they are asked for."""

    def __init__(self, rows: Sequence, make: Callable[[Any], Group]):
        self._rows, self._make = rows, make

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Group:
        return self._make(self._rows[index])


def listed(
    name: str,
    videos: Iterable[tuple[str, VideoFile]],
    classes: tuple[str, ...],
    split_rule: str,
    **options,
) -> Source:
    """A source of some (split, video), small enough to be held as they are.

    `options` are further attributes of `Source`.
    """
    videos, splits = list(videos), {}
    for split, video in videos:
        splits.setdefault(split, []).append(video)
    identity = hash_rows(
        [v.key, split, v.label, *v.share, v.path.stat().st_size if v.path.is_file() else -1]
        for split, v in videos
    )
    return Source(name, splits, classes, split_rule, identity, **options)


def hash_rows(rows: Iterable) -> str:
    """The SHA-256 of rows of plain values."""
    total = sha256()
    for row in rows:
        total.update(json.dumps(row).encode() + b"\n")
    return total.hexdigest()


def files_below(
    directory: Path, suffixes: tuple[str, ...], inside: str = ""
) -> Iterator[tuple[str, int]]:
    """Name (relative, with "/") and bytes of each file with such a suffix, in the order of names.

    Folders that are links are not entered, so that a walk ends.
    """
    with os.scandir(directory) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    for entry in entries:
        name = f"{inside}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield from files_below(Path(entry.path), suffixes, f"{name}/")
        elif entry.name.lower().endswith(suffixes) and entry.is_file():
            yield name, entry.stat().st_size
