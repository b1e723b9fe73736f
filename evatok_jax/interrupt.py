"""A request to stop, answered where it is safe."""

import signal

import jax
from jax.experimental import multihost_utils


class Interrupt:
    """Turns SIGTERM and SIGINT into a question that a loop asks between its steps."""

    def __init__(self):
        self._asked = False
        # On several hosts the request is JAX's to catch: its service makes all stop at one step.
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._note)

    def _note(self, number, frame):
        if self._asked:  # a second one does not wait
            signal.default_int_handler(number, frame)
        self._asked = True

    def __call__(self, step: int) -> bool:
        """Whether to stop after this step; on several hosts they agree on the step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked
