"""The CNN of the hybrid image tokenizer: between pixels and features on the patch grid.

GigaTok (arXiv 2504.08736) puts the CNN of a VQGAN around its Q-Formers; its S-B image tokenizer has
232M parameters with it. Taken from there: 128 channels times 1, 1, 2, 2, 4; two residual blocks a
scale (three in the decoder) and two in the middle, no attention; group norm and swish; strided
convolutions downwards; in the decoder depth-to-space upwards and an adaptive group norm before each
scale (both MAGVIT-v2's). Ours: weights start as in the rest of the tokenizer, with the variance
that PyTorch gives a convolution by default, and the adaptive scale starts around 1 rather than 0.

Frames never mix: each goes through as an image of its own, and a block's frames are laid side by
side in the channels of its patches.
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from evatok_jax.models.attention import TRUNCATED
from evatok_jax.models.remat import rematerialised
from evatok_jax.models.sizes import CnnConfig

GROUP = 4  # channels of a group at the least; there are at most 32 groups


def swish_norm(name: str, x: Float[Array, "n h w c"], dtype) -> Float[Array, "n h w c"]:
    """Group norm in fp32, then swish."""
    x = nn.GroupNorm(_groups(x.shape[-1]), epsilon=1e-6, dtype=jnp.float32, name=name)(x)
    return nn.swish(x).astype(dtype)


def _groups(channels: int) -> int:
    return min(32, channels // GROUP)


class ResidualBlock(nn.Module):
    """Norm, swish and convolution, twice, beside a shortcut."""

    channels: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w {self.channels}"]:
        conv = partial(nn.Conv, self.channels, dtype=self.dtype, kernel_init=TRUNCATED)
        h = x
        for i in (1, 2):
            h = conv((3, 3), name=f"conv_{i}")(swish_norm(f"norm_{i}", h, self.dtype))
        if x.shape[-1] != self.channels:
            x = conv((1, 1), name="shortcut")(x)
        return x + h


class AdaptiveGroupNorm(nn.Module):
    """Group norm whose scale and bias come from the features that the decoder was given.

    The scale from their deviation over the frame, the bias from their mean.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], style: Float[Array, "n i j d"]
    ) -> Float[Array, "n h w c"]:
        channels, style = x.shape[-1], style.astype(jnp.float32)
        norm = nn.GroupNorm(
            _groups(channels),
            epsilon=1e-6,
            dtype=jnp.float32,
            use_bias=False,
            use_scale=False,
            name="norm",
        )
        dense = partial(nn.Dense, channels, kernel_init=TRUNCATED)
        spread = jnp.sqrt(style.var(axis=(1, 2), keepdims=True) + 1e-6)
        scale = dense(bias_init=nn.initializers.ones, name="scale")(spread)
        bias = dense(name="bias")(style.mean(axis=(1, 2), keepdims=True))
        return (norm(x) * scale + bias).astype(self.dtype)


class CnnEncoder(nn.Module):
    """Frames to features at 1 / 2 ** (scales - 1) of their sides.

    `remat` says what of a residual block the backward pass computes again (`remat.POLICIES`).
    """

    config: CnnConfig
    dtype: jnp.dtype
    remat: str = "none"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"]) -> Float[Array, "n i j c"]:
        c, block = self.config, _block(self.remat)
        conv = partial(nn.Conv, kernel_size=(3, 3), dtype=self.dtype, kernel_init=TRUNCATED)
        x = conv(c.channels, name="conv_in")(x)
        for scale, multiplier in enumerate(c.multipliers):
            if scale:
                # Padded below and to the right alone, as GigaTok has it.
                down = partial(conv, strides=2, padding=((0, 1), (0, 1)))
                x = down(x.shape[-1], name=f"down_{scale}")(x)
            for i in range(c.blocks):
                x = block(c.channels * multiplier, self.dtype, name=f"scale_{scale}_{i}")(x)
        for i in range(2):
            x = block(x.shape[-1], self.dtype, name=f"middle_{i}")(x)
        return conv(c.features, name="conv_out")(swish_norm("norm_out", x, self.dtype))


class CnnDecoder(nn.Module):
    """The way back: features to frames of 2 ** (scales - 1) times their sides, in fp32."""

    config: CnnConfig
    dtype: jnp.dtype
    remat: str = "none"

    @nn.compact
    def __call__(self, features: Float[Array, "n i j c"]) -> Float[Array, "n h w 3"]:
        c, block = self.config, _block(self.remat)
        conv = partial(nn.Conv, kernel_size=(3, 3), dtype=self.dtype, kernel_init=TRUNCATED)
        x = conv(c.channels * c.multipliers[-1], name="conv_in")(features)
        for i in range(2):
            x = block(x.shape[-1], self.dtype, name=f"middle_{i}")(x)
        for scale in reversed(range(len(c.multipliers))):
            x = AdaptiveGroupNorm(self.dtype, name=f"adaptive_{scale}")(x, features)
            for i in range(c.blocks + 1):
                width = c.channels * c.multipliers[scale]
                x = block(width, self.dtype, name=f"scale_{scale}_{i}")(x)
            if scale:
                x = conv(4 * x.shape[-1], name=f"up_{scale}")(x)
                x = rearrange(x, "n i j (a b c) -> n (i a) (j b) c", a=2, b=2)
        x = swish_norm("norm_out", x, self.dtype).astype(jnp.float32)
        return nn.Conv(3, (3, 3), kernel_init=TRUNCATED, name="conv_out")(x)


def _block(remat: str):
    return rematerialised(nn.remat, ResidualBlock, remat)
