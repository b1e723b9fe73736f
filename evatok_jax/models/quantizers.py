"""Quantisers behind one interface: VQ (ours), SVQ (LARP), FSQ, LFQ (MAGVIT-v2) and KL.

`quantizer(z, rows, keys)` takes [b, s, inputs] latents and gives what the decoder reads, ids, and
losses over real tokens by name; `look_up(codes)` gives the same vectors for ids. Distances and
entropies are computed in fp32 at full precision whatever the compute type, so that ids do not
depend on it.
"""

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from evatok_jax.models.ragged import Layout, masked_mean, token_keys
from evatok_jax.names import nearest


@flax.struct.dataclass
class Quantized:
    """What a quantiser returns.

    Attributes:
      latents: [b, s, c], what was quantised (unit vectors for VQ).
      codes: int32 [b, s], ids; 0 on padding, and everywhere where latents stay continuous.
      vectors: [b, s, channels], what the decoder reads, straight-through for gradients.
      losses: scalars over real tokens: "codebook", "commitment", "entropy", "kl", as there are.
      usage: float32 [codebook_size], how often each code was used by real tokens.
    """

    latents: jax.Array
    codes: jax.Array
    vectors: jax.Array
    losses: dict[str, jax.Array]
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
    mean = jnp.einsum("bs,bsk->k", weight.astype(p.dtype), p, precision="highest")
    return each + jnp.sum(mean * jnp.log(mean + 1e-8))


def straight_through(z, vectors):
    """The vectors, with the gradient of z."""
    return z + jax.lax.stop_gradient(vectors - z)


def _counted(codes, rows: Layout, size: int):
    return jnp.zeros(size).at[codes].add(rows.valid.astype(jnp.float32))


def _squared(a, b, rows: Layout):
    return masked_mean(jnp.mean((a - b) ** 2, axis=-1), rows)


class VectorQuantizer(nn.Module):
    """Nearest neighbour among unit vectors, with entropy regularisation (EVATok; GigaTok's VQ).

    With `sampling` above 0 it is LARP's stochastic VQ: given `keys` (training), a token draws its
    code from softmax(-distance / sampling); without keys it takes the nearest.
    """

    codebook_size: int
    code_dim: int
    entropy_temperature: float = 0.01
    sampling: float = 0.0

    @property
    def inputs(self) -> int:
        """Channels of a latent."""
        return self.code_dim

    def setup(self):
        def uniform(key, shape):
            return normalize(jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0))

        self.codebook = self.param("codebook", uniform, (self.codebook_size, self.code_dim))

    def __call__(
        self, z: Float[Array, "r s c"], rows: Layout, keys: Key[Array, " b"] | None = None
    ) -> Quantized:
        """Quantises latents, which need not be normalised."""
        z, book = normalize(z), normalize(self.codebook)
        # |z - e|^2 = 2 - 2 z.e between unit vectors.
        affinity = 2.0 * jnp.einsum("bsc,kc->bsk", z, book, precision="highest") - 2.0
        if keys is not None and self.sampling:
            draw = jax.vmap(jax.vmap(jax.random.categorical))
            codes = draw(token_keys(keys, rows), affinity / self.sampling)
        else:
            codes = jnp.argmax(affinity, axis=-1)
        codes = jnp.where(rows.valid, codes, 0).astype(jnp.int32)
        vectors, stop = book[codes], jax.lax.stop_gradient
        return Quantized(
            latents=z,
            codes=codes,
            vectors=straight_through(z, vectors),
            losses={
                "codebook": _squared(vectors, stop(z), rows),
                "commitment": _squared(stop(vectors), z, rows),
                "entropy": entropy_loss(affinity, rows, self.entropy_temperature),
            },
            usage=_counted(codes, rows, self.codebook_size),
        )

    def look_up(self, codes: Int[Array, "b s"]) -> Float[Array, "b s c"]:
        """The unit vectors of ids."""
        return normalize(self.codebook)[codes]


class FiniteScalarQuantizer(nn.Module):
    """FSQ (Mentzer et al. 2023): each channel is bounded and rounded to one of its levels.

    Raises ValueError unless there are channels, each of two levels or more.
    """

    levels: tuple[int, ...]

    def __post_init__(self):
        super().__post_init__()
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"FSQ needs levels of 2 or more, one for each channel: {self.levels}")

    @property
    def inputs(self) -> int:
        """Channels of a latent."""
        return len(self.levels)

    @property
    def codebook_size(self) -> int:
        """Codes that there are."""
        return math.prod(self.levels)

    def __call__(self, z: Float[Array, "b s c"], rows: Layout, keys=None) -> Quantized:
        """Quantises latents; vectors are in [-1, 1]. There is nothing to learn, and no loss."""
        levels = jnp.asarray(self.levels, jnp.float32)
        half = (levels - 1.0) * (1.0 + 1e-3) / 2.0
        offset = jnp.where(levels % 2 == 0, 0.5, 0.0)
        bounded = jnp.tanh(z.astype(jnp.float32) + jnp.arctanh(offset / half)) * half - offset
        rounded = straight_through(bounded, jnp.round(bounded))
        width = levels // 2
        digits = jax.lax.stop_gradient(rounded) + width
        codes = jnp.sum(digits * jnp.asarray(self._places), axis=-1)
        codes = jnp.where(rows.valid, codes, 0).astype(jnp.int32)
        usage = _counted(codes, rows, self.codebook_size)
        return Quantized(z, codes, rounded / width, {}, usage)

    @property
    def _places(self):
        return np.cumprod([1, *self.levels[:-1]]).astype(np.float32)

    def look_up(self, codes: Int[Array, "b s"]) -> Float[Array, "b s c"]:
        """The vectors of ids."""
        levels = jnp.asarray(self.levels)
        digits = codes[..., None] // jnp.asarray(self._places.astype(np.int32)) % levels
        return ((digits - levels // 2) / (levels // 2)).astype(jnp.float32)


class LookupFreeQuantizer(nn.Module):
    """LFQ (MAGVIT-v2): the signs of the channels are the bits of the id.

    Its entropies are over groups of at most `GROUP` bits, since no array over all 2^18 codes fits;
    within a group they are exact.
    """

    bits: int
    entropy_temperature: float = 0.01

    GROUP = 10

    @property
    def inputs(self) -> int:
        """Channels of a latent."""
        return self.bits

    @property
    def codebook_size(self) -> int:
        """Codes that there are."""
        return 2**self.bits

    def __call__(self, z: Float[Array, "b s c"], rows: Layout, keys=None) -> Quantized:
        """Quantises latents; vectors hold -1 and 1."""
        z = z.astype(jnp.float32)
        vectors = jnp.where(z > 0, 1.0, -1.0)
        codes = jnp.sum((z > 0) * 2 ** jnp.arange(self.bits), axis=-1)
        codes = jnp.where(rows.valid, codes, 0).astype(jnp.int32)
        entropy = 0.0
        for first in range(0, self.bits, self.GROUP):
            part = z[..., first : first + self.GROUP]
            book = self._vectors(jnp.arange(2 ** part.shape[-1]), part.shape[-1])
            affinity = -jnp.sum((part[..., None, :] - book) ** 2, axis=-1)
            entropy = entropy + entropy_loss(affinity, rows, self.entropy_temperature)
        return Quantized(
            latents=z,
            codes=codes,
            vectors=straight_through(z, vectors),
            losses={
                "commitment": _squared(jax.lax.stop_gradient(vectors), z, rows),
                "entropy": entropy,
            },
            usage=_counted(codes, rows, self.codebook_size),
        )

    @staticmethod
    def _vectors(codes, bits: int):
        return (codes[..., None] // 2 ** jnp.arange(bits) % 2) * 2.0 - 1.0

    def look_up(self, codes: Int[Array, "b s"]) -> Float[Array, "b s c"]:
        """The vectors of ids."""
        return self._vectors(codes, self.bits)


class KlBottleneck(nn.Module):
    """Continuous latents: a Gaussian for each token, pulled towards the standard one (VAE).

    Given `keys` (training) it samples; without them it takes the mean. There are no ids.
    """

    code_dim: int

    codebook_size = 1

    @property
    def inputs(self) -> int:
        """Channels of a latent: means, then log variances."""
        return 2 * self.code_dim

    def __call__(
        self, z: Float[Array, "r s c"], rows: Layout, keys: Key[Array, " b"] | None = None
    ) -> Quantized:
        """Draws latents."""
        mean, log_variance = jnp.split(z.astype(jnp.float32), 2, axis=-1)
        log_variance = jnp.clip(log_variance, -30.0, 20.0)
        vectors = mean
        if keys is not None:
            draw = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, mean.shape[2:])))
            noise = draw(token_keys(keys, rows))
            vectors = mean + jnp.exp(0.5 * log_variance) * noise
        each = 0.5 * jnp.sum(mean**2 + jnp.exp(log_variance) - 1.0 - log_variance, axis=-1)
        codes = jnp.zeros(z.shape[:2], jnp.int32)
        return Quantized(mean, codes, vectors, {"kl": masked_mean(each, rows)}, jnp.zeros(1))

    def look_up(self, codes: Int[Array, "b s"]) -> Float[Array, "b s c"]:
        """Raises ValueError: continuous latents have no ids."""
        raise ValueError("a KL bottleneck has no codes to look up: its tokens are vectors")


def make_quantizer(
    kind: str,
    codebook_size: int,
    code_dim: int,
    levels: tuple[int, ...] = (),
    entropy_temperature: float = 0.01,
    sampling: float = 0.03,
) -> nn.Module:
    """A quantiser by name: vq, svq, fsq, lfq or kl.

    Raises ValueError for another name, or where the codebook size is not what `levels` (FSQ) or
    `code_dim` bits (LFQ) make.
    """
    made = {
        "vq": lambda: VectorQuantizer(codebook_size, code_dim, entropy_temperature),
        "svq": lambda: VectorQuantizer(codebook_size, code_dim, entropy_temperature, sampling),
        "fsq": lambda: FiniteScalarQuantizer(tuple(levels)),
        "lfq": lambda: LookupFreeQuantizer(code_dim, entropy_temperature),
        "kl": lambda: KlBottleneck(code_dim),
    }
    if kind not in made:
        raise ValueError(f"unknown quantizer {kind!r}: {nearest(kind, made)}")
    quantizer = made[kind]()
    if kind != "kl" and quantizer.codebook_size != codebook_size:
        raise ValueError(
            f"quantizer {kind!r} has {quantizer.codebook_size} codes, codebook_size is "
            f"{codebook_size}"
        )
    return quantizer
