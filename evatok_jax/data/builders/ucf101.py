"""UCF-101, and parts of it with an index."""

import csv
from pathlib import Path

from evatok_jax.data.builders.listing import Source, VideoFile, listed


def ucf101(directory: Path, fold: int = 1) -> Source:
    """UCF-101: Class/v_Class_gXX_cYY.avi, split by the official lists of one fold (1 to 3).

    The videos are in the directory or in the folder `UCF-101` of the archive in it. The lists
    (classInd.txt, trainlist0N.txt, testlist0N.txt) are looked for beside the videos, in
    `ucfTrainTestlist` there, and in `ucfTrainTestlist` and `ucf101_lists` one folder above. They
    name every video, there or not: an absent one counts as bad when the data set is built.
    """
    if (directory / "UCF-101").is_dir():
        directory /= "UCF-101"
    lists = _lists(directory)
    rows = [line.split() for line in _lines(lists / "classInd.txt")]
    classes = tuple(name for _, name in sorted(rows, key=lambda row: int(row[0])))
    videos = []
    for split in ("train", "test"):
        for line in _lines(lists / f"{split}list{fold:02d}.txt"):
            key = line.split()[0]
            label = classes.index(key.split("/")[0])
            videos.append((split, VideoFile(directory / key, key, label)))
    return listed("ucf101", videos, classes, f"official split {fold:02d}")


def ucf_mini(directory: Path) -> Source:
    """A part of UCF-101 with an index.csv that names class, split, file and SHA-256 of each clip.

    `directory` holds the index, or a folder `ucf101_mini` that does.
    """
    if not (directory / "index.csv").exists():
        directory = directory / "ucf101_mini"
    if not (directory / "index.csv").exists():
        raise FileNotFoundError(f"no index.csv in {directory} or in {directory.parent}")
    with (directory / "index.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    missing = {"class", "split", "file", "sha256"} - set(rows[0] if rows else ())
    if missing:
        raise ValueError(f"{directory / 'index.csv'} has no column {', '.join(sorted(missing))}")
    classes = tuple(sorted({row["class"] for row in rows}))
    videos = []
    for row in rows:
        key, label = f"{row['class']}/{row['file']}", classes.index(row["class"])
        video = VideoFile(directory / key, key, label, sha256=row["sha256"].lower())
        videos.append((row["split"], video))
    return listed("ucf_mini", videos, classes, "index.csv: no video group is on both sides")


def _lists(directory: Path) -> Path:
    """Where the official lists of UCF-101 are."""
    places = [
        directory,
        directory / "ucfTrainTestlist",
        directory.parent / "ucfTrainTestlist",
        directory.parent / "ucf101_lists",
    ]
    for place in places:
        if (place / "classInd.txt").exists():
            return place
    raise FileNotFoundError(f"classInd.txt is in none of {', '.join(map(str, places))}")


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
