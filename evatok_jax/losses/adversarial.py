"""Adversarial losses: LARP's recipe (non-saturating, smoothed targets, LeCam).

The discriminator's targets are noisy (real 1 - |n|, never below 0.7; fake |n|, never above 0.3,
n ~ 0.15 N(0, 1)), so that it does not grow certain. LeCam (Tseng et al. 2021) pulls its logits
towards moving averages of those on the other side.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

SMOOTHING, MOST = 0.15, 0.3


@flax.struct.dataclass
class LecamAverages:
    """Moving averages of a discriminator's mean logits, scalars."""

    real: Any  # arrays, or their shapes
    fake: Any

    @classmethod
    def zeros(cls) -> "LecamAverages":
        """Before the first update."""
        return cls(jnp.zeros(()), jnp.zeros(()))

    def update(
        self, real: Float[Array, "b n"], fake: Float[Array, "b n"], decay: float
    ) -> "LecamAverages":
        """Averages that have seen these logits too."""
        stop = jax.lax.stop_gradient

        def moved(old, logits):
            return decay * old + (1.0 - decay) * stop(logits).mean()

        return LecamAverages(moved(self.real, real), moved(self.fake, fake))


def generator_loss(fake: Float[Array, "b n"]) -> Float[Array, ""]:
    """Non-saturating: -log D(fake), averaged over logits."""
    return jax.nn.softplus(-fake).mean()


def discriminator_loss(
    real: Float[Array, "b n"], fake: Float[Array, "b n"], keys: Key[Array, " b"]
) -> Float[Array, ""]:
    """Mean of the cross-entropies of both sides with noisy targets, one key per sample."""

    def noise(key, like):
        return jnp.minimum(SMOOTHING * jnp.abs(jax.random.normal(key, like.shape)), MOST)

    both = jax.vmap(jax.random.split, out_axes=1)(keys)
    real_targets = 1.0 - jax.vmap(noise)(both[0], real)
    fake_targets = jax.vmap(noise)(both[1], fake)
    return (cross_entropy(real, real_targets) + cross_entropy(fake, fake_targets)) / 2


def cross_entropy(logits: Float[Array, "b n"], targets: Float[Array, "b n"]) -> Float[Array, ""]:
    """Mean binary cross-entropy of logits with targets in [0, 1]."""
    return (jax.nn.softplus(logits) - targets * logits).mean()


def lecam(
    real: Float[Array, "b n"], fake: Float[Array, "b n"], averages: LecamAverages
) -> Float[Array, ""]:
    """LeCam's regulariser: real logits above the fake average, fake ones below the real one."""
    above = jax.nn.relu(real - averages.fake)
    below = jax.nn.relu(averages.real - fake)
    return jnp.square(above).mean() + jnp.square(below).mean()


def accuracy(real: Float[Array, "b n"], fake: Float[Array, "b n"]) -> Float[Array, ""]:
    """Share of clips that the sign of their mean logit tells right."""
    right = [(side.reshape(len(side), -1).mean(axis=1) > 0) for side in (real, fake)]
    return (right[0].mean() + 1.0 - right[1].mean()) / 2
