"""Any folder of videos, or of images."""

from dataclasses import replace
from pathlib import Path

from evatok_jax.data.builders.listing import (
    UNLABELLED,
    Lazy,
    Source,
    VideoFile,
    files_below,
    hash_rows,
)

VIDEO_SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
SPLIT_FOLDERS = ("train", "val", "test")


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
    names = []

    def found():
        for path, size in files_below(directory, suffixes):
            names.append(path)
            yield [path, size]

    identity = hash_rows(found())
    if not names:
        raise FileNotFoundError(f"no {what} ({', '.join(suffixes)}) under {directory}")
    given = all(n.split("/")[0] in SPLIT_FOLDERS and "/" in n for n in names)

    def place(name: str) -> str:
        """The name within its split."""
        return name.partition("/")[2] if given else name

    classes = tuple(sorted({place(n).split("/")[0] for n in names if "/" in place(n)}))
    lost = [n for n in names if "/" not in place(n)]
    if classes and lost:
        raise ValueError(
            f"{directory} has {what}s in folders and {len(lost)} beside them "
            f"({place(lost[0])}): put each into the folder of its class, or all into one "
            "folder"
        )
    numbers = {name: number for number, name in enumerate(classes)}

    def make(name: str) -> VideoFile:
        return VideoFile(directory / name, name, numbers.get(place(name).split("/")[0], 0))

    return Source(
        name,
        {split: Lazy(chosen, make) for split, chosen in _split(names, given).items()},
        classes or UNLABELLED,
        "folders train, val, test" if given else f"every tenth {what} by name is test",
        identity,
    )


def _split(names: list[str], given: bool) -> dict[str, list[str]]:
    """The names of each split, the one of the first name first."""
    if given:
        splits = {}
        for name in names:
            splits.setdefault(name.split("/")[0], []).append(name)
        return splits
    if len(names) == 1:
        return {"train": names}
    held_out = min(10, len(names))
    test = names[held_out - 1 :: held_out]
    train = [name for number, name in enumerate(names, 1) if number % held_out]
    return {"train": train, "test": test}
