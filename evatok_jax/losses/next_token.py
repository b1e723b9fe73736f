"""Next-token cross-entropy over visual and length tokens (EVATok)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from evatok_jax.models.sequence import LENGTH, PADDING, VISUAL


def next_token_loss(
    logits: Float[Array, "b n v"],
    ids: Int[Array, "b n"],
    kind: Int[Array, "b n"],
    total: Float[Array, ""] | None = None,
) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
    """Mean cross-entropy in nats over the real tokens of a batch, over the whole vocabulary.

    The grammar masks logits only when sampling; here the model learns it. `kind` is that of
    `to_sequence`; padding counts nowhere. `total` is by what the sum over tokens is divided, where
    that is not their number: for a part of a batch, its part of all tokens.

    Returns the loss and metrics: `visual_loss`, `length_loss` (means over tokens of that kind) and
    `length_accuracy` (share of length tokens that have the largest logit).
    """
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - picked

    def mean(values, mask):
        return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(jnp.sum(mask), 1)

    metrics = {
        "visual_loss": mean(loss, kind == VISUAL),
        "length_loss": mean(loss, kind == LENGTH),
        "length_accuracy": mean(jnp.argmax(logits, axis=-1) == ids, kind == LENGTH),
    }
    if total is None:
        return mean(loss, kind != PADDING), metrics
    return jnp.sum(jnp.where(kind != PADDING, loss, 0)) / total, metrics
