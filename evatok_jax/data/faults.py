"""Faults: clips that cannot be read while a job learns from them.

Such a clip is replaced by another one, which depends on the seed and the global record index alone.
What the decoder says of a video is always the same; but whether it was in time, or a disk answered,
is not. So each fault is written to a list before anything is made of its replacement, and a job
that starts again does not try what is on the list: it takes the same replacements as before.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from absl import logging

NAME = "quarantine"
JUDGED = 1_000, 10  # so many clips, or faults: before, a share says nothing

# (global record index, attempt) -> record that was to be read.
Known = Mapping[tuple[int, int], int]
NONE_KNOWN: Known = MappingProxyType({})


class Fault(NamedTuple):
    """A clip that could not be read.

    `index` is the global record index, `attempt` 0 for the clip that belongs there and above for
    replacements, `start` the first frame, -1 where none was chosen yet.
    """

    index: int
    attempt: int
    record: int
    key: str
    start: int
    cause: str
    reason: str


class Quarantine:
    """The faults of a job: listed in its workdir, counted by cause, and limited.

    `workdir` holds quarantine.jsonl, and quarantine-N.jsonl of process N of several; without one
    nothing is listed. Lists in the folders `also` are known too, but not written to. `max_bad` is
    the share of clips that may fail; 0 allows none.

    Attributes:
      known: what the lists held when the job began.
      causes: counts of faults since the job began.
    """

    def __init__(
        self,
        workdir: Path | None = None,
        max_bad: float = 0.0,
        process_index: int = 0,
        also: Iterable[Path] = (),
    ):
        if not 0 <= max_bad <= 1:
            raise ValueError(f"max_bad {max_bad}: expected a share from 0 to 1")
        self._max_bad, self._clips, self._last, self.causes = max_bad, 0, None, Counter()
        name = f"{NAME}-{process_index}.jsonl" if process_index else f"{NAME}.jsonl"
        self._path = workdir / name if workdir else None
        if self._path and self._path.exists():
            _mend(self._path)
        folders = [folder for folder in (workdir, *also) if folder]
        lists = [path for folder in folders for path in sorted(folder.glob(f"{NAME}*.jsonl"))]
        faults = [fault for path in lists for fault in read_faults(path)]
        self.known: Known = {(fault.index, fault.attempt): fault.record for fault in faults}

    def add(self, clips: int, faults: list[Fault]) -> None:
        """Lists the faults on the way to so many clips. They may be used when this returns.

        Raises ValueError where more than the allowed share has failed.
        """
        self._clips += clips
        if not faults:
            return
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(fault._asdict()) + "\n" for fault in faults)
                file.flush()
                os.fsync(file.fileno())  # before any machine can crash that has used them
        self.causes.update(fault.cause for fault in faults)
        self._last = faults[-1]
        logging.log_every_n_seconds(logging.WARNING, "%s", 60, self)
        bad = self.causes.total()
        judged = self._clips + bad >= JUDGED[0] or bad >= JUDGED[1] or not self._max_bad
        if judged and bad > self._max_bad * (self._clips + bad):
            raise ValueError(
                f"{self}. This is more than the share data.max_bad={self._max_bad:g}: build the "
                "data set again without them, or allow more"
            )

    def __str__(self) -> str:
        """Counts by cause, and the last fault."""
        counts = ", ".join(f"{cause} {count}" for cause, count in self.causes.most_common())
        said = f"{self.causes.total()} clips could not be read, {self._clips} could; {counts}"
        if self._last:
            where = f"record {self._last.record} ({self._last.key}), frames from {self._last.start}"
            said += f"; the last: {where}: {self._last.reason}"
        return said + (f"; all: {self._path}" if self._path else "")


def read_faults(path: Path) -> list[Fault]:
    """The faults of a list; a line that was being written when its process died is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [Fault(**json.loads(line)) for line in lines]


def _mend(path: Path) -> None:
    """Takes a line off the end of a list that was being written when its process died."""
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
