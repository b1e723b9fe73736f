"""Builders: from the videos that people have to a data set (docs/data.md)."""

from pathlib import Path

from evatok_jax.data.builders.folder import folder, images
from evatok_jax.data.builders.kinetics import kinetics
from evatok_jax.data.builders.listing import Source
from evatok_jax.data.builders.samples import samples
from evatok_jax.data.builders.ucf101 import ucf101, ucf_mini
from evatok_jax.data.builders.webdataset import webdataset
from evatok_jax.data.builders.webvid import webvid
from evatok_jax.names import nearest

SOURCES = {
    "folder": folder,
    "images": images,
    "imagenet": images,
    "kinetics": kinetics,
    "samples": samples,
    "ucf101": ucf101,
    "ucf_mini": ucf_mini,
    "webdataset": webdataset,
    "webvid": webvid,
}
OPTIONS = {"ucf101": {"fold"}, "kinetics": {"lists"}, "webvid": {"lists"}}  # beside a directory


def source(name: str, directory: str | Path | None = None, **options) -> Source:
    """The source of that name over a directory; "samples" needs none.

    `options` are `fold` for "ucf101", `lists` (CSV files) for "kinetics" and "webvid".

    Raises ValueError for an unknown name or option, FileNotFoundError where the directory lacks
    what it needs.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown source {name!r}: {nearest(name, SOURCES)}")
    if odd := sorted(set(options) - OPTIONS.get(name, set())):
        raise ValueError(f"source {name!r} takes no option {', '.join(odd)}")
    if directory is None and name != "samples":
        raise ValueError(f"source {name!r} needs the directory of its videos (--source DIR)")
    if directory is not None and not Path(directory).is_dir():
        raise FileNotFoundError(f"{directory} is no directory")
    return SOURCES[name](Path(directory) if directory else None, **options)
