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

# Positions. Heads go one by one: the logits of a tile of one head, 64 kB, stay next to the core.
TILE = 128


def _cut(x: Float[Array, "b n h d"]) -> Float[Array, "s i t d"]:
    """Tiles of positions of each head of each sample, padded with zeros."""
    b, _, h, d = x.shape
    x = pad_positions(x, TILE).reshape(b, -1, TILE, h, d)
    return jnp.moveaxis(x, 3, 1).reshape(b * h, -1, TILE, d)


def _join(x: Float[Array, "s i t d"], like: Float[Array, "b n h d"]):
    b, n, h, d = like.shape
    return jnp.moveaxis(x.reshape(b, h, -1, d), 1, 2)[:, :n].astype(like.dtype)


def _cut_sums(x: Float[Array, "b h n"]) -> Float[Array, "s i t"]:
    x = jnp.pad(x, [(0, 0), (0, 0), (0, -x.shape[2] % TILE)])
    return x.reshape(x.shape[0] * x.shape[1], -1, TILE)


def _cut_rows(rows: Rows, heads: int) -> Rows:
    """Descriptors of the tiles of each head."""
    rows = pad_rows(rows, TILE)
    return jax.tree.map(lambda x: jnp.repeat(x.reshape(len(x), -1, TILE), heads, 0), rows)


def _spans(needed, heads: int):
    return [jnp.repeat(x, heads, 0) for x in span(needed)]


def _needed(queries: Rows, keys: Rows):
    return needed_tiles(pad_rows(queries, TILE), pad_rows(keys, TILE), TILE, TILE)


def _flat(tree):
    """Heads and tiles as one axis."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _numbers(x):
    """Of each tile, which sample and head it is of."""
    return jnp.broadcast_to(jnp.arange(len(x))[:, None], x.shape[:2])


def _product(equation: str, x, y):
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _logits(q, k, queries: Rows, keys: Rows) -> Float[Array, "n m"]:
    """Masked logits of a pair of tiles."""
    return jnp.where(visible(queries, keys), _product("nd,md->nm", q, k), MASKED)


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
    like, (b, n, h, _) = q, q.shape
    spans = _spans(_needed(queries, keys), h)
    q, k, v = _cut(q), _cut(k), _cut(v)
    queries, keys = _cut_rows(queries, h), _cut_rows(keys, h)

    def one(tile):
        q, queries, head, first, end = tile

        def visit(j, sums):
            out, total, top = sums
            logits = _logits(q, k[head, j], queries, _at(keys, head, j))
            highest = jnp.maximum(top, logits.max(-1))
            weights, scale = jnp.exp(logits - highest[:, None]), jnp.exp(top - highest)
            more = _product("nm,md->nd", weights.astype(v.dtype), v[head, j])
            return out * scale[:, None] + more, total * scale + weights.sum(-1), highest

        # Starting halfway between the masked and any real logit gives masked keys no weight.
        start = jnp.zeros(q.shape, jnp.float32), jnp.zeros(TILE), jnp.full(TILE, MASKED / 2)
        out, total, top = jax.lax.fori_loop(first, end, visit, start)
        total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
        return (out / total[:, None]).astype(q.dtype), top + jnp.log(total)

    out, log_total = jax.lax.map(one, _flat((q, queries, _numbers(q), *spans)))
    return _join(out.reshape(q.shape), like), log_total.reshape(b, h, -1)[..., :n]


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
    likes, heads = (q, k, v), q.shape[2]
    spans = _spans(_needed(queries, keys).swapaxes(1, 2), heads)
    q, k, v, grad = map(_cut, (q, k, v, grad))
    log_total, mean = _cut_sums(log_total), _cut_sums(mean)
    queries, keys = _cut_rows(queries, heads), _cut_rows(keys, heads)

    def one(dq, tile):
        k, v, keys, head, first, end = tile

        def visit(i, sums):
            dq, dk, dv = sums
            own, own_grad = q[head, i], grad[head, i]
            logits = _logits(own, k, _at(queries, head, i), keys)
            weights = jnp.exp(logits - log_total[head, i][:, None])
            dlogits = _product("nd,md->nm", own_grad, v) - mean[head, i][:, None]
            dlogits = (weights * dlogits).astype(k.dtype)
            dv = dv + _product("nm,nd->md", weights.astype(v.dtype), own_grad)
            dk = dk + _product("nm,nd->md", dlogits, own)
            return dq.at[head, i].add(_product("nm,md->nd", dlogits, k)), dk, dv

        zeros = jnp.zeros(k.shape, jnp.float32)
        dq, dk, dv = jax.lax.fori_loop(first, end, visit, (dq, zeros, zeros))
        return dq, (dk.astype(k.dtype), dv.astype(v.dtype))

    tiles = _flat((k, v, keys, _numbers(k), *spans))
    dq, (dk, dv) = jax.lax.scan(one, jnp.zeros(q.shape, jnp.float32), tiles)
    gradients = dq, dk.reshape(k.shape), dv.reshape(v.shape)
    return tuple(_join(x, like) for x, like in zip(gradients, likes, strict=True))
