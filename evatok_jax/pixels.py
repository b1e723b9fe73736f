"""Pixels: uint8 outside models, floats in [-0.5, 0.5] inside; anything else raises."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8


def to_model(video: UInt8[Array | np.ndarray, "*b 3"]) -> Float[Array, "*b 3"]:
    """uint8 to [-0.5, 0.5]."""
    return jnp.asarray(video, jnp.float32) / 255.0 - 0.5


def to_uint8(video: Float[Array, "*b 3"]) -> UInt8[Array, "*b 3"]:
    """[-0.5, 0.5], clamped, to uint8."""
    return jnp.round(jnp.clip(video + 0.5, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def check_clips(video, shape: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """Clips given by a user: uint8 [n, frames, height, width, 3].

    Raises ValueError for any other type or shape, and where `shape` (frames, height, width, 3) is
    given and differs.
    """
    video = np.asarray(video)
    if video.dtype != np.uint8:
        low, high = (video.min(), video.max()) if video.size else (0, 0)
        raise ValueError(
            f"video must be uint8 in 0..255, not {video.dtype} in [{low:.3g}, {high:.3g}]; convert "
            "floats in [0, 1] by (255 * x).round().astype('uint8')"
        )
    if video.ndim != 5 or video.shape[-1] != 3:
        raise ValueError(
            f"video must have shape [clips, frames, height, width, 3], not {video.shape}"
        )
    if shape is not None and video.shape[1:] != tuple(shape):
        raise ValueError(f"clips must be {tuple(shape)} each, not {video.shape[1:]}")
    return video
