"""Worker processes that survive what they look at.

A decoder that crashes or hangs on a video ends its process, not the job: the video is a bad one, a
new process takes the place.
"""

import multiprocessing
import resource
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from evatok_jax.data.container import BadVideo

_BEAT = 1.0  # seconds between two words of progress
_AHEAD = 16  # items for each worker that may be done before their turn
_MEMORY = 4 * 2**30  # bytes of a worker: a damaged header must not take the machine's
_READY, _PROGRESS, _DONE, _FAILED = "ready", "progress", "done", "failed"


class Workers:
    """Processes that apply a function to items, in a `with` statement.

    `function(item, progress)` is called with a function of no arguments that it shall call again
    and again while it gets on. It is pickled by name; its BadVideo is a result, another exception
    of it ends the job. With `count` 0 it is called in this process, without any protection.
    `patience` is how many seconds a worker may be silent before it counts as hung.
    """

    def __init__(self, function: Callable, count: int, patience: float):
        self._function, self._count, self._patience = function, count, patience
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers.clear()

    def map(self, items: Iterable) -> Iterator[tuple[Any, Any]]:
        """Each item with its result, or with the BadVideo that says why there is none, in order."""
        if not self._count:
            yield from ((item, _try(self._function, item, lambda: None)) for item in items)
            return
        items, queue = iter(items), deque()
        more = True
        while more or queue:
            while more and len(queue) < _AHEAD * self._count and (worker := self._idle()):
                task = _Task(next(items, None))
                more = task.item is not None
                if more:
                    queue.append(task)
                    worker.give(task)
            while queue and queue[0].done:
                task = queue.popleft()
                yield task.item, task.result
            self._listen()

    def _idle(self) -> "_Worker | None":
        """A worker that waits for an item; a new one where there may be more."""
        for worker in self._workers:
            if worker.ready and worker.task is None:
                return worker
        if len(self._workers) < self._count:
            self._workers.append(_Worker(self._function))
        return None

    def _listen(self) -> None:
        """Takes what the workers say, and ends those that are dead or silent for too long."""
        busy = {w.connection: w for w in self._workers if w.task or not w.ready}
        if not busy:
            return
        for connection in wait(list(busy), timeout=_BEAT):
            worker = busy[connection]
            try:
                worker.hear()
            except (EOFError, ConnectionError):
                self._lose(worker, worker.last_words())
        for worker in list(self._workers):
            if worker.task and time.monotonic() - worker.heard > self._patience:
                seconds = f"{self._patience:g} s"
                self._lose(
                    worker, BadVideo(f"the decoder did not get on for {seconds}", "time limit")
                )

    def _lose(self, worker: "_Worker", why: BadVideo) -> None:
        """Ends a worker, whose item has that result."""
        self._workers.remove(worker)
        worker.stop()
        if worker.task is None:
            raise ChildProcessError(
                f"a worker process did not start ({why}); its own message is above. A script that "
                'builds data sets must do so below `if __name__ == "__main__":`'
            )
        worker.task.finish(why)


@dataclass
class _Task:
    """An item on its way."""

    item: Any
    result: Any = None
    done: bool = False

    def finish(self, result: Any) -> None:
        self.result, self.done = result, True


class _Worker:
    """A process with at most one task."""

    def __init__(self, function: Callable):
        context = multiprocessing.get_context("spawn")  # a fork would copy the locks of our threads
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        self._process.start()
        theirs.close()
        self.ready, self.task, self.heard = False, None, time.monotonic()

    def give(self, task: _Task) -> None:
        self.task, self.heard = task, time.monotonic()
        with suppress(ConnectionError):  # it is dead, which the next look at it tells
            self.connection.send(task.item)

    def hear(self) -> None:
        """Takes one message. Raises EOFError where there will be none any more."""
        kind, content = self.connection.recv()
        self.heard = time.monotonic()
        if kind == _READY:
            self.ready = True
        elif kind == _FAILED:
            raise content
        elif kind == _DONE:
            self.task.finish(content)
            self.task = None

    def last_words(self) -> BadVideo:
        """How its process ended."""
        self._process.join()
        code = self._process.exitcode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return BadVideo(f"the decoder crashed ({how})", "crash")

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _try(function: Callable, item: Any, progress: Callable[[], None]) -> Any:
    """The result of a function, or its BadVideo."""
    try:
        return function(item, progress)
    except BadVideo as error:
        return error


def _serve(connection: Connection, function: Callable) -> None:
    """The life of a worker."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and ends this one
    last = time.monotonic()

    def progress() -> None:
        nonlocal last
        if time.monotonic() - last > _BEAT:
            last = time.monotonic()
            connection.send((_PROGRESS, None))

    connection.send((_READY, None))
    while True:
        item = connection.recv()
        try:
            answer = (_DONE, _try(function, item, progress))
        except MemoryError:
            need = f"it needs more than {_MEMORY // 2**30} GiB of memory"
            answer = (_DONE, BadVideo(need, "memory"))
        except OSError as error:
            answer = (_FAILED, error)
        except Exception:  # not all exceptions can travel
            answer = (_FAILED, RuntimeError(traceback.format_exc()))
        connection.send(answer)


def _die_with(parent) -> None:
    """Ends this process with its parent, whatever it is doing."""
    parent.join()
    signal.raise_signal(signal.SIGKILL)
