"""Attention kernels for TPUs, forward and backward, whose mask is computed from descriptions.

Arrays stay as projections leave them, [b, n, heads * head_dim]: a kernel takes 128 channels at a
time, which are two heads of 64. To work on one of them it blanks the other's channels in one factor
of a product; as the matrix unit is 128 wide, that costs nothing. Nothing is transposed in memory,
and nothing is padded but positions to multiples of 128, and heads and channels that do not fill
groups. Tiles of logits are [keys, queries], so that what belongs to a query (description, largest
logit, sum) is a row, which is how such vectors lie in memory.

A program works on a tile of queries (backward: of keys) with all keys (queries) of its sample in
on-chip memory, and loops over the tiles that it needs; `needed_tiles` knows them beforehand.
"""

from dataclasses import dataclass
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from evatok_jax.models.rows import MASKED, Rows, needed_tiles, pad_positions, pad_rows, span

LANES = 128
TILES = (384, 256, LANES)  # positions, the best first; 4,224 are 11 tiles of 384
ON_CHIP = 16 << 20  # bytes that a kernel may take without asking


@dataclass(frozen=True)
class Plan:
    """How heads and positions of one call are cut.

    Attributes:
      group: heads that a kernel works on at once; groups: how many such.
      head_dim: channels of a head, raised to a power of two or a multiple of 128.
      query_tile, key_tile: positions.
    """

    group: int
    groups: int
    head_dim: int
    query_tile: int
    key_tile: int

    @classmethod
    def of(cls, q, k) -> "Plan":
        heads, head_dim = q.shape[2:]
        wide = max(16, 1 << (head_dim - 1).bit_length())
        wide = wide if wide <= LANES else -(-head_dim // LANES) * LANES
        group = min(heads, max(1, LANES // wide))
        lengths = (-(-x.shape[1] // LANES) * LANES for x in (q, k))
        tiles = (next(tile for tile in TILES if n % tile == 0) for n in lengths)
        return cls(group, -(-heads // group), wide, *tiles)

    @property
    def channels(self) -> int:
        """Of a group."""
        return self.group * self.head_dim

    def of_head(self, head: int):
        """Where a head's channels are in its group."""
        return slice(head * self.head_dim, (head + 1) * self.head_dim)


# ---- what the kernels read and write -----------------------------------------------------------


def _pack(x: Float[Array, "b n h d"], plan: Plan, tile: int) -> Float[Array, "b m c"]:
    """Heads side by side, padded to whole tiles, groups and channels where they are not."""
    h, d = plan.groups * plan.group - x.shape[2], plan.head_dim - x.shape[3]
    x = jnp.pad(pad_positions(x, tile), [(0, 0), (0, 0), (0, h), (0, d)])
    return x.reshape(*x.shape[:2], -1)


def _unpack(x: Float[Array, "b m c"], like: Float[Array, "b n h d"], plan: Plan):
    n, h, d = like.shape[1:]
    return x.reshape(*x.shape[:2], -1, plan.head_dim)[:, :n, :h, :d]


def _pack_sums(x: Float[Array, "b h n"], plan: Plan) -> Float[Array, "b g k m"]:
    heads, positions = plan.groups * plan.group - x.shape[1], -x.shape[2] % plan.query_tile
    x = jnp.pad(x, [(0, 0), (0, heads), (0, positions)])
    return x.reshape(x.shape[0], plan.groups, plan.group, -1)


def _describe(queries: Rows, keys: Rows, plan: Plan):
    """Descriptors, [b, 2, n] of queries and [b, 2, m] of keys, and which tiles are needed."""
    queries, keys = pad_rows(queries, plan.query_tile), pad_rows(keys, plan.key_tile)
    needed = needed_tiles(queries, keys, plan.query_tile, plan.key_tile)
    # Kernels turn a tile's own of keys: as columns in memory, two would be padded to 128. Padding
    # would equal padding: another number for that of keys spares a comparison.
    segment = jnp.where(keys.segment >= 0, keys.segment, -2)
    return (
        jnp.stack([queries.segment, queries.order], axis=1),
        jnp.stack([segment, keys.order], axis=1),
        needed,
    )


def _spec(kind: str, size: int, plan: Plan, stepped: bool) -> pl.BlockSpec:
    """`size` positions of an array: those of the program's own step, or all."""

    def at(step):
        return step if stepped else 0

    blocks = {
        "heads": ((1, size, plan.channels), lambda b, g, i, *_: (b, at(i), g)),
        "rows": ((1, 2, size), lambda b, g, i, *_: (b, 0, at(i))),
        "sums": ((1, 1, plan.group, size), lambda b, g, i, *_: (b, g, 0, at(i))),
    }
    return pl.BlockSpec(*blocks[kind])


def _launch(
    kernel,
    needed: Bool[Array, "b i j"],
    arrays,
    specs,
    results,
    result_specs,
    scratch,
    *,
    plan: Plan,
    name: str,
    cost: pl.CostEstimate,
    in_turn: bool,
    interpret: bool,
):
    """Runs a kernel for each sample, group and step, of which there are i; its spans come first."""

    def on_chip(block, dtype):
        rows, lanes = -(-block[-2] // 8) * 8, -(-block[-1] // LANES) * LANES
        return prod(block[:-2]) * rows * lanes * jnp.dtype(dtype).itemsize

    pairs = [(s.block_shape, x.dtype) for s, x in zip(specs, arrays, strict=True)]
    pairs += [(s.block_shape, x.dtype) for s, x in zip(result_specs, results, strict=True)]
    logits = 8 * 4 * plan.query_tile * plan.key_tile  # a handful of arrays of a tile's logits
    taken = sum(2 * on_chip(*pair) for pair in pairs) + logits
    taken += sum(on_chip(each.shape, each.dtype) for each in scratch)
    batch, steps, _ = needed.shape
    return pl.pallas_call(
        partial(kernel, plan=plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, plan.groups, steps),
            in_specs=specs,
            out_specs=result_specs,
            scratch_shapes=scratch,
        ),
        out_shape=results,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary" if in_turn else "parallel"),
            vmem_limit_bytes=max(ON_CHIP, taken * 5 // 4),
        ),
        cost_estimate=cost,
        interpret=interpret,
        name=name,
    )(*(x.reshape(-1) for x in span(needed)), *arrays)


def _cost(products: int, q, k, queries: Rows, arrays) -> pl.CostEstimate:
    """Of so many matrix products of the size of all logits of pairs that see each other."""
    b, n, h, d = q.shape
    logits = round(b * h * n * k.shape[1] * queries.share)
    moved = sum(x.size * x.dtype.itemsize for x in arrays)
    return pl.CostEstimate(
        flops=2 * products * logits * d, transcendentals=logits, bytes_accessed=moved
    )


# ---- inside the kernels ------------------------------------------------------------------------


def _only(x, head: int, plan: Plan):
    """`x` [positions, channels] with zeros outside one head's channels."""
    if plan.group == 1:
        return x
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    own = jax.lax.div(lane, jnp.int32(plan.head_dim)) == head
    return jnp.where(own, x, jnp.zeros_like(x))


def _dot(x, y, x_axis: int, y_axis: int):
    contracted = ((x_axis,), (y_axis,))
    return jax.lax.dot_general(x, y, (contracted, ((), ())), preferred_element_type=jnp.float32)


def _positions(tile, size: int):
    return pl.ds(pl.multiple_of(tile * size, size), size)


def _visible(query_ids, key_ids):
    """The mask of a pair of tiles, bool [keys, queries], of [2, queries] and [keys, 2]."""
    return (key_ids[:, :1] == query_ids[:1]) & (key_ids[:, 1:] <= query_ids[1:])


def _forward_kernel(first, end, query_ids, key_ids, q, k, v, out, log_total, sums, *, plan: Plan):
    """One tile of queries of a group of heads; `sums` is scratch, [channels, queries]."""
    spot = pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)
    own = [_only(q[0], head, plan) for head in range(plan.group)]
    sums[...] = jnp.zeros_like(sums)

    def visit(j, stats):
        at = _positions(j, plan.key_tile)
        keys, values = k[0, at], v[0, at].T
        visible = _visible(query_ids[0], key_ids[0, :, at].T)
        after = []
        for head, (top, total) in enumerate(stats):
            logits = jnp.where(visible, _dot(keys, own[head], 1, 1), MASKED)
            highest = jnp.maximum(top, logits.max(axis=0, keepdims=True))
            weights, scale = jnp.exp(logits - highest), jnp.exp(top - highest)
            after.append((highest, total * scale + weights.sum(axis=0, keepdims=True)))
            channels = plan.of_head(head)
            more = _dot(values[channels], weights.astype(values.dtype), 1, 0)
            sums[channels] = sums[channels] * scale + more
        return tuple(after)

    # Starting halfway between the masked and any real logit gives masked keys no weight.
    row = (1, plan.query_tile)
    start = ((jnp.full(row, MASKED / 2, jnp.float32), jnp.zeros(row, jnp.float32)),) * plan.group
    for head, (top, total) in enumerate(jax.lax.fori_loop(first[spot], end[spot], visit, start)):
        total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
        log_total[0, 0, head : head + 1] = top + jnp.log(total)
        sums[plan.of_head(head)] = sums[plan.of_head(head)] / total
    out[0] = sums[...].T.astype(out.dtype)


def _backward_kernel(
    first,
    end,
    query_ids,
    key_ids,
    q,
    k,
    v,
    log_total,
    mean,
    grad,
    dq,
    dk,
    dv,
    dq_sums,
    dk_sums,
    dv_sums,
    *,
    plan: Plan,
):
    """One tile of keys of a group of heads, one after the other; the sums are scratch.

    `dq_sums` [channels, all queries] gathers over the tiles, `dk_sums` and `dv_sums` [keys,
    channels] are a tile's own.
    """
    j = pl.program_id(2)
    spot = pl.program_id(0) * pl.num_programs(2) + j
    keys = [_only(k[0], head, plan) for head in range(plan.group)]
    values = [_only(v[0], head, plan) for head in range(plan.group)]
    turned, ids = k[0].T, key_ids[0].T

    @pl.when(j == 0)
    def _():
        dq_sums[...] = jnp.zeros_like(dq_sums)

    dk_sums[...] = jnp.zeros_like(dk_sums)
    dv_sums[...] = jnp.zeros_like(dv_sums)

    def visit(i, _):
        at = _positions(i, plan.query_tile)
        queries, gradients = q[0, at], grad[0, at]
        visible = _visible(query_ids[0, :, at], ids)
        for head in range(plan.group):
            row, channels = slice(head, head + 1), plan.of_head(head)
            logits = jnp.where(visible, _dot(keys[head], queries, 1, 1), MASKED)
            weights = jnp.exp(logits - log_total[0, 0, row, at])
            dlogits = weights * (_dot(values[head], gradients, 1, 1) - mean[0, 0, row, at])
            weights, dlogits = weights.astype(q.dtype), dlogits.astype(q.dtype)
            dv_sums[...] += _only(_dot(weights, gradients, 1, 0), head, plan)
            dk_sums[...] += _only(_dot(dlogits, queries, 1, 0), head, plan)
            dq_sums[channels, at] += _dot(turned[channels], dlogits, 1, 0)
        return 0

    jax.lax.fori_loop(first[spot], end[spot], visit, 0)
    dk[0], dv[0] = dk_sums[...].astype(dk.dtype), dv_sums[...].astype(dv.dtype)

    @pl.when(j == pl.num_programs(2) - 1)
    def _():
        dq[0] = dq_sums[...].T.astype(dq.dtype)


# ---- the two passes ----------------------------------------------------------------------------


def forward(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    queries: Rows,
    keys: Rows,
    interpret: bool = False,
) -> tuple[Float[Array, "b n h d"], Float[Array, "b h n"]]:
    """The answer, and the logarithm of each query's sum of weights."""
    plan = Plan.of(q, k)
    query_ids, key_ids, needed = _describe(queries, keys, plan)
    wide = _pack(q, plan, plan.query_tile)
    others = [_pack(x, plan, plan.key_tile) for x in (k, v)]
    m = key_ids.shape[2]
    sums = (len(q), plan.groups, plan.group, wide.shape[1])
    arrays = [query_ids, key_ids, wide, *others]
    tile, whole = _spec("heads", plan.query_tile, plan, True), _spec("heads", m, plan, False)
    out, log_total = _launch(
        _forward_kernel,
        needed,
        arrays,
        [
            _spec("rows", plan.query_tile, plan, True),
            _spec("rows", m, plan, False),
            *(tile, whole, whole),
        ],
        [jax.ShapeDtypeStruct(wide.shape, q.dtype), jax.ShapeDtypeStruct(sums, jnp.float32)],
        [tile, _spec("sums", plan.query_tile, plan, True)],
        [pltpu.VMEM((plan.channels, plan.query_tile), jnp.float32)],
        plan=plan,
        name="attention_forward",
        cost=_cost(2, q, k, queries, [*arrays, wide]),
        in_turn=False,
        interpret=interpret,
    )
    log_total = log_total.reshape(len(q), -1, wide.shape[1])
    return _unpack(out, q, plan), log_total[:, : q.shape[2], : q.shape[1]]


def backward(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    queries: Rows,
    keys: Rows,
    log_total: Float[Array, "b h n"],
    mean: Float[Array, "b h n"],
    grad: Float[Array, "b n h d"],
    interpret: bool = False,
) -> tuple[Float[Array, "b n h d"], Float[Array, "b m h d"], Float[Array, "b m h d"]]:
    """Gradients of q, k and v; `mean` is each query's sum of grad * answer."""
    plan = Plan.of(q, k)
    query_ids, key_ids, needed = _describe(queries, keys, plan)
    wide, wide_grad = (_pack(x, plan, plan.query_tile) for x in (q, grad))
    wide_k, wide_v = (_pack(x, plan, plan.key_tile) for x in (k, v))
    n = query_ids.shape[2]
    arrays = [query_ids, key_ids, wide, wide_k, wide_v]
    arrays += [_pack_sums(log_total, plan), _pack_sums(mean, plan), wide_grad]
    tile, whole = _spec("heads", plan.key_tile, plan, True), _spec("heads", n, plan, False)
    sums, keys_sums = _spec("sums", n, plan, False), (plan.key_tile, plan.channels)
    dq, dk, dv = _launch(
        _backward_kernel,
        needed.swapaxes(1, 2),
        arrays,
        [
            _spec("rows", n, plan, False),
            _spec("rows", plan.key_tile, plan, True),
            *(whole, tile, tile, sums, sums, whole),
        ],
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (wide, wide_k, wide_v)],
        [whole, tile, tile],
        [
            pltpu.VMEM((plan.channels, n), jnp.float32),
            pltpu.VMEM(keys_sums, jnp.float32),
            pltpu.VMEM(keys_sums, jnp.float32),
        ],
        plan=plan,
        name="attention_backward",
        cost=_cost(5, q, k, queries, [*arrays, wide, wide_k, wide_v]),
        in_turn=True,
        interpret=interpret,
    )
    return tuple(_unpack(x, like, plan) for x, like in ((dq, q), (dk, k), (dv, v)))
