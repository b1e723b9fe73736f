"""Attention: one function, described masks, and the cache that incremental decoding appends to.

Masks are never passed around as arrays. Queries and keys each carry a `Rows` descriptor, and a
query sees a key when both belong to the same segment and the key's order is not later than the
query's. With order = block id that is the tokenizer's block-causal mask, with order = position the
generator's causal mask, with order = 0 full attention.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from evatok_jax.models.backends import cudnn, fused, xla
from evatok_jax.models.rows import Rows
from evatok_jax.names import nearest

BACKENDS = ("auto", "xla", "blocked", "pallas", "cudnn")
# Below so many queries or keys all logits at once are faster than tiles, which would be padded (a
# decoding step is one query); up to so many pairs they are as fast.
FEW_POSITIONS, FEW_PAIRS = 128, 256 * 256


@flax.struct.dataclass
class Cache:
    """Keys and values seen so far, each sample with a write cursor of its own.

    Attributes:
      k, v: [b, capacity, heads, head_dim].
      rows: descriptor of the capacity's positions; segment -1 where nothing is written.
      cursor: int32 [b], where the next append writes.
    """

    k: jax.Array
    v: jax.Array
    rows: Rows
    cursor: jax.Array


@jax.named_scope("attend")
def attend(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    queries: Rows,
    keys: Rows,
    *,
    backend: str = "auto",
) -> Float[Array, "b n h d"]:
    """Softmax attention under the described mask; logits and sums in fp32.

    A query that sees nothing (padding) gets a finite, meaningless answer: padding is never a key,
    so it cannot reach a real position.

    Args:
      backend: one of BACKENDS, for more than a few queries and keys; below FEW_POSITIONS of either
        all logits are computed at once, whatever it is. "auto" does so up to FEW_PAIRS too. Beyond,
        where this process's default device is a GPU, it takes cuDNN's kernel, or all logits at once
        where cuDNN has none; else the program takes kernels where it is lowered for a TPU and tiles
        where it is lowered for anything else.

    Raises ValueError for an unknown back end, or one that cannot do this; RuntimeError for cudnn
    without a GPU that has it.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention back end {backend!r}: {nearest(backend, BACKENDS)}")
    q = q * q.shape[-1] ** -0.5
    n, m = q.shape[1], k.shape[1]
    if min(n, m) < FEW_POSITIONS or (backend == "auto" and n * m <= FEW_PAIRS):
        backend = "xla"
    elif backend == "auto" and jax.default_backend() == "gpu":
        backend = "cudnn" if cudnn.supports(q.dtype, q.shape[-1]) else "xla"
    if backend == "xla":
        return xla.attend(q, k, v, queries, keys)
    if backend == "cudnn":
        return cudnn.attend(q, k, v, queries, keys)
    return fused.attend(backend, q, k, v, queries, keys)


def empty_cache(batch: int, capacity: int, heads: int, head_dim: int, dtype=jnp.float32) -> Cache:
    """A cache with room for `capacity` positions; appends beyond it are the caller's error."""
    kv = jnp.zeros((batch, capacity, heads, head_dim), dtype)
    nothing = jnp.full((batch, capacity), -1, jnp.int32)
    return Cache(kv, kv, Rows(nothing, nothing), jnp.zeros(batch, jnp.int32))


def append(
    cache: Cache,
    k: Float[Array, "b n h d"],
    v: Float[Array, "b n h d"],
    rows: Rows,
    count: Int[Array, " b"],
) -> Cache:
    """Writes n positions at each sample's cursor and advances it by `count`.

    Positions past `count` must carry segment -1; the next append overwrites them. The capacity must
    therefore leave n positions after the last cursor.
    """

    def write(buffer, new, cursor):
        return jax.lax.dynamic_update_slice_in_dim(buffer, new.astype(buffer.dtype), cursor, 0)

    put = jax.vmap(write)
    return Cache(
        put(cache.k, k, cache.cursor),
        put(cache.v, v, cache.cursor),
        Rows(
            put(cache.rows.segment, rows.segment, cache.cursor),
            put(cache.rows.order, rows.order, cache.cursor),
        ),
        cache.cursor + count,
    )


class MultiHeadAttention(nn.Module):
    """Projections around `attend`. Query, key and value inputs may differ (DETR-style positions).

    With a cache, the new keys and values are appended to it and the queries look at all of it.
    With `qk_norm` queries and keys have one length, which is learnt: logits cannot run away.
    """

    width: int
    heads: int
    dtype: jnp.dtype = jnp.float32
    qk_norm: bool = False
    backend: str = "auto"

    @nn.compact
    def __call__(
        self,
        q_in: Float[Array, "b n d"],
        k_in: Float[Array, "b m e"],
        v_in: Float[Array, "b m e"],
        queries: Rows,
        keys: Rows,
        cache: Cache | None = None,
        count: Int[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b n d"], Cache | None]:
        def project(name, x):
            dense = nn.Dense(self.width, dtype=self.dtype, kernel_init=TRUNCATED, name=name)
            return dense(x).reshape(*x.shape[:-1], self.heads, self.width // self.heads)

        q, k, v = project("q", q_in), project("k", k_in), project("v", v_in)
        if self.qk_norm:
            q, k = (
                nn.RMSNorm(dtype=jnp.float32, name=f"{name}_norm")(x).astype(self.dtype)
                for name, x in (("q", q), ("k", k))
            )
        if cache is not None:
            cache = append(cache, k, v, keys, count)
            k, v, keys = cache.k, cache.v, cache.rows
        out = attend(q, k, v, queries, keys, backend=self.backend)
        out = out.reshape(*q_in.shape[:-1], self.width)
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=TRUNCATED, name="out")(out), cache


# Weights start truncated-normal, std 0.02 at 768 inputs (GigaTok's base) and more where inputs are
# fewer, so that small models start with signals as strong; biases start at zero.
TRUNCATED = nn.initializers.variance_scaling(0.02**2 * 768, "fan_in", "truncated_normal")
