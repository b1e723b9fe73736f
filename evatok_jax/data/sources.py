"""Sources: which videos a data set is made of, before anything is decoded."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path

from evatok_jax import assets
from evatok_jax.names import nearest

VIDEO_SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
UNLABELLED = ("unlabelled",)  # the class of a source without classes; one is no class worth a gFVD
SPLIT_FOLDERS = ("train", "val", "test")


@dataclass(frozen=True)
class VideoFile:
    """One video of a source, or the part of it that belongs to one split.

    Attributes:
      path: the file.
      key: its name within the source; parts of one video share it.
      split: "train", "test", ...
      label: class number.
      share: which part of its frames belongs to this split, as fractions of its length.
      sha256: what the file must hash to, "" where the source does not say.
    """

    path: Path
    key: str
    split: str
    label: int = 0
    share: tuple[float, float] = (0.0, 1.0)
    sha256: str = ""


@dataclass(frozen=True)
class Source:
    """A list of videos with the names of their classes, and a word on the split.

    `min_frames` is how short a video may be, unless a build says otherwise.
    """

    name: str
    videos: tuple[VideoFile, ...]
    classes: tuple[str, ...]
    split_rule: str
    min_frames: int = 16


def folder(directory: Path) -> Source:
    """Any folder of videos: flat (no classes) or with one folder a class.

    Where its top holds nothing but folders named train, val and test, these are the splits, each
    laid out in that way. Otherwise every tenth video by name is test, or the last one of fewer than
    ten.
    """
    return _folder(directory, "folder", "video", VIDEO_SUFFIXES)


def images(directory: Path) -> Source:
    """A folder of images, laid out as those of `folder` are: ImageNet's train/CLASS/NAME.JPEG.

    An image is a video of one frame.
    """
    return replace(_folder(directory, "images", "image", IMAGE_SUFFIXES), min_frames=1)


def _folder(directory: Path, name: str, what: str, suffixes: tuple[str, ...]) -> Source:
    found = sorted(
        path for path in directory.rglob("*") if path.suffix.lower() in suffixes and path.is_file()
    )
    if not found:
        raise FileNotFoundError(f"no {what} ({', '.join(suffixes)}) under {directory}")
    names = [path.relative_to(directory).parts for path in found]
    given = all(len(parts) > 1 and parts[0] in SPLIT_FOLDERS for parts in names)
    inside = [parts[given:] for parts in names]
    classes = tuple(sorted({parts[0] for parts in inside if len(parts) > 1})) or UNLABELLED
    if classes != UNLABELLED and (lost := [parts for parts in inside if len(parts) == 1]):
        raise ValueError(
            f"{directory} has {what}s in folders and {len(lost)} beside them ({lost[0][0]}): put "
            "each into the folder of its class, or all into one folder"
        )
    held_out = 10 if len(found) >= 10 else len(found)
    videos = []
    for number, (path, parts, rest) in enumerate(zip(found, names, inside, strict=True), 1):
        split = parts[0] if given else "train" if number % held_out or len(found) == 1 else "test"
        label = classes.index(rest[0]) if len(rest) > 1 else 0
        videos.append(VideoFile(path, "/".join(parts), split, label))
    rule = "folders train, val, test" if given else f"every tenth {what} by name is test"
    return Source(name, tuple(videos), classes, rule)


def ucf101(directory: Path, fold: int = 1) -> Source:
    """UCF-101: Class/v_Class_gXX_cYY.avi, split by the official lists of one fold (1 to 3).

    The lists (classInd.txt, trainlist0N.txt, testlist0N.txt) are looked for in the directory
    itself, in its `ucfTrainTestlist`, and in `ucfTrainTestlist` and `ucf101_lists` beside it. They
    name every video, there or not: an absent one counts as bad when the data set is built.
    """
    lists = _lists(directory)
    rows = [line.split() for line in _lines(lists / "classInd.txt")]
    classes = tuple(name for _, name in sorted(rows, key=lambda row: int(row[0])))
    videos = []
    for split in ("train", "test"):
        for line in _lines(lists / f"{split}list{fold:02d}.txt"):
            key = line.split()[0]
            label = classes.index(key.split("/")[0])
            videos.append(VideoFile(directory / key, key, split, label))
    return Source("ucf101", tuple(videos), classes, f"official split {fold:02d}")


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
        videos.append(
            VideoFile(directory / key, key, row["split"], label, sha256=row["sha256"].lower())
        )
    return Source("ucf_mini", tuple(videos), classes, "index.csv: no video group is on both sides")


def samples(directory: Path | None = None) -> Source:
    """The four default clips: enough to run every stage, not to measure anything.

    Both versions of carphone, which show the same scene, are train. Of bikes and bigbuckbunny the
    second quarter of the frames is test, the part with the most motion; 3 % of the frames on each
    side of it are in neither. So held-out windows show unseen moments, but of scenes that training
    has seen before and after. File names are no classes.
    """
    directory = directory or assets.path("samples")
    parts = [
        ("train", (0.0, 0.22)),
        ("test", (0.25, 0.5)),
        ("train", (0.53, 1.0)),
    ]
    videos = [
        VideoFile(directory / f"{name}.mp4", name, split, share=share)
        for name in ("bikes", "bigbuckbunny")
        for split, share in parts
    ]
    videos += [
        VideoFile(directory / f"{name}.mp4", name, "train")
        for name in ("carphone_distorted", "carphone_pristine")
    ]
    rule = (
        "test is the second quarter of bikes and bigbuckbunny, 3 % before and after it unused; "
        "both versions of carphone are train"
    )
    return Source("samples", tuple(videos), UNLABELLED, rule)


SOURCES = {
    "folder": folder,
    "images": images,
    "ucf101": ucf101,
    "ucf_mini": ucf_mini,
    "samples": samples,
}


def source(name: str, directory: str | Path | None = None, **options) -> Source:
    """The source of that name over a directory; "samples" needs none, "ucf101" takes `fold`.

    Raises ValueError for an unknown name, FileNotFoundError where the directory lacks what it
    needs.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown source {name!r}: {nearest(name, SOURCES)}")
    if directory is None and name != "samples":
        raise ValueError(f"source {name!r} needs the directory of its videos (--source DIR)")
    if directory is not None and not Path(directory).is_dir():
        raise FileNotFoundError(f"{directory} is no directory")
    return SOURCES[name](Path(directory) if directory else None, **options)


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
