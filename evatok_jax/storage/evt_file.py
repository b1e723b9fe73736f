"""What an `.evt` file holds: `EvtFile` cannot exist with parts that contradict each other."""

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Integer

from evatok_jax.geometry import Geometry
from evatok_jax.storage.framing import MODES, SourceInfo

DIGEST_DIGITS = 16  # hex digits of the tokenizer's digest that a file keeps: 8 bytes
MAX_CODEBOOK = 2**31  # ids are int32
MAX_LEVELS = 4096
MAX_SIDE = 2**16  # frames, rows or columns
MAX_CLIP = 2**28  # pixels of a clip
MAX_TICKS = 2**62  # time stamps and their differences stay within int64


@dataclass(frozen=True, eq=False)
class EvtFile:
    """A video as tokens.

    Attributes:
      codebook: number of codes; ids are below it.
      geometry: clip, patch and token levels of the tokenizer that wrote it.
      tokenizer: the first 16 hex digits of that tokenizer's `digest` (longer ones are cut).
      source: size, time stamps and the like of the video.
      lengths: int32 [clips, blocks], tokens of every block, each one a level.
      codes: the ids of all tokens, clip after clip and block after block, in the smallest unsigned
        dtype that holds the codebook.

    Raises ValueError where the parts contradict each other.
    """

    codebook: int
    geometry: Geometry
    tokenizer: str
    source: SourceInfo
    lengths: np.ndarray
    codes: np.ndarray

    def __post_init__(self):
        tokenizer = self.tokenizer[:DIGEST_DIGITS]
        if not re.fullmatch(f"[0-9a-f]{{{DIGEST_DIGITS}}}", tokenizer):
            raise ValueError(f"the tokenizer's digest must be hex digits, not {self.tokenizer!r}")
        if not 2 <= self.codebook <= MAX_CODEBOOK:
            raise ValueError(f"a codebook of {self.codebook} ids: allowed are 2..{MAX_CODEBOOK}")
        check_geometry(self.geometry)
        _check_picture(self.source, self.geometry)
        _check_times(self.source)
        lengths = _checked_lengths(np.asarray(self.lengths), self.source.frames, self.geometry)
        count = int(lengths.sum(dtype=np.int64))
        codes = _checked_codes(np.asarray(self.codes), count, self.codebook)
        for name, value in (("tokenizer", tokenizer), ("lengths", lengths), ("codes", codes)):
            object.__setattr__(self, name, value)

    @property
    def clips(self) -> int:
        """Number of clips; the last one may be filled by its last frame."""
        return len(self.lengths)


def flat_codes(
    codes: Integer[np.ndarray, "b s"], lengths: Integer[np.ndarray, "b blocks"]
) -> Integer[np.ndarray, " n"]:
    """The codes of a padded batch (`Tokens.codes`) without their padding, as `EvtFile` has them.

    Raises ValueError where the lengths ask for more tokens than the batch is wide.
    """
    totals = lengths.sum(1, dtype=np.int64)
    if totals.max(initial=0) > codes.shape[1]:
        raise ValueError(f"lengths sum to {totals.max()}, the codes have {codes.shape[1]} columns")
    return codes[np.arange(codes.shape[1]) < totals[:, None]]


def padded_codes(evt: EvtFile, start: int, stop: int, size: int) -> Int32[np.ndarray, "b s"]:
    """The codes of clips start..stop-1 as int32, padded with 0 to `size` tokens a clip.

    Raises ValueError where a clip has more tokens than that.
    """
    totals = evt.lengths.sum(1, dtype=np.int64)
    first, totals = totals[:start].sum(), totals[start:stop]
    if totals.max(initial=0) > size:
        raise ValueError(f"a clip has {totals.max()} tokens, more than {size}")
    padded = np.zeros((len(totals), size), np.int32)
    padded[np.arange(size) < totals[:, None]] = evt.codes[first : first + totals.sum()]
    return padded


def picture_size(source: SourceInfo, geometry: Geometry) -> tuple[int, int]:
    """Height and width of the picture that the box lies in."""
    if source.mode == "crop":
        return source.height, source.width
    return geometry.height, geometry.width


def code_dtype(codebook: int) -> np.dtype:
    """The smallest unsigned dtype that holds the ids."""
    return np.min_scalar_type(codebook - 1)


def check_geometry(geometry: Geometry) -> None:
    """Raises ValueError where clips or levels exceed the format.

    A level is at most two tokens a patch, so that of clips within the limits it fits an int32.
    """
    clip = (geometry.frames, geometry.height, geometry.width)
    if max(clip) > MAX_SIDE or clip[0] * clip[1] * clip[2] > MAX_CLIP:
        raise ValueError(f"clips of {clip} exceed {MAX_SIDE} a side or {MAX_CLIP} pixels")
    if len(geometry.levels) > MAX_LEVELS:
        raise ValueError(f"{len(geometry.levels)} levels are more than {MAX_LEVELS}")


def _check_picture(source: SourceInfo, geometry: Geometry) -> None:
    """Raises ValueError where pictures and box do not fit each other or the format."""
    if not (1 <= source.width <= MAX_SIDE and 1 <= source.height <= MAX_SIDE):
        raise ValueError(f"pictures of {source.width}x{source.height}: 1..{MAX_SIDE} is allowed")
    if source.mode not in MODES:
        raise ValueError(f"mode {source.mode!r} is unknown: choose letterbox or crop")
    box, (height, width) = source.box, picture_size(source, geometry)
    inside = box.top + box.height <= height and box.left + box.width <= width
    if not inside or min(box.top, box.left) < 0 or min(box.height, box.width) < 1:
        raise ValueError(f"{box} does not lie in {height}x{width} pixels")
    for name, ratio in (("time base", source.time_base), ("pixel aspect", source.pixel_aspect)):
        if not (0 < ratio.numerator < 2**31 and ratio.denominator < 2**31):
            raise ValueError(f"{name} {ratio} is out of range")


def _check_times(source: SourceInfo) -> None:
    """Raises ValueError where the time stamps do not increase or leave their range."""
    times = source.timestamps
    if times.ndim != 1 or times.dtype != np.int64 or times.size < 2:
        raise ValueError(f"time stamps must be int64 [frames + 1], not {times.dtype} {times.shape}")
    if not (int(times.min()) >= -MAX_TICKS and int(times.max()) <= MAX_TICKS):
        raise ValueError(f"time stamps {times[0]}..{times[-1]} are out of range")
    if times.size > 2**31:
        raise ValueError(f"{times.size - 1} frames are more than {2**31 - 1}")
    if (times[1:] <= times[:-1]).any():
        raise ValueError("time stamps must increase from frame to frame")


def _checked_lengths(lengths: np.ndarray, frames: int, geometry: Geometry) -> np.ndarray:
    shape = (-(-frames // geometry.frames), geometry.blocks)
    if lengths.shape != shape or not np.issubdtype(lengths.dtype, np.integer):
        raise ValueError(
            f"{frames} frames need integer lengths of shape {shape}, not {lengths.dtype} "
            f"{lengths.shape}"
        )
    strange = lengths[~np.isin(lengths, geometry.levels)]
    if strange.size:
        raise ValueError(f"length {strange[0]} is none of the levels {geometry.levels}")
    return lengths.astype(np.int32, copy=False)


def _checked_codes(codes: np.ndarray, count: int, codebook: int) -> np.ndarray:
    if codes.shape != (count,) or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(
            f"the lengths need integer codes of shape {(count,)}, not {codes.dtype} {codes.shape}"
        )
    if int(codes.min()) < 0 or int(codes.max()) >= codebook:
        raise ValueError(f"ids {codes.min()}..{codes.max()} exceed a codebook of {codebook}")
    return codes.astype(code_dtype(codebook), copy=False)
