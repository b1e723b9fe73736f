"""How a video of any size becomes clips of one size, and back: the box and what must be remembered.

`letterbox` shows the whole picture with black bars; undoing it gives the source size back. `crop`
shows the largest centred region of the clip's shape; what was cut away is gone, so that undoing it
gives that region at the source's scale, and no more.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

MODES = ("letterbox", "crop")


class Box(NamedTuple):
    """A rectangle in whole pixels: of the clip (letterbox) or of the source picture (crop)."""

    top: int
    left: int
    height: int
    width: int


@dataclass
class SourceInfo:
    """What a file has to remember of a video besides its tokens.

    Attributes:
      width, height: size of the picture as it is shown, after rotation, in stored pixels.
      mode: "letterbox" or "crop".
      box: where the picture lies in the clip (letterbox), or the clip in the picture (crop).
      time_base: seconds of one tick.
      timestamps: int64 [frames + 1], strictly increasing ticks: the start of every frame, then the
        end of the last one. Empty until the video was read to its end.
      pixel_aspect: width of a pixel over its height.
      had_audio: whether the video had sound, which is not kept.
    """

    width: int
    height: int
    mode: str
    box: Box
    time_base: Fraction
    timestamps: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    pixel_aspect: Fraction = Fraction(1)
    had_audio: bool = False

    @property
    def frames(self) -> int:
        """Frames of the video; ValueError before it was read to its end."""
        if len(self.timestamps) < 2:
            raise ValueError("the number of frames is known once all clips were read")
        return len(self.timestamps) - 1

    @property
    def seconds(self) -> Fraction:
        """Length of the video."""
        return int(self.timestamps[self.frames] - self.timestamps[0]) * self.time_base

    @property
    def rate(self) -> Fraction:
        """Frames a second, on average."""
        return self.frames / self.seconds

    @property
    def constant_rate(self) -> bool:
        """Whether every frame lasts equally long."""
        return not np.diff(self.timestamps, 2).any()

    @property
    def restored_size(self) -> tuple[int, int]:
        """Height and width of what decoding gives back: in crop mode, those of the box."""
        if self.mode == "crop":
            return self.box.height, self.box.width
        return self.height, self.width

    @property
    def lost(self) -> tuple[str, ...]:
        """What decoding cannot bring back, in words; empty where nothing but detail is lost."""
        lost = ["audio"] if self.had_audio else []
        if self.restored_size != (self.height, self.width):
            lost.append("the picture outside the crop")
        return tuple(lost)


def box_for(size: tuple[int, int], height: int, width: int, mode: str) -> Box:
    """The box of a picture of `size` (height, width) in clips of height x width pixels.

    Raises ValueError on a mode that is neither "letterbox" nor "crop", and on empty pictures.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is unknown: choose letterbox or crop")
    rows, columns = size
    if min(rows, columns, height, width) < 1:
        raise ValueError(f"cannot fit {rows}x{columns} pixels into {height}x{width}")
    if mode == "letterbox":
        outer, shape = (height, width), (rows, columns)
    else:
        outer, shape = (rows, columns), (height, width)
    scale = min(Fraction(outer[0], shape[0]), Fraction(outer[1], shape[1]))
    inner = [max(1, min(o, round(s * scale))) for o, s in zip(outer, shape, strict=True)]
    return Box((outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2, *inner)


def fit_frame(frame: UInt8[np.ndarray, "h w 3"], height: int, width: int, mode: str) -> np.ndarray:
    """One picture as the clip shows it, uint8 [height, width, 3].

    It shrinks with an antialiased bilinear filter, as the training data do.
    """
    box = box_for(frame.shape[:2], height, width, mode)
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    if mode == "crop":
        return _resize(frame[rows, columns], height, width, Image.Resampling.BILINEAR)
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[rows, columns] = _resize(frame, box.height, box.width, Image.Resampling.BILINEAR)
    return canvas


def unfit_frame(frame: UInt8[np.ndarray, "h w 3"], source: SourceInfo) -> np.ndarray:
    """The inverse of `fit_frame` up to resolution: uint8 of `source.restored_size`, bicubic.

    Raises ValueError where the source's box does not lie in the frame.
    """
    if source.mode == "letterbox":
        box = source.box
        if box.top + box.height > frame.shape[0] or box.left + box.width > frame.shape[1]:
            raise ValueError(f"{box} does not lie in a picture of {frame.shape[:2]} pixels")
        frame = frame[box.top : box.top + box.height, box.left : box.left + box.width]
    return _resize(frame, *source.restored_size, Image.Resampling.BICUBIC)


def unfit(clips: Iterable[np.ndarray], source: SourceInfo) -> Iterator[np.ndarray]:
    """The frames of clips (uint8 [t, h, w, 3] each) at the source's scale, the fill left out.

    Raises ValueError where the clips end before `source.frames`, or go on a whole clip beyond.
    """
    frames, done = source.frames, 0
    for clip in clips:
        if done >= frames:
            raise ValueError(f"more clips than the {frames} frames of the video fill")
        for frame in clip[: frames - done]:
            yield unfit_frame(frame, source)
        done += len(clip)
    if done < frames:
        raise ValueError(f"the clips hold {done} frames, the video has {frames}")


def _resize(frame: np.ndarray, height: int, width: int, resampling: Image.Resampling) -> np.ndarray:
    """One picture at another size; where it shrinks, Pillow's filters widen with the scale."""
    if frame.shape[:2] == (height, width):
        return frame
    image = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(image.resize((width, height), resampling))
