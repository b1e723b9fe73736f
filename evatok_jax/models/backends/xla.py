"""Dense attention in plain XLA: all logits at once. For small inputs, on any device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from evatok_jax.models.rows import MASKED, Rows, visible


def attend(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    queries: Rows,
    keys: Rows,
) -> Float[Array, "b n h d"]:
    """Softmax attention, differentiated by JAX itself."""
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
    logits += jnp.where(visible(queries, keys), 0.0, MASKED)[:, None]
    # Dividing after the second product, not before it, saves a pass over the largest array.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    out = jnp.einsum(
        "bhnm,bmhd->bnhd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    total = weights.sum(axis=-1).swapaxes(1, 2)[..., None]
    return (out / total).astype(v.dtype)
