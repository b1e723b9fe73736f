"""Time limits for what may not come back: decoders in native code, which nobody can interrupt.

Two things end a slow call. A clock is asked between frames and at every read of the file; and the
caller waits no longer than the limit, whatever happens. A thread that is stuck inside the decoder
is then left alone: it goes on until the process ends, for there is no way to stop it.
"""

import threading
import time
from collections.abc import Callable
from io import BytesIO

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


class Call:
    """A call in a thread of its own, for which one can stop waiting."""

    def __init__(self, function: Callable, *args):
        self._returned, self._raised, self._done = None, None, threading.Event()
        # A daemon: a call that never returns must not keep the process alive.
        threading.Thread(target=self._run, args=(function, args), daemon=True).start()

    def _run(self, function, args):
        try:
            self._returned = function(*args)
        except BaseException as error:
            self._raised = error
        self._done.set()

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
