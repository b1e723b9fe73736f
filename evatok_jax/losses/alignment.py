"""Alignment with a frozen video network (EVATok Eq. 1, L_align)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def alignment_loss(
    predicted: Float[Array, "b n d"], teacher: Float[Array, "b n d"]
) -> Float[Array, ""]:
    """Minus the mean cosine similarity of patches, in [-1, 1]."""

    def unit(x):
        x = x.astype(jnp.float32)
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-8)

    return -jnp.sum(unit(predicted) * unit(teacher), axis=-1).mean()
