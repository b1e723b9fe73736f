"""Pictures for the page: WebP in data URIs, as good as a budget of bytes allows."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from evatok_jax.report.markup import Html, tag

FRAME_SIDE = 128  # larger frames are shrunk to it: a page is no archive
FRAME_MILLISECONDS = 80


def data_uri(webp: bytes) -> str:
    """A URI that holds the picture itself."""
    return "data:image/webp;base64," + base64.b64encode(webp).decode("ascii")


def shrink(video: UInt8[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """The clip with its longer side at most `FRAME_SIDE`."""
    height, width = video.shape[1:3]
    scale = FRAME_SIDE / max(height, width)
    if scale >= 1:
        return video
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in video])


def still(picture: UInt8[np.ndarray, "h w 3"], quality: int | None) -> bytes:
    """A WebP of one picture; quality in 0..100, None for lossless."""
    return _webp([picture], quality)


def animation(video: UInt8[np.ndarray, "t h w 3"], quality: int | None) -> bytes:
    """An endless WebP of a clip, `FRAME_MILLISECONDS` a frame."""
    return _webp(list(video), quality)


def moving(webp: bytes, video: UInt8[np.ndarray, "t h w 3"], alt: str) -> Html:
    """An animation of a clip, or its first frame for people who asked for less motion."""
    height, width = video.shape[1:3]
    first = data_uri(still(video[0], 75))
    return tag(
        "picture",
        tag("source", srcset=first, media="(prefers-reduced-motion: reduce)"),
        tag("img", src=data_uri(webp), alt=alt, width=width, height=height),
    )


def block_pictures(
    original: UInt8[np.ndarray, "t h w 3"],
    reconstruction: UInt8[np.ndarray, "t h w 3"],
    lengths: Int[np.ndarray, " blocks"],
) -> list[UInt8[np.ndarray, "h2 w2 3"]]:
    """One picture a block: its frames side by side, the originals above their reconstructions."""
    rows = (np.split(video, len(lengths)) for video in (original, reconstruction))
    return [
        np.concatenate([np.concatenate(list(row), axis=1) for row in block])
        for block in zip(*rows, strict=True)
    ]


def fit(
    encode: Callable[[np.ndarray, int | None], bytes],
    pictures: Sequence[np.ndarray],
    budget: int,
    qualities: Sequence[int | None] = (None, 90, 75, 50, 25),
) -> tuple[list[bytes], str]:
    """All pictures or clips, [..., h, w, 3], at the first quality that fits into `budget` bytes.

    Where even the last quality does not fit, they lose every other row and column and try again.

    Returns the encoded pictures, and in words what had to be done to them.
    """
    scale = 1
    while True:
        for quality in qualities:
            encoded = _within(budget, (encode(picture, quality) for picture in pictures))
            if encoded is not None:
                words = "without loss" if quality is None else f"as WebP of quality {quality}"
                return encoded, words + (f" at 1/{scale} of the size" if scale > 1 else "")
        if all(min(picture.shape[-3:-1]) < 2 for picture in pictures):
            raise ValueError(f"{len(pictures)} pictures of one pixel exceed {budget} bytes")
        pictures, scale = [picture[..., ::2, ::2, :] for picture in pictures], 2 * scale


def _within(budget: int, encoded: Iterable[bytes]) -> list[bytes] | None:
    """All of them, or None as soon as they exceed the budget."""
    kept, total = [], 0
    for one in encoded:
        kept.append(one)
        total += len(one)
        if total > budget:
            return None
    return kept


def _webp(frames: list[np.ndarray], quality: int | None) -> bytes:
    images = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    how = {"lossless": True} if quality is None else {"quality": quality}
    if len(images) > 1:
        how |= {"save_all": True, "append_images": images[1:], "loop": 0}
        how["duration"] = FRAME_MILLISECONDS
    out = io.BytesIO()
    images[0].save(out, "WEBP", method=4, **how)
    return out.getvalue()
