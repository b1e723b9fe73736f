"""Back ends of attention: all agree with the dense one, and the others skip what nobody needs."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.extend.backend
import jax.numpy as jnp
import numpy as np
import pytest
from needs import needs_libtpu

from evatok_jax.models.attention import attend
from evatok_jax.models.backends import cudnn
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


def layouts(n=N, m=M):
    """Descriptors of queries and of keys."""
    rng = np.random.default_rng(0)
    tokens, patches = packed(n, rng), packed(m, rng)
    return {
        "packed": (tokens, patches),
        "blocks": (blocks(n, rng), blocks(m, rng)),
        "unsorted": (shuffled(tokens, rng), shuffled(patches, rng)),
        "full": (rows([[0] * n] * B, [[0] * n] * B, n), rows([[0] * m] * B, [[0] * m] * B, m)),
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

        # GPUs and TPUs would round fp32 factors.
        with jax.default_matmul_precision("highest" if q.dtype == jnp.float32 else None):
            gradients, out = jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
        return out, gradients

    return jax.jit(run)


PASSES = {backend: both_passes(backend) for backend in ("xla", *TILED)}


def assert_same(got, want, queries, keys, tolerance=1e-5):
    """Of answers and gradients; tolerated is a part of the largest value, or of one."""
    for i, (a, b) in enumerate(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)):
        assert np.isfinite(a).all()
        a, b = (masked(x, queries, keys) if i == 0 else x for x in (a, b))
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, atol=tolerance * max(1, np.abs(b).max()), err_msg=str(i))


@pytest.mark.parametrize("backend", TILED)
@pytest.mark.parametrize(
    ("heads", "head_dim", "n", "m", "name"),
    [
        *((3, 64, N, M, name) for name in ("packed", "blocks", "unsorted", "full")),
        (1, 128, N, M, "packed"),
        (2, 24, N, M, "packed"),
        (1, 64, 128, 640, "blocks"),
        (1, 64, 301, 257, "packed"),
    ],
)
def test_back_ends_agree_with_the_dense_one(backend, heads, head_dim, n, m, name):
    """Three heads of 64 leave half a group of the kernels' empty, 24 channels are padded."""
    qkv, weight = arrays(heads, head_dim, n, m)
    args = (*qkv, *layouts(n, m)[name], weight)
    assert_same(PASSES[backend](*args), PASSES["xla"](*args), *args[3:5])


@pytest.mark.parametrize("backend", TILED)
def test_half_precision_is_near_the_dense_one_in_fp32(backend):
    qkv, weight = arrays(2, 64, 140, 260, jnp.bfloat16)
    queries, keys = layouts(140, 260)["packed"]
    exact = [x.astype(jnp.float32) for x in (*qkv, weight)]
    want = PASSES["xla"](*exact[:3], queries, keys, exact[3])
    got = PASSES[backend](*qkv, queries, keys, weight)
    assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}
    assert_same(got, want, queries, keys, 0.03)


@pytest.mark.parametrize("backend", TILED)
def test_queries_that_see_nothing_give_zeros_and_no_gradient(backend):
    qkv, weight = arrays(3, 64)
    queries, keys = layouts()["packed"]
    nothing = Rows(jnp.full_like(queries.segment, 7), queries.order)
    out = PASSES[backend](*qkv, nothing, keys, weight)[0]
    assert not out.any()

    def loss(q, k, v):
        return attend(q, k, v, nothing, keys, backend=backend).sum()

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
    want = PASSES["xla"](q, k, v, queries, keys, weight)
    k, v = (x.at[:, 512:].set(np.nan) for x in (k, v))
    assert_same(PASSES[backend](q, k, v, queries, keys, weight), want, queries, keys)


@pytest.mark.parametrize("backend", TILED)
@pytest.mark.parametrize("leading", ["keys", "queries"])
def test_leading_tiles_that_nobody_needs_are_not_read(backend, leading):
    """NaNs in keys before the first that is seen, and in queries, with gradients, that see none."""
    split = rows([np.repeat([0, 1], [256, M - 256])] * B, [[0] * M] * B, M)
    second = rows([[1] * N] * B, [[0] * N] * B, N)
    queries, keys = (second, split) if leading == "keys" else (split, second)
    (q, k, v), weight = arrays(3, 64, queries.order.shape[1], keys.order.shape[1])

    def both(backend, q, k, v, weight):
        out, pull = jax.vjp(partial(attend, backend=backend), q, k, v, queries, keys)
        return out, pull(weight)[:3]

    want = jax.jit(partial(both, "xla"))(q, k, v, masked(weight, queries, keys))
    if leading == "keys":
        k, v = (x.at[:, :256].set(np.nan) for x in (k, v))
    else:
        q, weight = (x.at[:, :256].set(np.nan) for x in (q, weight))
    assert_same(jax.jit(partial(both, backend))(q, k, v, weight), want, queries, keys)


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


@pytest.mark.parametrize(
    ("backend", "n", "m", "tiled"),
    [
        ("auto", 1, 2048, False),
        ("blocked", 1, 2048, False),
        ("pallas", 512, 127, False),
        ("cudnn", 1, 2048, False),
        ("auto", 256, 256, False),
        ("blocked", 256, 256, True),
        pytest.param(
            "auto",
            256,
            512,
            True,
            marks=pytest.mark.skipif(jax.default_backend() == "gpu", reason="no tiles on a GPU"),
        ),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_small_inputs_stay_dense_and_large_ones_do_not(backend, n, m, tiled, dtype):
    """A decoding step (one query) must not enter a loop over tiles, whatever a config says."""
    queries, keys = (Rows(*[jnp.zeros((B, size), jnp.int32)] * 2) for size in (n, m))
    qkv, _ = arrays(1, 64, n, m, dtype)
    program = jax.make_jaxpr(partial(attend, backend=backend))(*qkv, queries, keys)
    assert ("custom_vjp" in str(program)) == tiled


def test_unknown_and_unable_back_ends_are_named():
    qkv, _ = arrays(1, 64, 128, 128)
    row = Rows(*[jnp.zeros((B, 128), jnp.int32)] * 2)
    with pytest.raises(ValueError, match="did you mean 'blocked'"):
        attend(*qkv, row, row, backend="block")
    with pytest.raises(ValueError, match="bfloat16 and float16"):
        attend(*qkv, row, row, backend="cudnn")


AMPERE = ("PJRT C API\ncuda 12080", "8.0")


def stand_in(monkeypatch, version, capability):
    """A process whose GPU, or other device, says this of itself."""
    device = SimpleNamespace(compute_capability=capability)
    client = SimpleNamespace(platform_version=version, local_devices=lambda: [device])
    monkeypatch.setattr(jax.extend.backend, "get_backend", lambda: client)


@pytest.mark.parametrize(
    ("version", "capability", "can"),
    [
        (*AMPERE, True),
        ("PJRT C API\ncuda 12080", "12.0", True),
        ("PJRT C API\ncuda 12080", "7.5", False),
        ("PJRT C API\nrocm 60300", "gfx942", False),
        ("cpu", None, False),
    ],
)
def test_cudnn_is_for_gpus_that_have_its_attention(monkeypatch, version, capability, can):
    stand_in(monkeypatch, version, capability)
    assert cudnn.supports(jnp.bfloat16, 64) == can
    assert not cudnn.supports(jnp.float32, 64)
    if not can:
        qkv, _ = arrays(1, 64, 128, 128, jnp.bfloat16)
        row = Rows(*[jnp.zeros((B, 128), jnp.int32)] * 2)
        with pytest.raises(RuntimeError, match="needs an NVIDIA GPU"):
            attend(*qkv, row, row, backend="cudnn")


def test_cudnn_is_asked_for_the_dense_answer(monkeypatch):
    """What it is given, odd lengths padded, means the same to JAX's own implementation."""
    stand_in(monkeypatch, *AMPERE)
    ask = jax.nn.dot_product_attention

    def answer(*args, implementation, **more):
        assert implementation == "cudnn" and args[0].shape[1] % 2 == args[1].shape[1] % 2 == 0
        return ask(*args, implementation="xla", **more)

    monkeypatch.setattr(jax.nn, "dot_product_attention", answer)
    qkv, weight = arrays(2, 64, 141, 261, jnp.bfloat16)
    args = (*qkv, *layouts(141, 261)["packed"], weight)
    assert_same(both_passes("cudnn")(*args), PASSES["xla"](*args), *args[3:5], 0.03)


@pytest.mark.skipif(
    jax.default_backend() != "gpu", reason="no GPU for cuDNN's attention: JAX_PLATFORMS=cuda"
)
@pytest.mark.parametrize("name", ["packed", "blocks", "unsorted", "full"])
@pytest.mark.parametrize("batch", [1, B])
def test_cudnn_agrees_with_the_dense_one(name, batch):
    """One row is a case of its own: the mask's gradient is that of [1, 1, n, m]."""
    qkv, weight = arrays(2, 64, dtype=jnp.bfloat16)
    args = jax.tree.map(lambda x: x[:batch], (*qkv, *layouts()[name], weight))
    assert_same(both_passes("cudnn")(*args), PASSES["xla"](*args), *args[3:5], 0.03)


@pytest.mark.all
@needs_libtpu
def test_the_tpu_program_has_no_array_of_queries_by_keys():
    """In a process of its own: the TPU's compiler lives as long as the process."""
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    own = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    run = subprocess.run(
        [sys.executable, here / "on_tpu.py"], env=os.environ | own, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
