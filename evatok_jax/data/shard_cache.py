"""Copies of shards on a local disk, for data sets that lie far away.

Several processes share one folder. A shard is copied when its first record is asked for, by
whichever process comes first while the others wait; where the folder would grow beyond its limit,
those that nobody has used for longest are removed before. A shard that is removed while it is being
read stays readable for whoever has it open, and its room is free once that one lets go.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from etils import epath

_PAUSE = 0.2  # seconds between two looks whether others have made room


class ShardCache:
    """A folder of copies that together hold at most `limit` bytes.

    Only files that this class has made are counted and removed. Raises ValueError for a limit that
    is not above zero.
    """

    def __init__(self, directory: str | os.PathLike, limit: float):
        if limit <= 0:
            raise ValueError(f"{directory}: a cache of {limit:g} bytes holds nothing")
        self._directory, self._limit = Path(directory), limit

    def fetch(self, source: epath.Path, size: int) -> Path:
        """The copy of a file of `size` bytes, made where there is none, and marked as used.

        It may be removed at any time after: ask again before each use. Raises ValueError for a file
        larger than the limit or of another size, OSError where it cannot be copied.
        """
        name = hashlib.sha256(f"{os.fspath(source)} {size}".encode()).hexdigest()[:32]
        copy = self._directory / f"{name}.shard"
        if used(copy):
            return copy
        if size > self._limit:
            raise ValueError(
                f"{source} has {size / 1e9:.2f} GB, the cache {self._limit / 1e9:.2f} GB: raise "
                "data.cache_gb"
            )
        self._directory.mkdir(parents=True, exist_ok=True)
        with self._locked(name):  # one process copies, the others wait here
            if not used(copy):
                self._copy(source, copy.with_suffix(".part"), size)
                copy.with_suffix(".part").replace(copy)
        return copy

    def _copy(self, source: epath.Path, part: Path, size: int) -> None:
        part.unlink(missing_ok=True)  # of a process that was killed
        while not self._reserved(part, size):
            time.sleep(_PAUSE)  # others are copying: what they have made can go when they are done
        try:
            with source.open("rb") as file, part.open("r+b") as out:
                shutil.copyfileobj(file, out, 1 << 20)
                copied = out.tell()
            if copied != size:
                raise ValueError(f"{source} has {copied} bytes, its manifest says {size}")
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _reserved(self, part: Path, size: int) -> bool:
        """Makes room for a copy and takes it so that others count it; False where there is none."""
        with self._locked("room"):
            free, shards = self._limit, []
            for path in self._directory.iterdir():
                if path.suffix == ".part" and self._abandoned(path):
                    path.unlink()
                elif path.suffix in (".part", ".shard"):
                    found = path.stat()
                    free -= found.st_size
                    if path.suffix == ".shard":
                        shards.append((found.st_mtime_ns, found.st_size, path))
            for _, held, path in sorted(shards):
                if free >= size:
                    break
                path.unlink()
                free += held
            if free < size:
                return False
            with part.open("wb") as file:
                file.truncate(size)
            return True

    def _abandoned(self, part: Path) -> bool:
        """Whether nobody works on a half-made copy: its process was killed."""
        with (self._directory / f"{part.stem}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with (self._directory / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system lets go when the process ends, however
            yield


def used(copy: Path) -> bool:
    """Marks a copy as used now; False where it is no longer there."""
    try:
        os.utime(copy)
    except FileNotFoundError:
        return False
    return True
