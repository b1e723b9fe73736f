"""WebDataset archives, as video2dataset writes them."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from evatok_jax.data.builders.folder import SPLIT_FOLDERS, VIDEO_SUFFIXES
from evatok_jax.data.builders.listing import (
    UNLABELLED,
    Lazy,
    Source,
    VideoFile,
    files_below,
    hash_rows,
)
from evatok_jax.data.container import BadVideo


def webdataset(directory: Path) -> Source:
    """Tar archives of samples: KEY.mp4 with KEY.txt or KEY.json, which hold its caption.

    Where the directory holds nothing but archives in folders named train, val and test, these are
    the splits; otherwise all is train. A video is read where it lies in its archive, so archives
    must not be compressed. Its key is the archive's path and its own. A sample without a video is
    one whose download has failed: it is counted, and is no fault.
    """
    names = []

    def found():
        for name, size in files_below(directory, (".tar",)):
            names.append(name)
            yield [name, size]

    identity = hash_rows(found())
    if not names:
        raise FileNotFoundError(f"no archive (.tar, not compressed) under {directory}")
    given = all(name.split("/")[0] in SPLIT_FOLDERS and "/" in name for name in names)
    splits = {}
    for name in names:
        splits.setdefault(name.split("/")[0] if given else "train", []).append(name)
    return Source(
        "webdataset",
        {split: Lazy(rows, partial(Archive, directory)) for split, rows in splits.items()},
        UNLABELLED,
        "folders train, val, test" if given else "all is train",
        identity,
        absent_is_bad=False,
        archives=True,
    )


@dataclass(frozen=True)
class Archive:
    """One tar archive: the group of the videos in it."""

    directory: Path
    key: str

    def videos(self) -> Iterator[VideoFile]:
        """Its videos in order; where it is damaged, a last one that says so."""
        path, problem = self.directory / self.key, None
        try:
            with tarfile.open(path, "r:") as archive:
                yield from _videos(path, self.key.removesuffix(".tar"), archive)
                if not _ends(path, archive.offset):
                    problem = BadVideo("the archive is cut off", "archive")
        except tarfile.TarError as error:
            problem = BadVideo(f"the archive cannot be read: {error}", "archive")
        if problem:
            yield VideoFile(path, self.key, problem=problem)


def _videos(path: Path, name: str, archive: tarfile.TarFile) -> Iterator[VideoFile]:
    """The videos of an archive; the files of a sample follow each other."""
    key, sample = None, {}
    for member in archive:
        if not member.isfile():
            continue
        inside = PurePosixPath(member.name)
        stem, dot, suffix = inside.name.partition(".")
        here = str(inside.parent / stem)
        if here != key:
            yield from _video(path, name, key, sample, archive)
            key, sample = here, {}
        sample[(dot + suffix).lower()] = member
    yield from _video(path, name, key, sample, archive)


def _video(
    path: Path, name: str, key: str | None, sample: dict, archive: tarfile.TarFile
) -> Iterator[VideoFile]:
    """The video of a sample, which is none where its download has failed."""
    if key is None:
        return
    suffix = next((suffix for suffix in sample if suffix in VIDEO_SUFFIXES), None)
    if suffix is None:
        problem = BadVideo("there is no video in this sample", "absent")
        yield VideoFile(path, f"{name}/{key}", problem=problem)
        return
    member = sample[suffix]
    yield VideoFile(
        path,
        f"{name}/{key}",
        caption=_caption(sample, archive),
        start=member.offset_data,
        size=member.size,
    )


def _caption(sample: dict, archive: tarfile.TarFile) -> str:
    """What a sample says of its video: its text, or the entry "caption" of its JSON."""
    if ".txt" in sample:
        text = archive.extractfile(sample[".txt"]).read()
        return text.decode("utf-8", errors="replace").strip()
    if ".json" in sample:
        try:
            known = json.loads(archive.extractfile(sample[".json"]).read())
        except ValueError:
            return ""  # a caption that cannot be read is none; the video is there
        if isinstance(known, dict):
            return str(known.get("caption") or "")
    return ""


def _ends(path: Path, offset: int) -> bool:
    """Whether an archive has the block of zeros that ends it at that byte."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
