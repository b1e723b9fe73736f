"""The router: a small ViT that scores assignments from the pixels of a clip (EVATok sec. 3.2.3)."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int, Key

from evatok_jax.allocation.assignments import all_assignments, assignment_index
from evatok_jax.geometry import Geometry
from evatok_jax.models.attention import TRUNCATED, MultiHeadAttention
from evatok_jax.models.dropout import drop, split_keys
from evatok_jax.models.ragged import block_rows
from evatok_jax.models.sizes import StackConfig

NORMAL = nn.initializers.truncated_normal(0.02)
FLAT_HEAD_LIMIT = 4096  # assignments; beyond, one head a block


@dataclass(frozen=True)
class RouterConfig:
    """Everything that shapes a router.

    Attributes:
      geometry: clip, patch and levels.
      stack: width, layers and heads ("S": 512/6/8, the paper's 19.9M).
      dropout: after each attention and MLP.
      dtype: compute type; norms and scores stay in fp32.
    """

    geometry: Geometry
    stack: StackConfig
    dropout: float = 0.0
    dtype: str = "float32"


class RouterLayer(nn.Module):
    """A pre-norm ViT layer with full attention."""

    config: RouterConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], rows, keys: Key[Array, "2 b"] | None):
        stack, dtype = self.config.stack, jnp.dtype(self.config.dtype)

        def norm(name):
            return nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name=name)(x).astype(dtype)

        h = norm("attention_norm")
        h, _ = MultiHeadAttention(stack.width, stack.heads, dtype, name="attention")(
            h, h, h, rows, rows
        )
        attention_keys, mlp_keys = (None, None) if keys is None else keys
        x = x + drop(h, self.config.dropout, attention_keys)
        h = norm("mlp_norm")
        h = nn.Dense(4 * stack.width, dtype=dtype, kernel_init=TRUNCATED, name="mlp_in")(h)
        h = nn.gelu(h, approximate=False)
        h = nn.Dense(stack.width, dtype=dtype, kernel_init=TRUNCATED, name="mlp_out")(h)
        return x + drop(h, self.config.dropout, mlp_keys), None


class Router(nn.Module):
    """[CLS] and 3D patches through a ViT; a softmax over all assignments, or one for each block."""

    config: RouterConfig

    @nn.compact
    def __call__(
        self, video: Float[Array, "b f h w 3"], keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b a"]:
        """Logits: [b, assignments], or [b, blocks * levels] beyond 4,096 assignments.

        `video` is in [-0.5, 0.5]; `keys`, one per sample, switch dropout on (training).
        """
        c = self.config
        g, width, dtype = c.geometry, c.stack.width, jnp.dtype(c.dtype)
        f, h, w = g.patch
        patches = rearrange(video, "b (t f) (i h) (j w) c -> b (t i j) (f h w c)", f=f, h=h, w=w)
        x = nn.Dense(width, dtype=dtype, kernel_init=TRUNCATED, name="patch_in")(patches)
        b, n, _ = x.shape
        cls = self.param("cls", NORMAL, (1, 1, width))
        x = jnp.concatenate([jnp.broadcast_to(cls, (b, 1, width)).astype(dtype), x], axis=1)
        x = x + self.param("positions", NORMAL, (1, n + 1, width)).astype(dtype)
        layers = nn.scan(
            RouterLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=c.stack.layers,
        )
        if keys is not None:
            keys = split_keys(keys, 2 * c.stack.layers).reshape(c.stack.layers, 2, -1)
        x, _ = layers(c, name="layers")(x, block_rows(b, 1, n + 1), keys)
        x = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name="norm")(x[:, 0])
        outputs = g.assignments
        if outputs > FLAT_HEAD_LIMIT:
            outputs = g.blocks * len(g.levels)
        return nn.Dense(outputs, kernel_init=TRUNCATED, name="head")(x.astype(jnp.float32))


def scores(
    logits: Float[Array, "b a"], assignments: Int[np.ndarray, "n t"], geometry: Geometry
) -> Float[Array, "b n"]:
    """log p of each of n assignments [n, blocks] of token counts, one interface for both heads."""
    if geometry.assignments <= FLAT_HEAD_LIMIT:
        places = assignment_index(assignments, geometry.levels)
        return jax.nn.log_softmax(logits, axis=-1)[:, places]
    digits = np.searchsorted(np.asarray(geometry.levels), assignments)
    log_p = jax.nn.log_softmax(logits.reshape(len(logits), geometry.blocks, -1), axis=-1)
    return sum(log_p[:, t, digits[:, t]] for t in range(geometry.blocks))


def route(logits: Float[Array, "b a"], geometry: Geometry) -> Int[Array, "b t"]:
    """The most likely assignment of each clip, as token counts."""
    levels = jnp.asarray(geometry.levels, jnp.int32)
    if geometry.assignments <= FLAT_HEAD_LIMIT:
        table = jnp.asarray(all_assignments(geometry.levels, geometry.blocks))
        return table[jnp.argmax(logits, axis=-1)]
    per_block = logits.reshape(len(logits), geometry.blocks, -1)
    return levels[jnp.argmax(per_block, axis=-1)]
