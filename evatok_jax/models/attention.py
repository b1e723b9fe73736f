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
from jaxtyping import Array, Bool, Float, Int


@flax.struct.dataclass
class Rows:
    """What each position of a batch of rows is, for the purpose of attention.

    Attributes:
      segment: int32 [b, n], which clip of the row; -1 for padding and unwritten cache.
      order: int32 [b, n], a query sees keys of its segment whose order is not later than its own.
    """

    segment: jax.Array
    order: jax.Array


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


def visible(queries: Rows, keys: Rows) -> Bool[Array, "b n m"]:
    """The mask that two descriptors describe: [b, n queries, m keys]."""
    same = queries.segment[:, :, None] == keys.segment[:, None, :]
    written = keys.segment[:, None, :] >= 0
    return same & written & (keys.order[:, None, :] <= queries.order[:, :, None])


@jax.named_scope("attend")
def attend(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    queries: Rows,
    keys: Rows,
    *,
    backend: str = "xla",
) -> Float[Array, "b n h d"]:
    """Softmax attention under the described mask; logits and sums in fp32.

    A query that sees nothing (padding) gets a finite, meaningless answer: padding is never a key,
    so it cannot reach a real position.

    Raises ValueError for an unknown back end.
    """
    if backend != "xla":
        raise ValueError(f"unknown attention back end {backend!r}: this version has 'xla'")
    q = q * q.shape[-1] ** -0.5
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
    logits += jnp.where(visible(queries, keys), 0.0, -1e30)[:, None]
    # Dividing after the second product, not before it, saves a pass over the largest array.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    out = jnp.einsum(
        "bhnm,bmhd->bnhd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    total = weights.sum(axis=-1).swapaxes(1, 2)[..., None]
    return (out / total).astype(v.dtype)


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
        out = attend(q, k, v, queries, keys).reshape(*q_in.shape[:-1], self.width)
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=TRUNCATED, name="out")(out), cache


# Weights start truncated-normal, std 0.02 at 768 inputs (GigaTok's base) and more where inputs are
# fewer, so that small models start with signals as strong; biases start at zero.
TRUNCATED = nn.initializers.variance_scaling(0.02**2 * 768, "fan_in", "truncated_normal")
