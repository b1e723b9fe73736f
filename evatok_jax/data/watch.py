"""Worker processes under watch: one that dies or stalls is named with what it was reading."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from absl import logging

from evatok_jax.data.deadline import Call

_LOOK = 1.0  # seconds between two looks at the workers
_STALLED = 60.0  # seconds after which the log says what is waited for
_END = object()


class Journal:
    """Which record every thread is reading, in files that outlive the process that wrote them."""

    def __init__(self):
        self._folder = TemporaryDirectory(prefix="evatok-reading-")
        self._path, self._threads = Path(self._folder.name), threading.local()

    def __getstate__(self):
        return {"_path": self._path}  # the folder goes with whoever has made it

    def __setstate__(self, state):
        self._path, self._threads = state["_path"], threading.local()

    @contextmanager
    def reading(self, record: int) -> Iterator[None]:
        """Notes that this thread is reading a record."""
        if not hasattr(self._threads, "note"):
            name = f"{os.getpid()}-{threading.get_native_id()}"
            self._threads.note = np.memmap(self._path / name, np.int64, "w+", shape=(1,))
        self._threads.note[0] = record + 1
        try:
            yield
        finally:
            self._threads.note[0] = 0

    def notes(self) -> dict[int, list[int]]:
        """The records that each process is reading, or was when it died."""
        found = {}
        for path in sorted(self._path.iterdir()):
            records = found.setdefault(int(path.name.partition("-")[0]), [])
            # A file that was made just now may still be empty.
            records += [note - 1 for note in np.fromfile(path, np.int64).tolist() if note]
        return found


def begin_worker(journal: Journal, *_) -> None:
    """What a worker process does first.

    It makes itself known, and sees to it that it ends when the process is gone that has started it,
    however that one ended.
    """
    with journal.reading(-1):
        pass

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def watched(iterator: Iterator, journal: Journal, name: Callable[[int], str]) -> Iterator:
    """What an iterator gives that works in other processes, or in this one.

    `name` describes a record. Raises ChildProcessError where a worker has died: nobody waits for
    what it will never send. Where nothing comes for a minute, the log says what is being read.
    """

    def reading(pid):
        return ", ".join(map(name, journal.notes().get(pid, ()))) or "no record"

    def died(pid, word=""):
        return ChildProcessError(
            f"worker process {pid} has died while it was reading {reading(pid)}. {word}Where it is "
            "always the same record, leave that one out; killed (-9) is often a lack of memory "
            "(batch_size, run.threads), a bus error (-7) a full /dev/shm"
        )

    while True:
        call, waited = Call(next, iterator, _END), 0.0
        while not call.wait(_LOOK):
            waited += _LOOK
            # Grain sees most deaths itself, and knows more: it gets the time to say so.
            if (dead := _dead(journal)) and not call.wait(3 * _LOOK):
                raise died(dead[0])
            if waited % _STALLED == 0:
                said = "; ".join(f"process {pid}: {reading(pid)}" for pid in journal.notes())
                logging.warning("no batch for %d s; what is being read: %s", waited, said)
        try:
            item = call.result()
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error) or not (dead := _dead(journal)):
                raise
            raise died(dead[0], f"{error} ") from error
        if item is _END:
            return
        yield item


def _dead(journal: Journal) -> list[int]:
    """Workers that have made themselves known and are gone."""
    alive = {child.pid for child in multiprocessing.active_children()} | {os.getpid()}
    return [pid for pid in journal.notes() if pid not in alive]
