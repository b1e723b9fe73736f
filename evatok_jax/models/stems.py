"""Stems: how pixels become features on the patch grid, and how features become pixels again.

"linear" is the paper's for video: one matrix a patch, each way. "cnn" is the image variant's hybrid
(`models/cnn.py`). Both ends of a stem know a block as a grid of patches and nothing of tokens.
"""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from evatok_jax.geometry import Geometry
from evatok_jax.models.attention import TRUNCATED
from evatok_jax.models.cnn import CnnDecoder, CnnEncoder
from evatok_jax.models.sizes import CnnConfig
from evatok_jax.names import nearest


class LinearIn(nn.Module):
    """Flattened patches through one matrix."""

    width: int
    geometry: Geometry
    dtype: jnp.dtype

    def setup(self):
        self.dense = nn.Dense(self.width, dtype=self.dtype, kernel_init=TRUNCATED)
        nn.share_scope(self, self.dense)

    def __call__(self, video: Float[Array, "b f h w 3"]) -> Float[Array, "b t p {self.width}"]:
        """Features of the patches of each block."""
        f, h, w = self.geometry.patch
        x = rearrange(video, "b (t f) (i h) (j w) c -> b t (i j) (f h w c)", f=f, h=h, w=w)
        return self.dense(x)


class LinearOut(nn.Module):
    """The inverse: one matrix from features to the pixels of a patch."""

    geometry: Geometry
    dtype: jnp.dtype

    def setup(self):
        values = self.geometry.patch_values
        self.dense = nn.Dense(values, dtype=self.dtype, kernel_init=TRUNCATED)
        nn.share_scope(self, self.dense)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b f h w 3"]:
        """Pixels in fp32 from the features of whole blocks of patches."""
        (f, h, w), (rows, columns) = self.geometry.patch, self.geometry.grid
        return rearrange(
            self.dense(x).astype(jnp.float32),
            "b (t i j) (f h w c) -> b (t f) (i h) (j w) c",
            i=rows,
            j=columns,
            f=f,
            h=h,
            w=w,
        )


class CnnIn(nn.Module):
    """Frames through the CNN; norm and matrix from a block's frames to the encoder (GigaTok)."""

    width: int
    geometry: Geometry
    cnn: CnnConfig
    dtype: jnp.dtype
    remat: str = "none"

    @nn.compact
    def __call__(self, video: Float[Array, "b f h w 3"]) -> Float[Array, "b t p {self.width}"]:
        """Features of the patches of each block."""
        x = rearrange(video, "b f h w c -> (b f) h w c")
        x = CnnEncoder(self.cnn, self.dtype, self.remat, name="cnn")(x)
        frames = self.geometry.block_frames
        x = rearrange(x, "(b t f) i j c -> b t (i j) (f c)", b=len(video), f=frames)
        x = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name="norm")(x)
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=TRUNCATED, name="project")(x)


class CnnOut(nn.Module):
    """A convolution from the decoder to the features of a block's frames; frames from the CNN."""

    geometry: Geometry
    cnn: CnnConfig
    dtype: jnp.dtype
    remat: str = "none"

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b f h w 3"]:
        """Pixels in fp32 from the features of whole blocks of patches."""
        (rows, columns), frames, b = self.geometry.grid, self.geometry.block_frames, len(x)
        x = rearrange(x, "b (t i j) d -> (b t) i j d", i=rows, j=columns)
        x = nn.Conv(
            frames * self.cnn.features,
            (3, 3),
            dtype=self.dtype,
            kernel_init=TRUNCATED,
            name="project",
        )(x)
        x = rearrange(x, "n i j (f c) -> (n f) i j c", f=frames)
        x = CnnDecoder(self.cnn, self.dtype, self.remat, name="cnn")(x)
        return rearrange(x, "(b f) h w c -> b f h w c", b=b)


def make_stem(
    kind: str, width: int, geometry: Geometry, cnn: CnnConfig, dtype: jnp.dtype, remat: str
) -> tuple[nn.Module, nn.Module]:
    """Both ends of a stem by name: pixels to features of `width`, features to pixels.

    Raises ValueError for an unknown name, or where the patch is not what the CNN's scales make.
    """
    if kind == "linear":
        return LinearIn(width, geometry, dtype), LinearOut(geometry, dtype)
    if kind != "cnn":
        raise ValueError(f"unknown stem {kind!r}: {nearest(kind, ('linear', 'cnn'))}")
    side = 2 ** (len(cnn.multipliers) - 1)
    if geometry.patch[1:] != (side, side):
        raise ValueError(
            f"a CNN of {len(cnn.multipliers)} scales has patches of {side}x{side} pixels, the "
            f"geometry has {geometry.patch[1]}x{geometry.patch[2]}: choose another size or geometry"
        )
    return CnnIn(width, geometry, cnn, dtype, remat), CnnOut(geometry, cnn, dtype, remat)
