"""Metrics of a run: one JSON line a logged step, and the same for TensorBoard."""

import json
import os
from pathlib import Path

from tensorboardX import SummaryWriter


class MetricWriter:
    """Appends metrics to `metrics.jsonl` and a TensorBoard file in the workdir.

    A run that resumes at `step` first cuts both back to it, so that logs have neither gaps nor
    doubles whatever happened after the checkpoint was written.
    """

    def __init__(self, workdir: Path, step: int = 0, tensorboard: bool = True):
        self._path = workdir / "metrics.jsonl"
        rows = [row for row in read_metrics(workdir) if row["step"] <= step]
        beside = self._path.with_suffix(".tmp")
        beside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        os.replace(beside, self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = None
        if tensorboard:
            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One row; the values are plain floats."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        if self._board:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes everything to disk."""
        self._file.close()
        if self._board:
            self._board.close()


def read_metrics(workdir: Path) -> list[dict]:
    """All complete rows of a workdir's metrics; a last line cut short by a kill is no row."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
