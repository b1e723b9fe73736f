"""What a tokenizer must beat: pictures that anyone could send with as many bits."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def _through(picture: UInt8[np.ndarray, "h w 3"], pixels: float) -> np.ndarray:
    """A picture shrunk to about that many pixels of 24 bits and enlarged again."""
    side = max(1, int(np.ceil(np.sqrt(pixels))))  # rounded in the baseline's favour
    height, width, _ = picture.shape
    small = Image.fromarray(picture).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def mean_frames(clip: UInt8[np.ndarray, "f h w 3"], block_frames: int) -> np.ndarray:
    """Every frame replaced by the mean frame of its block, at full size."""
    blocks = clip.reshape(-1, block_frames, *clip.shape[1:]).astype(np.float32).mean(axis=1)
    return np.repeat(np.round(blocks).astype(np.uint8), block_frames, axis=0)


def mean_frame_of_bits(
    clip: UInt8[np.ndarray, "f h w 3"], block_frames: int, bits: float
) -> np.ndarray:
    """One mean frame a block, shrunk so that all of them together cost about `bits`."""
    pixels = bits / 24 / (len(clip) // block_frames)
    means = mean_frames(clip, block_frames)[::block_frames]
    return np.repeat(np.stack([_through(m, pixels) for m in means]), block_frames, axis=0)


def thumbnail_video(clip: UInt8[np.ndarray, "f h w 3"], bits: float) -> np.ndarray:
    """Every frame shrunk so that all of them together cost about `bits`."""
    return np.stack([_through(frame, bits / 24 / len(clip)) for frame in clip])
