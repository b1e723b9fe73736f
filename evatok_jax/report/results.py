"""What a pipeline's workdir holds, read for the report; parts that are not there yet are None."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evatok_jax.writers import read_metrics

# The order in which a pipeline runs its jobs, by the first word of their names.
_ORDER = (
    "data",
    "proxy",
    "scores",
    "router",
    "final",
    "uniform",
    "tokens",
    "generator",
    "evaluate",
)


@dataclass(frozen=True)
class Job:
    """One job's folder: its config, the rows of its metrics, and what it wrote when it ended."""

    name: str
    config: dict
    metrics: list[dict]
    done: dict | None

    @property
    def kind(self) -> str | None:
        """What it trained: the group of its first loss; None for a job that trains nothing."""
        names = [name for row in self.metrics[-1:] for name in row if name.startswith("loss/")]
        return names[0].removeprefix("loss/") if names else None

    @property
    def state(self) -> str:
        """ "done", or how far it got."""
        if self.done is not None:
            return "done"
        if not self.metrics:
            return "begun"
        steps = self.config.get("run", {}).get("steps", "?")
        return f"step {self.metrics[-1]['step']} of {steps}"


@dataclass(frozen=True)
class Results:
    """Everything that a report is made of."""

    workdir: Path
    jobs: list[Job]
    timing: list[dict] | None
    curves: dict | None
    final: dict | None
    generation: dict | None
    strips: dict[str, np.ndarray] | None
    samples: dict[str, np.ndarray] | None

    @property
    def evaluations(self) -> dict[str, dict]:
        """The evaluations that are there, by name."""
        found = {"curves": self.curves, "final": self.final, "generation": self.generation}
        return {name: content for name, content in found.items() if content is not None}


def read_results(workdir: Path) -> Results:
    """Reads a workdir.

    Raises FileNotFoundError if there is no such folder and ValueError, naming the file, for content
    that is not what evaluation writes.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise FileNotFoundError(f"no folder {workdir}: give the --workdir of a pipeline or a job")
    folders = [path for path in (workdir, *workdir.iterdir()) if (path / "config.json").is_file()]
    return Results(
        workdir=workdir,
        jobs=sorted(map(_job, folders), key=_place),
        timing=_json(workdir, "timing.json", list),
        curves=_json(workdir, "evaluate-*/curves.json"),
        final=_json(workdir, "evaluate-*/final.json"),
        generation=_json(workdir, "evaluate-*/generation.json"),
        strips=_arrays(workdir, "evaluate-*/strips.npz", ("original", "reconstruction")),
        samples=_arrays(workdir, "evaluate-*/samples.npz", ("video",)),
    )


def _job(folder: Path) -> Job:
    return Job(
        name=folder.name,
        config=_json(folder, "config.json"),
        metrics=read_metrics(folder),
        done=_json(folder, "done.json"),
    )


def _place(job: Job) -> tuple[int, str]:
    word = job.name.partition("-")[0]
    return (_ORDER.index(word) if word in _ORDER else len(_ORDER)), job.name


def _json(workdir: Path, pattern: str, kind: type = dict) -> Any:
    """The content of the first file that the pattern names, or None."""
    path = next(iter(sorted(workdir.glob(pattern))), None)
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a {kind.__name__}")
    return content


def _arrays(workdir: Path, pattern: str, videos: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """The arrays of the first file that the pattern names, or None where there are no clips.

    `videos` names the clips among them, uint8 [n, frames, height, width, 3].
    """
    path = next(iter(sorted(workdir.glob(pattern))), None)
    if path is None:
        return None
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    for name in (*videos, "lengths"):
        if name not in arrays:
            raise ValueError(f"{path} has no array {name!r}, only {', '.join(arrays)}")
        array = arrays[name]
        if name in videos and (array.dtype != np.uint8 or array.shape[4:] != (3,)):
            raise ValueError(
                f"{path}: {name} is {array.dtype} {array.shape}, expected is uint8 "
                "[clips, frames, height, width, 3]"
            )
        if len(array) != len(arrays[videos[0]]):
            raise ValueError(f"{path}: {len(array)} {name}, but {len(arrays[videos[0]])} clips")
    clips, lengths = arrays[videos[0]], arrays["lengths"]
    if lengths.ndim != 2 or lengths.shape[1] < 1 or clips.shape[1] % lengths.shape[1]:
        raise ValueError(f"{path}: lengths {lengths.shape} do not cut clips {clips.shape}")
    return arrays if len(clips) else None
