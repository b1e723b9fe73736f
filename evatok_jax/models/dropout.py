"""Dropout whose randomness belongs to the sample."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def drop(
    x: Float[Array, "b ..."], rate: float, keys: Key[Array, " b"] | None
) -> Float[Array, "b ..."]:
    """Dropout with one key per sample, so that it does not depend on its place in the batch."""
    if keys is None or rate == 0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0)


def split_keys(keys: Key[Array, " b"], number: int) -> Key[Array, "{number} b"]:
    """That many keys of every sample."""
    return jax.vmap(lambda key: jax.random.split(key, number), out_axes=1)(keys)
