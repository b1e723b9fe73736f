"""Counts of operations: against plain arithmetic, through loops, branches and gradients."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from evatok_jax.flops import count_flops, flops_by_scope, scope_path
from evatok_jax.models.attention import attend
from evatok_jax.models.rows import Rows

N = 8
ONE = 2 * N**3  # of a product of two N x N matrices


def looped(x, w):
    with jax.named_scope("loop"):
        x, _ = jax.lax.scan(lambda x, _: (x @ w, None), x, length=5)
    return x @ w


def branched(x, w):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, lambda x: x @ w, x)


def convolved(x, w):
    image, kernel = jnp.zeros((1, 9, 9, 3)), jnp.zeros((3, 3, 3, 4))
    return jax.lax.conv_general_dilated(
        image + x[0, 0], kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def spread(x, w):
    mesh = jax.sharding.AbstractMesh((2, 2), ("data", "fsdp"))
    rows = P(("data", "fsdp"))
    one = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(rows, P()), out_specs=rows)
    return one(x, w)


def rematted(x, w):
    with jax.named_scope("loop"):
        return jax.checkpoint(lambda x: jnp.sin(x @ w) @ w)(x)


@pytest.mark.parametrize(
    ("function", "want"),
    [
        (looped, {"loop": 5 * ONE, "other": ONE}),
        (branched, {"other": 2 * ONE}),
        (spread, {"other": ONE}),
        (convolved, {"other": 2 * 7 * 7 * 4 * 27}),
        # Each product has two in its gradient; both belong to the scope of the product.
        (jax.grad(lambda w, x: looped(x, w).sum()), {"loop": 15 * ONE, "other": 3 * ONE}),
    ],
)
def test_counts(function, want):
    square = jax.ShapeDtypeStruct((N, N), jnp.float32)
    counts = flops_by_scope(jax.jit(function), square, square, scopes=["loop"])
    assert dict(counts) == want


def test_what_is_recomputed_can_be_left_out():
    """A product of the forward pass stands twice in a gradient with checkpoints."""
    square = jax.ShapeDtypeStruct((N, N), jnp.float32)
    jaxpr = jax.make_jaxpr(jax.grad(lambda x, w: rematted(x, w).sum()))(square, square).jaxpr
    assert count_flops(jaxpr, ["loop"], recomputed=False) == {"loop": 4 * ONE}
    assert count_flops(jaxpr, ["loop"]) == {"loop": 5 * ONE}


def test_of_what_depends_on_the_platform_a_tpus_side_counts():
    square = jax.ShapeDtypeStruct((N, N), jnp.float32)

    def chosen(x, w):
        return jax.lax.platform_dependent(x, w, tpu=lambda x, w: x @ w, default=branched)

    assert flops_by_scope(jax.jit(chosen), square, square, scopes=[]) == {"other": ONE}


def test_parts_are_called_by_their_path():
    stack = "jit(step)/transpose(jvp(outer))/Model.inner/while/body/inner/outer/q/dot_general"
    assert scope_path(stack, ["inner", "outer"]) == "outer/inner"
    assert scope_path(stack, ["inne", "out"]) == scope_path(stack, []) == "other"


def attention(n, m, backend="auto", d=64):
    """Attention's sum, the shapes it takes, and the operations of one product of all pairs."""
    q, k = (jax.ShapeDtypeStruct((2, size, 3, d), jnp.float32) for size in (n, m))
    queries, keys = (Rows(*[jnp.zeros((2, size), jnp.int32)] * 2) for size in (n, m))

    def loss(q, k, v):
        with jax.named_scope("attention"):
            return attend(q, k, v, queries, keys, backend=backend).sum()

    return loss, (q, k, k), 2 * 2 * 3 * n * m * d


def test_models_have_the_same_operations_with_kernels_and_without():
    """Kernels compute all logits again in the backward pass: that is no operation of the model.

    What they add, a product of the answer with its gradient, is as small as one query. With few
    queries tiles for CPUs, padded, would count more.
    """
    counted = {}
    for backend in ("xla", "pallas", "auto"):
        loss, shapes, product = attention(128, 1024, backend)
        jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(*shapes).jaxpr
        counts = (count_flops(jaxpr, ["attention"], repeated) for repeated in (False, True))
        counted[backend] = [count.total() / product for count in counts]
    assert counted["xla"] == [6, 6]
    assert counted["auto"] == counted["pallas"] == pytest.approx([6, 7], abs=2 / 1024)


def test_attention_counts_all_pairs_however_it_is_computed():
    """Two products forward and five more backward, in the scope that called; tiles or not."""
    loss, shapes, product = attention(384, 512)
    forward = flops_by_scope(loss, *shapes, scopes=["attention"])
    assert dict(forward) == {"attention": 2 * product}
    both = flops_by_scope(jax.grad(loss, (0, 1, 2)), *shapes, scopes=["attention"])
    assert 7 * product <= both["attention"] < 7.1 * product
    assert both["other"] < 0.1 * product
