"""Back ends of attention: all agree with the dense one, and the others skip what nobody needs."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evatok_jax.models.attention import attend
from evatok_jax.models.rows import Rows, needed_tiles, span, visible

B, N, M = 3, 300, 600
TILED = ("blocked", "pallas")


def rows(segments, orders, size):
    """Rows from lists of each sample's segments and orders, padded at the end."""

    def padded(lists):
        out = np.full((len(lists), size), -1, np.int32)
        for row, values in zip(out, lists, strict=True):
            row[: len(values)] = values
        return out

    return Rows(jnp.asarray(padded(segments)), jnp.asarray(padded(orders)))


def counted(lengths):
    """Segments and orders of clips of these lengths, ordered by position."""
    return np.repeat(np.arange(len(lengths)), lengths), np.concatenate(
        [np.arange(n) for n in lengths]
    )


def packed(size, rng):
    """Several clips a row, causal by position; the last row is all padding."""
    rowwise = [counted(rng.multinomial(size - 40, [0.3, 0.2, 0.5])) for _ in range(B - 1)]
    return rows([s for s, _ in rowwise] + [[]], [o for _, o in rowwise] + [[]], size)


def blocks(size, rng):
    """One clip a row, causal by block; the last row is all padding."""
    lengths = [rng.multinomial(size - 50 * b, [0.4, 0.1, 0.2, 0.3]) for b in range(B - 1)]
    orders = [np.repeat(np.arange(4), n) for n in lengths] + [[]]
    return rows([np.zeros_like(o) for o in orders[:-1]] + [[]], orders, size)


def shuffled(made, rng):
    places = np.stack([rng.permutation(made.segment.shape[1]) for _ in range(B)])
    return jax.tree.map(lambda x: jnp.take_along_axis(x, places, 1), made)


def layouts():
    """Descriptors of queries and of keys."""
    rng = np.random.default_rng(0)
    tokens, patches = packed(N, rng), packed(M, rng)
    return {
        "packed": (tokens, patches),
        "blocks": (blocks(N, rng), blocks(M, rng)),
        "unsorted": (shuffled(tokens, rng), shuffled(patches, rng)),
        "full": (rows([[0] * N] * B, [[0] * N] * B, N), rows([[0] * M] * B, [[0] * M] * B, M)),
    }


def arrays(heads, head_dim, n=N, m=M, dtype=jnp.float32):
    rng = np.random.default_rng(1)
    shapes = [(B, n, heads, head_dim)] + [(B, m, heads, head_dim)] * 2
    qkv = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
    return qkv, jnp.asarray(rng.standard_normal(shapes[0]), dtype)


@jax.jit
def masked(out, queries, keys):
    """Zeros where a query sees nothing: what stands there means nothing."""
    return jnp.where(visible(queries, keys).any(-1)[..., None, None], out, 0)


def both_passes(backend):
    """Answer and gradients; queries that see nothing have no say."""

    def run(q, k, v, queries, keys, weight):
        weight = masked(weight, queries, keys)

        def loss(q, k, v):
            out = attend(q, k, v, queries, keys, backend=backend)
            return (out * weight).sum(), out

        gradients, out = jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
        return out, gradients

    return jax.jit(run)


PASSES = {backend: both_passes(backend) for backend in ("xla", *TILED)}


@pytest.mark.parametrize("backend", TILED)
@pytest.mark.parametrize(("heads", "head_dim"), [(3, 64), (1, 128), (2, 24)])
def test_back_ends_agree_with_the_dense_one(backend, heads, head_dim):
    """Three heads of 64 leave half a group of the kernels' empty, 24 channels are padded."""
    qkv, weight = arrays(heads, head_dim)
    for name, (queries, keys) in layouts().items():
        if head_dim != 64 and name != "packed":
            continue
        want, wanted = PASSES["xla"](*qkv, queries, keys, weight)
        got, gradients = PASSES[backend](*qkv, queries, keys, weight)
        assert np.isfinite(got).all()
        np.testing.assert_allclose(
            masked(got, queries, keys), masked(want, queries, keys), atol=1e-5, err_msg=name
        )
        for a, b in zip(gradients, wanted, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()), err_msg=name)


@pytest.mark.parametrize("backend", TILED)
def test_queries_that_see_nothing_give_zeros_and_no_gradient(backend):
    qkv, weight = arrays(3, 64)
    queries, keys = layouts()["packed"]
    nothing = Rows(jnp.full_like(queries.segment, 7), queries.order)
    out = PASSES[backend](*qkv, nothing, keys, weight)[0]
    assert not out.any()
    loss = lambda q, k, v: attend(q, k, v, nothing, keys, backend=backend).sum()  # noqa: E731
    for gradient in jax.jit(jax.grad(loss, (0, 1, 2)))(*qkv):
        assert not gradient.any()


@pytest.mark.parametrize("backend", TILED)
def test_tiles_that_nobody_needs_are_not_read(backend):
    """NaNs there reach neither the answer nor a gradient."""
    (q, k, v), weight = arrays(3, 64)
    rng = np.random.default_rng(0)
    queries = blocks(N, rng)
    queries = Rows(queries.segment, jnp.minimum(queries.order, 2))
    order = jnp.asarray(np.repeat([0, 1, 2, 3], [200, 200, 112, 88])[None].repeat(B, 0))
    keys = Rows(jnp.zeros_like(order), order)  # block 3 begins at 512, two tiles
    want, wanted = PASSES["xla"](q, k, v, queries, keys, weight)
    k, v = (x.at[:, 512:].set(np.nan) for x in (k, v))
    got, gradients = PASSES[backend](q, k, v, queries, keys, weight)
    np.testing.assert_allclose(masked(got, queries, keys), masked(want, queries, keys), atol=1e-5)
    for a, b in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_needed_tiles_are_never_too_few_and_exact_where_rows_are_sorted():
    rng = np.random.default_rng(2)
    for tile in (4, 20):
        for name, (queries, keys) in layouts().items():
            seen = np.asarray(visible(queries, keys))
            seen = seen.reshape(B, N // tile, tile, M // tile, tile).any((2, 4))
            needed = needed_tiles(queries, keys, tile, tile)
            first, end = map(np.asarray, span(needed))
            needed = np.asarray(needed)
            assert not (seen & ~needed).any(), name
            if name in ("blocks", "full"):
                np.testing.assert_array_equal(seen, needed)
            if name == "packed":
                # Only tiles in which clips meet may name more.
                assert (needed & ~seen).sum() <= 2 * B * (N + M) // tile
            for b, i in np.ndindex(first.shape):
                inside = np.flatnonzero(needed[b, i])
                want = (inside[0], inside[-1] + 1) if len(inside) else (first[b, i],) * 2
                assert (first[b, i], end[b, i]) == want
    # A packed row of the generator visits about an eighth of all tiles.
    lengths = rng.integers(500, 900, 6)
    segment, order = counted(lengths)
    row = rows([segment], [order], 4352)
    assert needed_tiles(row, row, 128, 128).mean() < 0.125


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_small_inputs_stay_dense_and_large_ones_do_not(dtype):
    """A decoding step (one query) must not enter a loop over tiles."""

    def program(n, m):
        queries, keys = (Rows(*[jnp.zeros((B, size), jnp.int32)] * 2) for size in (n, m))
        qkv, _ = arrays(1, 64, n, m, dtype)
        return str(jax.make_jaxpr(attend)(*qkv, queries, keys))

    assert "custom_vjp" not in program(1, 2048) and "custom_vjp" not in program(64, 64)
    assert "custom_vjp" in program(256, 512)


def test_unknown_and_unable_back_ends_are_named():
    qkv, _ = arrays(1, 64, 4, 4)
    row = Rows(*[jnp.zeros((B, 4), jnp.int32)] * 2)
    with pytest.raises(ValueError, match="did you mean 'blocked'"):
        attend(*qkv, row, row, backend="block")
    with pytest.raises(ValueError, match="bfloat16 and float16"):
        attend(*qkv, row, row, backend="cudnn")
    half = [x.astype(jnp.bfloat16) for x in qkv]
    if jax.default_backend() != "gpu":
        with pytest.raises(RuntimeError, match="needs an NVIDIA GPU"):
            attend(*half, row, row, backend="cudnn")


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU for cuDNN's attention")
def test_cudnn_agrees_with_the_dense_one():
    qkv, weight = arrays(2, 64, dtype=jnp.bfloat16)
    for queries, keys in layouts().values():
        want, wanted = PASSES["xla"](*qkv, queries, keys, weight)
        got, gradients = both_passes("cudnn")(*qkv, queries, keys, weight)
        for a, b in zip((got, *gradients), (want, *wanted), strict=True):
            a, b = (masked(x, queries, keys) if x is got or x is want else x for x in (a, b))
            np.testing.assert_allclose(
                a.astype(np.float32), b.astype(np.float32), atol=0.03 * np.abs(b).max()
            )


@pytest.mark.all
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no TPU compiler: pip install jax[tpu]"
)
def test_the_tpu_program_has_no_array_of_queries_by_keys():
    """In a process of its own: the TPU's compiler lives as long as the process."""
    here = Path(__file__).parent
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(here.parents[1])}
    run = subprocess.run(
        [sys.executable, here / "on_tpu.py"], env=os.environ | quiet, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
