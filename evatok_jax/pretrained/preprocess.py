"""What frozen video networks want of a clip: their size, their pixel statistics.

Resizing is PyTorch's `interpolate` (align_corners false, no antialias): half-pixel centres, borders
repeated, and for bicubic the kernel with a = -0.75, where `jax.image.resize` has -0.5.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Kind = Literal["bilinear", "bicubic"]


def preprocess(
    video: Float[Array, "b f h w 3"], size: tuple[int, int], kind: Kind
) -> Float[Array, "b f {size[0]} {size[1]} 3"]:
    """Pixels of [-0.5, 0.5], clamped to it, resized and normalised by ImageNet's statistics."""
    video = jnp.clip(video + 0.5, 0.0, 1.0)
    video = resize(video, size, kind)
    return (video - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_STD)


def resize(
    video: Float[Array, "b f h w c"], size: tuple[int, int], kind: Kind
) -> Float[Array, "b f {size[0]} {size[1]} c"]:
    """Frames at another size, as two small matrix products."""
    rows, columns = (_weights(n, m, kind) for n, m in zip(video.shape[2:4], size, strict=True))
    video = jnp.einsum("bfhwc,ih->bfiwc", video, rows, precision="highest")
    return jnp.einsum("bfiwc,jw->bfijc", video, columns, precision="highest")


def _weights(old: int, new: int, kind: Kind) -> np.ndarray:
    """How much each old pixel counts for each new one, float32 [new, old]."""
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    if kind == "bilinear":
        centre = np.maximum(centre, 0.0)
    taps = np.arange(0, 2) if kind == "bilinear" else np.arange(-1, 3)
    at = np.floor(centre)[:, None] + taps
    distance = np.abs(centre[:, None] - at)
    weight = 1.0 - distance if kind == "bilinear" else _cubic(distance)
    matrix = np.zeros((new, old))
    index = np.clip(at, 0, old - 1).astype(int)
    np.add.at(matrix, (np.arange(new)[:, None], index), weight)
    return matrix.astype(np.float32)


def _cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, far)
