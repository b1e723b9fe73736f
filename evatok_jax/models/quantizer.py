"""Vector quantisation with l2-normalised codes (EVATok sec. 3; GigaTok's VQ)."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from evatok_jax.models.ragged import Layout, masked_mean


@flax.struct.dataclass
class Quantized:
    """What a quantiser returns.

    Attributes:
      codes: int32 [b, s], nearest code; 0 on padding.
      vectors: [b, s, c], the codes' vectors, straight-through for gradients.
      codebook_loss, commitment_loss, entropy_loss: scalars over real tokens.
      usage: float32 [codebook], how often each code was used by real tokens.
    """

    codes: jax.Array
    vectors: jax.Array
    codebook_loss: jax.Array
    commitment_loss: jax.Array
    entropy_loss: jax.Array
    usage: jax.Array


def normalize(x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
    """Unit length along the last axis, in fp32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def entropy_loss(
    affinity: Float[Array, "b s k"], rows: Layout, temperature: float
) -> Float[Array, ""]:
    """Mean entropy of each token's soft assignment minus entropy of the mean assignment.

    `affinity` is minus the squared distance to each code (MAGVIT-v2 eq. 5; EVATok's L_entropy).
    """
    log_p = jax.nn.log_softmax(affinity / temperature, axis=-1)
    p = jnp.exp(log_p)
    each = masked_mean(-jnp.sum(p * log_p, axis=-1), rows)
    weight = rows.valid / jnp.maximum(jnp.sum(rows.valid), 1)
    mean = jnp.einsum("bs,bsk->k", weight.astype(p.dtype), p)
    return each + jnp.sum(mean * jnp.log(mean + 1e-8))


class VectorQuantizer(nn.Module):
    """Nearest neighbour among unit vectors, straight-through, with entropy regularisation.

    Distances are computed in fp32 whatever the compute type, so that ids do not depend on it.
    """

    codebook_size: int
    code_dim: int
    entropy_temperature: float = 0.01

    def setup(self):
        def uniform(key, shape):
            return normalize(jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0))

        self.codebook = self.param("codebook", uniform, (self.codebook_size, self.code_dim))

    def __call__(self, z: Float[Array, "b s c"], rows: Layout) -> Quantized:
        """Quantises latents; `z` need not be normalised."""
        z = normalize(z)
        book = normalize(self.codebook)
        # |z - e|^2 = 2 - 2 z.e between unit vectors.
        affinity = 2.0 * jnp.einsum("bsc,kc->bsk", z, book, precision="highest") - 2.0
        codes = jnp.where(rows.valid, jnp.argmax(affinity, axis=-1), 0).astype(jnp.int32)
        vectors = book[codes]

        def distance(a, b):
            return masked_mean(jnp.mean((a - b) ** 2, axis=-1), rows)

        stop = jax.lax.stop_gradient
        counted = jnp.zeros(self.codebook_size).at[codes].add(rows.valid.astype(jnp.float32))
        return Quantized(
            codes=codes,
            vectors=z + stop(vectors - z),
            codebook_loss=distance(vectors, stop(z)),
            commitment_loss=distance(stop(vectors), z),
            entropy_loss=entropy_loss(affinity, rows, self.entropy_temperature),
            usage=counted,
        )

    def look_up(self, codes: Int[Array, "b s"]) -> Float[Array, "b s c"]:
        """The unit vectors of codebook ids."""
        return normalize(self.codebook)[codes]
