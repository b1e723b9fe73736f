"""What worker processes of the tests do to their items; they import it by name."""

import os
import signal
import time

from evatok_jax.data.container import BadVideo


def act(item, progress):
    """Does what the item says, and returns it."""
    kind, _, number = item.partition(" ")
    if kind == "bad":
        raise BadVideo(f"number {number}", "bad")
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "exit":
        os._exit(3)
    if kind == "hang":
        time.sleep(1000)
    if kind == "slow":
        for _ in range(14):
            time.sleep(0.25)
            progress()
    if kind == "greedy":
        bytes(2**40)
    if kind == "forbidden":
        raise PermissionError(13, "Permission denied", f"{number}.mp4")
    if kind == "error":
        raise KeyError(number)
    return item
