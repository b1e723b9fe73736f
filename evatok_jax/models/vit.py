"""A plain pre-norm ViT over the 3D patches of a clip, with [CLS]: the router, the discriminator."""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Key

from evatok_jax.geometry import Geometry
from evatok_jax.models.attention import TRUNCATED, MultiHeadAttention
from evatok_jax.models.dropout import drop, split_keys
from evatok_jax.models.positions import patch_places, sincos
from evatok_jax.models.ragged import block_rows
from evatok_jax.models.sizes import StackConfig
from evatok_jax.models.stack import Stack

NORMAL = nn.initializers.truncated_normal(0.02)


class ViTLayer(nn.Module):
    """Full attention and MLP, each behind a norm and dropped out."""

    stack: StackConfig
    dropout: float
    dtype: jnp.dtype
    backend: str

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], rows, keys: Key[Array, "2 b"] | None):
        stack, dtype = self.stack, self.dtype

        def norm(name):
            return nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name=name)(x).astype(dtype)

        attention_keys, mlp_keys = (None, None) if keys is None else keys
        h = norm("attention_norm")
        attention = MultiHeadAttention(
            stack.width, stack.heads, dtype, backend=self.backend, name="attention"
        )
        h, _ = attention(h, h, h, rows, rows)
        x = x + drop(h, self.dropout, attention_keys)
        h = norm("mlp_norm")
        h = nn.Dense(4 * stack.width, dtype=dtype, kernel_init=TRUNCATED, name="mlp_in")(h)
        h = nn.gelu(h, approximate=False)
        h = nn.Dense(stack.width, dtype=dtype, kernel_init=TRUNCATED, name="mlp_out")(h)
        return x + drop(h, self.dropout, mlp_keys), None


class ViT(nn.Module):
    """Patches, [CLS] and positions through the layers.

    Attributes:
      geometry: clip and patch.
      stack: width, layers and heads.
      dropout: after each attention and MLP.
      learned: whether positions are learned (the router) or fixed sines and cosines (as LARP's
        discriminator has them, at the frequencies of `positions.sincos`; computed in the program,
        since a table would be a large constant of it).
      dtype: compute type; norms stay in fp32.
      remat: what of a layer the backward pass computes again (`remat.POLICIES`).
      attention: back end (`attention.BACKENDS`).
    """

    geometry: Geometry
    stack: StackConfig
    dropout: float = 0.0
    learned: bool = True
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"

    @nn.compact
    def __call__(
        self, video: Float[Array, "b f h w 3"], keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b n d"]:
        """Normalised tokens in fp32, [CLS] first, then the patches.

        `video` is in [-0.5, 0.5]; `keys`, one per sample, switch dropout on (training).
        """
        stack, dtype = self.stack, jnp.dtype(self.dtype)
        f, h, w = self.geometry.patch
        patches = rearrange(video, "b (t f) (i h) (j w) c -> b (t i j) (f h w c)", f=f, h=h, w=w)
        x = nn.Dense(stack.width, dtype=dtype, kernel_init=TRUNCATED, name="patch_in")(patches)
        b, n, _ = x.shape
        cls = self.param("cls", NORMAL, (1, 1, stack.width))
        x = jnp.concatenate([jnp.broadcast_to(cls, (b, 1, stack.width)).astype(dtype), x], axis=1)
        if self.learned:
            positions = self.param("positions", NORMAL, (1, n + 1, stack.width))
        else:
            table = sincos(patch_places(*self.geometry.grid), self.geometry.blocks, stack.width)
            positions = jnp.pad(table.reshape(1, n, stack.width), ((0, 0), (1, 0), (0, 0)))
        x = x + positions.astype(dtype)
        if keys is not None:
            keys = split_keys(keys, 2 * stack.layers).reshape(stack.layers, 2, -1)
        layers = Stack(
            ViTLayer,
            (stack, self.dropout, dtype, self.attention),
            stack.layers,
            dtype,
            in_axes=(nn.broadcast, 0),
            remat=self.remat,
            name="layers",
        )
        x, _ = layers(x, block_rows(b, 1, n + 1), keys)
        return nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name="norm")(x)
