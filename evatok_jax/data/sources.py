"""Sources: which videos a data set is made of, before anything is decoded."""

import csv
from dataclasses import dataclass
from pathlib import Path

from evatok_jax import assets
from evatok_jax.config import nearest

VIDEO_SUFFIXES = {".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg"}


@dataclass(frozen=True)
class VideoFile:
    """One video of a source.

    Attributes:
      path: the file.
      key: its name within the source, stable and unique.
      split: "train", "test", ...
      label: class number.
      share: which part of its frames belongs to this split, as fractions of its length.
    """

    path: Path
    key: str
    split: str
    label: int = 0
    share: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Source:
    """A list of videos with the names of their classes, and a word on the split."""

    name: str
    videos: tuple[VideoFile, ...]
    classes: tuple[str, ...]
    split_rule: str


def folder(directory: Path) -> Source:
    """Any folder of videos: flat (one class, "video") or with one folder a class.

    Every tenth video by name is for testing.
    """
    found = sorted(p for p in directory.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    if not found:
        raise FileNotFoundError(f"no video ({', '.join(sorted(VIDEO_SUFFIXES))}) under {directory}")
    names = [p.relative_to(directory).parts for p in found]
    classes = tuple(sorted({n[0] if len(n) > 1 else "video" for n in names}))
    videos = [
        VideoFile(
            path,
            "/".join(parts),
            "test" if number % 10 == 9 else "train",
            classes.index(parts[0] if len(parts) > 1 else "video"),
        )
        for number, (path, parts) in enumerate(zip(found, names, strict=True))
    ]
    return Source("folder", tuple(videos), classes, "every tenth video by name is test")


def ucf101(directory: Path, split: int = 1) -> Source:
    """UCF-101: Class/v_Class_gXX_cYY.avi beside or above the official lists of one split (1 to 3).

    The lists (classInd.txt, trainlist0N.txt, testlist0N.txt) are looked for in the directory itself, in
    `ucfTrainTestlist` and in `ucf101_lists` beside it. Lists name every video, there or not: an absent
    one is counted as bad when the data set is built.
    """
    lists = _find(directory, "classInd.txt")
    rows = [line.split() for line in (lists / "classInd.txt").read_text().splitlines() if line.strip()]
    classes = tuple(name for _, name in rows)
    videos = []
    for name in ("train", "test"):
        for line in (lists / f"{name}list{split:02d}.txt").read_text().splitlines():
            if line.strip():
                key = line.split()[0]
                videos.append(
                    VideoFile(directory / key, key, name, classes.index(key.split("/")[0]))
                )
    return Source("ucf101", tuple(videos), classes, f"official split {split:02d}")


def ucf_mini(directory: Path) -> Source:
    """A part of UCF-101 with an index.csv that names class, split and file of each clip.

    `directory` holds the index, or a folder `ucf101_mini` that does.
    """
    if not (directory / "index.csv").exists():
        directory = directory / "ucf101_mini"
    with (directory / "index.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    classes = tuple(sorted({row["class"] for row in rows}))
    videos = []
    for row in rows:
        key = f"{row['class']}/{row['file']}"
        label = classes.index(row["class"])
        videos.append(VideoFile(directory / key, key, row["split"], label))
    return Source("ucf_mini", tuple(videos), classes, "index.csv; no video group is on both sides")


def samples(directory: Path | None = None) -> Source:
    """The four embedded clips: enough to run every stage, not to measure anything.

    Both versions of carphone are for training. Of the other two, the last 40 % of the frames are
    for testing, so held-out windows show known scenes at unknown times. File names are no classes.
    """
    directory = directory or assets.path("samples")
    videos = []
    for name in ("bikes", "bigbuckbunny", "carphone_distorted", "carphone_pristine"):
        path = directory / f"{name}.mp4"
        if name.startswith("carphone"):
            videos.append(VideoFile(path, name, "train"))
        else:
            videos.append(VideoFile(path, name, "train", share=(0.0, 0.6)))
            videos.append(VideoFile(path, name, "test", share=(0.6, 1.0)))
    rule = "last 40 % of bikes and bigbuckbunny are test; both carphones are train"
    return Source("samples", tuple(videos), ("video",), rule)


SOURCES = {"folder": folder, "ucf101": ucf101, "ucf_mini": ucf_mini, "samples": samples}


def source(name: str, directory: str | Path | None) -> Source:
    """The source of that name over a directory; "samples" needs none.

    Raises ValueError for an unknown name, FileNotFoundError where the directory lacks what it needs.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown source {name!r}: {nearest(name, SOURCES)}")
    if directory is None and name != "samples":
        raise ValueError(f"source {name!r} needs the directory of its videos")
    return SOURCES[name](Path(directory) if directory else None)


def _find(directory: Path, name: str) -> Path:
    places = [directory, directory / "ucfTrainTestlist", directory.parent / "ucf101_lists"]
    for place in places:
        if (place / name).exists():
            return place
    raise FileNotFoundError(f"{name} is in none of {', '.join(map(str, places))}")
