"""PSNR and SSIM between clips."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from evatok_jax.chunks import in_chunks

PSNR_OF_EQUAL = 100.0  # dB, stands for infinity, which neither a mean nor JSON can hold
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_CHUNK_VALUES = 2**22  # pixels times channels that are looked at together


def psnr(a: UInt8[Array, "n t h w 3"], b: UInt8[Array, "n t h w 3"]) -> Float[Array, " n"]:
    """PSNR in dB from the mean squared error of the whole clip (LARP), at most 100."""
    difference = a.astype(jnp.float32) - b.astype(jnp.float32)
    error = jnp.mean(jnp.square(difference / 255), axis=(1, 2, 3, 4))
    return -10 * jnp.log10(jnp.maximum(error, 10 ** (-PSNR_OF_EQUAL / 10)))


def ssim(a: UInt8[Array, "n t h w 3"], b: UInt8[Array, "n t h w 3"]) -> Float[Array, " n"]:
    """SSIM (Wang et al. 2004) of every frame and colour channel, averaged over both.

    Gaussian window of 11x11 pixels with sigma 1.5, at all places where it fits wholly; K1 = 0.01,
    K2 = 0.03, range 255.

    Raises ValueError for frames smaller than the window.
    """
    if min(a.shape[2:4]) < _WINDOW:
        raise ValueError(
            f"SSIM needs frames of {_WINDOW} pixels a side or more, got {a.shape[2]}x{a.shape[3]}"
        )
    rows, columns = (jnp.asarray(_window_matrix(size)) for size in a.shape[2:4])

    def mean(x: Array) -> Array:
        x = jnp.einsum("Hh,nthwc->ntHwc", rows, x, precision="highest")
        return jnp.einsum("Ww,nthwc->nthWc", columns, x, precision="highest")

    # About the middle of the range, where squares lose the fewest digits.
    x, y = (image.astype(jnp.float32) - 127.5 for image in (a, b))
    mean_x, mean_y = mean(x), mean(y)
    variances = mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + 127.5, mean_y + 127.5
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (variances + _C2)
    return jnp.mean(luminance * structure, axis=(1, 2, 3, 4))


def clip_psnr(
    a: UInt8[np.ndarray, "n t h w 3"], b: UInt8[np.ndarray, "n t h w 3"]
) -> Float[np.ndarray, " n"]:
    """`psnr` of any number of clips."""
    return in_chunks(_psnr, _chunk(a), a, b)


def clip_ssim(
    a: UInt8[np.ndarray, "n t h w 3"], b: UInt8[np.ndarray, "n t h w 3"]
) -> Float[np.ndarray, " n"]:
    """`ssim` of any number of clips."""
    return in_chunks(_ssim, _chunk(a), a, b)


_psnr, _ssim = jax.jit(psnr), jax.jit(ssim)


def _chunk(clips: np.ndarray) -> int:
    return max(1, _CHUNK_VALUES // int(np.prod(clips.shape[1:])))


def _window_matrix(size: int) -> np.ndarray:
    """[size - 10, size]: each row holds the window at one place."""
    window = np.exp(-0.5 * ((np.arange(_WINDOW) - _WINDOW // 2) / _SIGMA) ** 2)
    window /= window.sum()
    matrix = np.zeros((size - _WINDOW + 1, size), np.float32)
    for place in range(len(matrix)):
        matrix[place, place : place + _WINDOW] = window
    return matrix
