"""Metrics of a run: one JSON line a logged step, and the same for TensorBoard."""

import json
from pathlib import Path

from tensorboardX import SummaryWriter

from evatok_jax.atomic import replacing


class MetricWriter:
    """Appends metrics to `metrics.jsonl` and a TensorBoard file in the workdir.

    A run that resumes at `step` first cuts both back to it, so that logs have neither gaps nor
    doubles whatever happened after the checkpoint was written.
    """

    def __init__(self, workdir: Path, step: int = 0):
        self._path = workdir / "metrics.jsonl"
        rows = [row for row in read_metrics(workdir) if row["step"] <= step]
        with replacing(self._path, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One row; the values are plain floats."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes everything to disk."""
        self._file.close()
        self._board.close()


def read_metrics(workdir: Path) -> list[dict]:
    """All complete rows of a workdir's metrics; a last line cut short by a kill is no row."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
