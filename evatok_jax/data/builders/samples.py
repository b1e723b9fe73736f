"""The four default clips."""

from pathlib import Path

from evatok_jax import assets
from evatok_jax.data.builders.listing import UNLABELLED, Source, VideoFile, listed


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
        (split, VideoFile(directory / f"{name}.mp4", name, share=share))
        for name in ("bikes", "bigbuckbunny")
        for split, share in parts
    ]
    videos += [
        ("train", VideoFile(directory / f"{name}.mp4", name))
        for name in ("carphone_distorted", "carphone_pristine")
    ]
    rule = (
        "test is the second quarter of bikes and bigbuckbunny, 3 % before and after it unused; "
        "both versions of carphone are train"
    )
    return listed("samples", videos, UNLABELLED, rule)
