"""Attention by tiles in plain XLA: loops over the tiles of keys that a tile of queries needs.

For CPUs, whose caches a whole array of logits leaves: at the sizes of S-B a third of the dense
form's time. Sums are kept as in FlashAttention: whenever a tile raises a query's largest logit,
what was summed before is scaled down.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from evatok_jax.models.rows import (
    MASKED,
    Rows,
    needed_tiles,
    pad_positions,
    pad_rows,
    span,
    visible,
)

# Positions. All heads of a tile should stay in a core's cache; backward holds four arrays of them.
FORWARD_TILE, BACKWARD_TILE = 256, 128


def _cut(x: Float[Array, "b n h d"], tile: int) -> Float[Array, "b i h {tile} d"]:
    """Tiles of positions, padded with zeros."""
    b, _, h, d = x.shape
    return pad_positions(x, tile).reshape(b, -1, tile, h, d).swapaxes(2, 3)


def _join(x: Float[Array, "b i h t d"], n: int) -> Float[Array, "b n h d"]:
    b, _, h, _, d = x.shape
    return x.swapaxes(2, 3).reshape(b, -1, h, d)[:, :n]


def _cut_sums(x: Float[Array, "b h n"], tile: int) -> Float[Array, "b i h {tile}"]:
    return _cut(x.swapaxes(1, 2)[..., None], tile)[..., 0]


def _flat(tree):
    """Samples and tiles as one axis."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _logits(q, k, queries: Rows, keys: Rows) -> Float[Array, "h n m"]:
    """Masked logits of a pair of tiles."""
    logits = jnp.einsum("hnd,hmd->hnm", q, k, preferred_element_type=jnp.float32)
    return jnp.where(visible(queries, keys), logits, MASKED)


def _prepare(q, k, v, queries, keys, tile: int):
    """Tiles of all inputs, descriptors included, and which pairs of them are needed."""
    queries, keys = pad_rows(queries, tile), pad_rows(keys, tile)
    needed = needed_tiles(queries, keys, tile, tile)
    queries, keys = (
        jax.tree.map(lambda x: x.reshape(len(x), -1, tile), rows) for rows in (queries, keys)
    )
    return _cut(q, tile), _cut(k, tile), _cut(v, tile), queries, keys, needed


def _at(tree, *index):
    return jax.tree.map(lambda x: x[index], tree)


def forward(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    queries: Rows,
    keys: Rows,
) -> tuple[Float[Array, "b n h d"], Float[Array, "b h n"]]:
    """The answer, and the logarithm of each query's sum of weights."""
    n = q.shape[1]
    q, k, v, queries, keys, needed = _prepare(q, k, v, queries, keys, FORWARD_TILE)
    samples = jnp.broadcast_to(jnp.arange(len(q))[:, None], q.shape[:2])

    def one(tile):
        q, queries, sample, first, end = tile

        def visit(j, sums):
            out, total, top = sums
            logits = _logits(q, k[sample, j], queries, _at(keys, sample, j))
            highest = jnp.maximum(top, logits.max(-1))
            weights, scale = jnp.exp(logits - highest[..., None]), jnp.exp(top - highest)
            values = v[sample, j]
            more = jnp.einsum(
                "hnm,hmd->hnd",
                weights.astype(v.dtype),
                values,
                preferred_element_type=jnp.float32,
            )
            return out * scale[..., None] + more, total * scale + weights.sum(-1), highest

        # Starting halfway between the masked and any real logit gives masked keys no weight.
        top = jnp.full(q.shape[:2], MASKED / 2)
        start = (jnp.zeros(q.shape, jnp.float32), jnp.zeros(q.shape[:2]), top)
        out, total, top = jax.lax.fori_loop(first, end, visit, start)
        total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
        return (out / total[..., None]).astype(q.dtype), top + jnp.log(total)

    out, log_total = jax.lax.map(one, _flat((q, queries, samples, *span(needed))))
    log_total = log_total.reshape(*q.shape[:4]).swapaxes(1, 2)
    return _join(out.reshape(q.shape), n), log_total.reshape(*log_total.shape[:2], -1)[..., :n]


def backward(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    queries: Rows,
    keys: Rows,
    log_total: Float[Array, "b h n"],
    mean: Float[Array, "b h n"],
    grad: Float[Array, "b n h d"],
) -> tuple[Float[Array, "b n h d"], Float[Array, "b m h d"], Float[Array, "b m h d"]]:
    """Gradients of q, k and v; `mean` is each query's sum of grad * answer."""
    n, m = q.shape[1], k.shape[1]
    q, k, v, queries, keys, needed = _prepare(q, k, v, queries, keys, BACKWARD_TILE)
    grad = _cut(grad, BACKWARD_TILE)
    log_total, mean = (_cut_sums(x, BACKWARD_TILE) for x in (log_total, mean))
    samples = jnp.broadcast_to(jnp.arange(len(k))[:, None], k.shape[:2])

    def product(equation, x, y):
        return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)

    def one(dq, tile):
        k, v, keys, sample, first, end = tile

        def visit(i, sums):
            dq, dk, dv = sums
            own, own_grad = q[sample, i], grad[sample, i]
            logits = _logits(own, k, _at(queries, sample, i), keys)
            weights = jnp.exp(logits - log_total[sample, i][..., None])
            dlogits = product("hnd,hmd->hnm", own_grad, v) - mean[sample, i][..., None]
            dlogits = (weights * dlogits).astype(k.dtype)
            dv = dv + product("hnm,hnd->hmd", weights.astype(v.dtype), own_grad)
            dk = dk + product("hnm,hnd->hmd", dlogits, own)
            return dq.at[sample, i].add(product("hnm,hmd->hnd", dlogits, k)), dk, dv

        zeros = jnp.zeros(k.shape, jnp.float32)
        dq, dk, dv = jax.lax.fori_loop(first, end, visit, (dq, zeros, zeros))
        return dq, (dk.astype(k.dtype), dv.astype(v.dtype))

    tiles = _flat((k, v, keys, samples, *span(needed.swapaxes(1, 2))))
    dq, (dk, dv) = jax.lax.scan(one, jnp.zeros(q.shape, jnp.float32), tiles)
    return (
        _join(dq, n).astype(q.dtype),
        _join(dk.reshape(k.shape), m),
        _join(dv.reshape(v.shape), m),
    )
