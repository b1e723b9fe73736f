"""Time limits for what may not come back: decoders in native code, which nobody can interrupt.

Two things end a slow call. A clock is asked between frames and at every read of the file; and the
caller waits no longer than the limit, whatever happens. A thread that is stuck inside the decoder
is then left alone: it goes on until the process ends, for there is no way to stop it.
"""

import os
import threading
import time
from collections.abc import Callable
from io import BytesIO
from queue import SimpleQueue

from evatok_jax.data.container import BadVideo


class Deadline:
    """The moment by which something has to be done, `seconds` from now."""

    def __init__(self, seconds: float):
        self._seconds, self._end = seconds, time.monotonic() + seconds

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self._end

    def check(self) -> None:
        """Raises BadVideo once the time is over."""
        if self.passed:
            raise BadVideo(f"decoding takes longer than {self._seconds:g} s", "too slow")


class TimedFile(BytesIO):
    """A file that ends at a deadline: searching damaged data, FFmpeg reads on and returns late."""

    def __init__(self, data: bytes, deadline: Deadline):
        super().__init__(data)
        self._deadline = deadline

    def read(self, size=-1):
        """The next bytes, none once the time is over."""
        return b"" if self._deadline.passed else super().read(size)


class _Thread:
    """A thread for one call after another: a new one for each would start with no memory at hand.

    A daemon: a call that never returns must not keep the process alive.
    """

    def __init__(self):
        self._calls = SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def start(self, call: Callable[[], None]) -> None:
        """Has the thread make a call."""
        self._calls.put(call)

    def _run(self):
        while True:
            self._calls.get()()


_idle: list[_Thread] = []
os.register_at_fork(after_in_child=_idle.clear)


class Call:
    """A call in another thread, for which one can stop waiting."""

    def __init__(self, function: Callable, *args):
        self._returned, self._raised, self._done = None, None, threading.Event()
        try:
            thread = _idle.pop()
        except IndexError:
            thread = _Thread()

        def run():
            try:
                self._returned = function(*args)
            except BaseException as error:
                self._raised = error
            _idle.append(thread)  # first: who waits may at once have another call
            self._done.set()

        thread.start(run)

    def wait(self, seconds: float) -> bool:
        """Waits for at most so long; whether the call has ended."""
        return self._done.wait(seconds)

    def result(self):
        """What an ended call has returned; raises what it has raised."""
        if self._raised is not None:
            raise self._raised
        return self._returned


def within(seconds: float, function: Callable[[Deadline], object]):
    """What `function` returns, which is handed the deadline to look at.

    Raises BadVideo, and leaves the call alone, where it takes longer than `seconds`.
    """
    deadline = Deadline(seconds)
    call = Call(function, deadline)
    if not call.wait(seconds):
        raise BadVideo(f"decoding takes longer than {seconds:g} s", "too slow")
    return call.result()
