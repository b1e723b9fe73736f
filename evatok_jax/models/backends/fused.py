"""Attention that never holds all logits: one rule of differentiation over tiles of them.

Forward keeps, beside the answer, the logarithm of each query's sum of weights; backward computes
the weights again from it. What computes them is chosen when a program is lowered, so that a program
compiled on a CPU host for a TPU gets the TPU's kernels.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from evatok_jax.models.backends import blocked, pallas
from evatok_jax.models.remat import attention_result
from evatok_jax.models.rows import Rows
from evatok_jax.sharding import per_device


def attend(
    kind: str,
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    queries: Rows,
    keys: Rows,
) -> Float[Array, "b n h d"]:
    """Softmax attention; `kind` is "blocked", "pallas", or "auto": pallas on a TPU, else blocked.

    Queries that see nothing get zeros, and no gradient comes from them. Under a mesh each device
    works on its own rows (`sharding.per_device`). Inside `jax.shard_map`, where heads may be cut
    too, it wants check_vma=False: neither says along which axes of the mesh its results vary. Where
    "pallas" meets no TPU, its kernels are interpreted, which is for tests.
    """
    return _attend(kind, queries.share, q, k, v, *jax.tree.leaves((queries, keys)))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(kind, share, q, k, v, *ids):
    return _run(kind, share, pallas.forward, blocked.forward, q, k, v, *ids)[0]


def _forward(kind, share, q, k, v, *ids):
    results = _run(kind, share, pallas.forward, blocked.forward, q, k, v, *ids)
    out, log_total = map(attention_result, results)
    return out, (q, k, v, ids, out, log_total)


def _backward(kind, share, kept, grad):
    q, k, v, ids, out, log_total = kept
    # What the gradient of each weight is compared with: their mean, as the query weighs them.
    # Elementwise: products of matrices round their fp32 factors on a TPU.
    mean = (grad.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1).swapaxes(1, 2)
    args = (q, k, v, *ids, log_total, mean, grad)
    gradients = _run(kind, share, pallas.backward, blocked.backward, *args)
    return (*gradients, *[None] * len(ids))


_attend.defvjp(_forward, _backward)


def _run(kind: str, share: float, kernel: Callable, plain: Callable, *args):
    """One pass, forward or backward, by a kernel or in plain XLA."""

    def on_rows(function):
        def call(q, k, v, *rest):
            return function(q, k, v, Rows(*rest[:2], share), Rows(*rest[2:4]), *rest[4:])

        return call

    if kind == "blocked":
        return per_device(on_rows(plain))(*args)
    other = partial(kernel, interpret=True) if kind == "pallas" else plain
    chosen = partial(jax.lax.platform_dependent, tpu=on_rows(kernel), default=on_rows(other))
    return per_device(chosen)(*args)
