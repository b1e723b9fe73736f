"""The router: a small ViT that scores assignments from the pixels of a clip (EVATok sec. 3.2.3)."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from evatok_jax.allocation.assignments import all_assignments, assignment_index
from evatok_jax.geometry import Geometry
from evatok_jax.models.attention import TRUNCATED
from evatok_jax.models.sizes import StackConfig
from evatok_jax.models.vit import ViT

FLAT_HEAD_LIMIT = 4096  # assignments; beyond, one head a block


@dataclass(frozen=True)
class RouterConfig:
    """Everything that shapes a router.

    Attributes:
      geometry: clip, patch and levels.
      stack: width, layers and heads ("S": 512/6/8, the paper's 19.9M).
      dropout: after each attention and MLP.
      dtype: compute type; norms and scores stay in fp32.
      attention: back end (`attention.BACKENDS`); "auto" takes what fits the device.
    """

    geometry: Geometry
    stack: StackConfig
    dropout: float = 0.0
    dtype: str = "float32"
    attention: str = "auto"


class Router(nn.Module):
    """[CLS] and 3D patches through a ViT; a softmax over all assignments, or one for each block."""

    config: RouterConfig

    def setup(self):
        c, g = self.config, self.config.geometry
        self.vit = ViT(g, c.stack, c.dropout, dtype=c.dtype, attention=c.attention)
        nn.share_scope(self, self.vit)
        outputs = g.assignments
        if outputs > FLAT_HEAD_LIMIT:
            outputs = g.blocks * len(g.levels)
        self.head = nn.Dense(outputs, kernel_init=TRUNCATED)

    def __call__(
        self, video: Float[Array, "b f h w 3"], keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b a"]:
        """Logits: [b, assignments], or [b, blocks * levels] beyond 4,096 assignments.

        `video` is in [-0.5, 0.5]; `keys`, one per sample, switch dropout on (training).
        """
        return self.head(self.vit(video, keys)[:, 0])


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
