"""DiffAugment (Zhao et al. 2020) for clips: jitters what the discriminator sees.

One draw holds for all frames of a clip, or the augmentation itself would look like motion.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

SHIFT, HOLE = 1 / 8, 0.2  # shares of a side


def diffaug(video: Float[Array, "b f h w 3"], keys: Key[Array, " b"]) -> Float[Array, "b f h w 3"]:
    """Brightness, saturation, contrast, translation and cutout, one key per clip.

    Pixels are in [-0.5, 0.5]; strengths are those of the paper, whose pixels are in [-1, 1].
    """
    return jax.vmap(_augment)(video, keys)


def _augment(clip: Float[Array, "f h w 3"], key) -> Float[Array, "f h w 3"]:
    keys = jax.random.split(key, 5)
    brightness, saturation, contrast = (jax.random.uniform(k) for k in keys[:3])
    clip = clip + (brightness - 0.5) / 2
    grey = clip.mean(axis=-1, keepdims=True)
    clip = (clip - grey) * (2.0 * saturation) + grey
    mean = clip.mean()
    clip = (clip - mean) * (contrast + 0.5) + mean
    return cutout(translate(clip, keys[3]), keys[4])


def translate(clip: Float[Array, "f h w c"], key) -> Float[Array, "f h w c"]:
    """Moved by up to an eighth of each side; what comes in is 0."""
    sides = clip.shape[1:3]
    most = [int(side * SHIFT + 0.5) for side in sides]
    start = [
        jax.random.randint(k, (), 0, 2 * m + 1)
        for k, m in zip(jax.random.split(key), most, strict=True)
    ]
    padded = jnp.pad(clip, ((0, 0), (most[0], most[0]), (most[1], most[1]), (0, 0)))
    return jax.lax.dynamic_slice(padded, (0, *start, 0), clip.shape)


def cutout(clip: Float[Array, "f h w c"], key) -> Float[Array, "f h w c"]:
    """A rectangle of a fifth of each side set to 0, its centre anywhere in the frame."""
    masks = []
    for k, side in zip(jax.random.split(key), clip.shape[1:3], strict=True):
        size = int(side * HOLE + 0.5)
        first = jax.random.randint(k, (), 0, side + 1 - size % 2) - size // 2
        place = jnp.arange(side)
        masks.append((place >= first) & (place < first + size))
    hole = masks[0][:, None] & masks[1][None, :]
    return jnp.where(hole[None, :, :, None], 0.0, clip)
