"""Perceptual loss on some or all frames of a clip."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from evatok_jax.pretrained.lpips import lpips


def frame_lpips(
    params,
    real: Float[Array, "b f h w 3"],
    fake: Float[Array, "b f h w 3"],
    keys: Key[Array, " b"],
    frames: int,
    net: str = "vgg",
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, ""]:
    """Mean LPIPS of `frames` random frames of each clip, or of all of them for frames = 0.

    Pixels are in [-0.5, 0.5]. Each clip draws its frames by its own key, without repetition.
    `dtype` is that of the convolutions.
    """
    if frames:

        def pick(key):
            return jax.random.choice(key, real.shape[1], (frames,), replace=False)

        index = jax.vmap(pick)(keys)[:, :, None, None, None]
        real, fake = (jnp.take_along_axis(x, index, axis=1) for x in (real, fake))
    real, fake = (2.0 * x.reshape(-1, *x.shape[2:]) for x in (real, fake))
    return lpips(params, real, fake, net, dtype).mean()
