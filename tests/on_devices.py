"""What several devices must not change; run in a process of its own with eight of them."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from toy_stage import ToyStage, toy_config

from evatok_jax import sharding
from evatok_jax import train as training
from evatok_jax.models.attention import attend
from evatok_jax.models.discriminators import VirtualBatchNorm
from evatok_jax.models.generator import Generator, GeneratorConfig
from evatok_jax.models.ragged import block_rows
from evatok_jax.models.rows import Rows
from evatok_jax.models.sizes import StackConfig
from evatok_jax.models.tokenizer import QFormer, Side


def accumulation_stays_on_its_device() -> None:
    """Each of 8 devices works on 8 / 4 rows at a time, and no batch is gathered."""
    config = toy_config(accumulate=4)
    config.batch_size = 64
    stage, mesh = ToyStage(config), sharding.make_mesh()
    optimizers = stage.optimizers(12)
    batch = sharding.put_batch(next(stage.batches(0)), mesh)
    state = training.init_state(stage, optimizers, jax.random.key(0), batch)
    step = training.make_step(stage, optimizers, ("model",), (), 4)
    program = jax.jit(step).lower(state, {}, batch, jax.random.key(0)).compile().as_text()
    assert "all-gather" not in program
    rows = {int(n) for n in re.findall(r"f32\[(\d+),8\]\S* (?:dot|tanh)\(", program)}
    assert rows == {2}, rows


def virtual_batches_span_devices() -> None:
    """Groups of eight clips on eight devices, two a device, equal those of one device."""
    x = np.random.default_rng(0).normal(2.0, 3.0, (16, 5, 3)).astype(np.float32)
    model = VirtualBatchNorm(8)
    variables = model.init(jax.random.key(0), jnp.asarray(x))
    spread = sharding.put_batch({"x": x}, sharding.make_mesh())["x"]
    got, want = jax.jit(model.apply)(variables, spread), model.apply(variables, jnp.asarray(x))
    assert len(spread.sharding.device_set) == 8
    np.testing.assert_allclose(got, want, atol=1e-6)


def meshes_fit_the_devices() -> None:
    """What an axis leaves open follows from the devices; splitting has a largest number of ways."""
    sizes = {given: tuple(sharding.make_mesh(*given).shape.values()) for given in MESHES}
    assert sizes == MESHES, sizes


MESHES = {(-1, 1): (8, 1), (-1, 2): (4, 2), (2, -1): (2, 4), (-1, 0): (1, 8)}


def attention_stays_on_its_rows() -> None:
    """Kernels run on each device's rows, or heads, without gathering; gradients as on one."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((8, 140, 4, 64), np.float32) for _ in range(3))
    rows = Rows(*(jnp.asarray(np.arange(8 * 140).reshape(8, 140) // x) for x in (50, 7)))

    def both(backend, q, k, v, rows):
        def loss(*qkv):
            out = attend(*qkv, rows, rows, backend=backend)
            return jnp.square(out).sum(), out

        return jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)

    want = jax.jit(partial(both, "xla"))(q, k, v, rows)
    mesh = sharding.make_mesh(data=4, fsdp=2)
    rowwise = P("data")
    for backend in ("pallas", "blocked"):
        with jax.set_mesh(mesh):
            own = jax.device_put((q, k, v, rows), sharding.batch_sharding(mesh))
            call = jax.jit(partial(both, backend)).lower(*own).compile()
            assert "all-gather" not in call.as_text()
            heads = P("data", None, "fsdp")
            cut = jax.shard_map(
                partial(both, backend),
                in_specs=(heads, heads, heads, rowwise),
                out_specs=((heads,) * 3, heads),
                check_vma=False,
            )
            half = jax.shard_map(
                partial(both, backend),
                in_specs=rowwise,
                out_specs=rowwise,
                axis_names={"data"},
                check_vma=False,
            )
            for got in (call(*own), *(jax.jit(f)(q, k, v, rows) for f in (cut, half))):
                for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
                    np.testing.assert_allclose(a, b, atol=1e-4)


def rows_are_cut_by_the_axes_that_divide_them() -> None:
    """Along the other axes devices compute the same, and gradients count it once."""
    sizes = {}

    def squared(x):
        sizes[rows] = len(x)
        return x**2

    with jax.set_mesh(sharding.make_mesh(data=4, fsdp=2)):
        cut = sharding.per_device(squared)
        for rows in (16, 12, 3):
            x = jnp.arange(5.0 * rows).reshape(rows, 5)
            out, gradient = jax.jit(jax.value_and_grad(lambda x: cut(x).sum()))(x)
            np.testing.assert_allclose(out, (x**2).sum(), rtol=1e-6)
            np.testing.assert_array_equal(gradient, 2 * x)
    assert sizes == {16: 2, 12: 3, 3: 3}, sizes


def cut_layers_compute_what_whole_ones_do() -> None:
    """Generator and Q-Former, parameters cut 8 and 4 ways: loss and gradients as on one device."""
    rng = np.random.default_rng(0)
    small = GeneratorConfig(16, (2, 4), 2, 3, width=256, layers=2, heads=4, remat="dots")
    model = Generator(small)
    ids = rng.integers(0, 16, (8, 10)).astype(np.int32)
    keys = jax.random.split(jax.random.key(1), 8)
    start = jax.jit(model.init)(jax.random.key(0), np.zeros(1, np.int32), ids[:1])

    def loss(params, ids, keys):
        return jnp.square(model.apply(params, jnp.zeros(8, jnp.int32), ids, keys)).mean()

    split_equals_whole(loss, start, (ids, keys))

    stack = QFormer(StackConfig(192, 2, 3), jnp.float32)
    x, k, v, places = (rng.standard_normal((n, 6, 192), np.float32) for n in (8, 8, 8, 1))
    rows = block_rows(8, 3, 2)
    count = jnp.full(8, 6, jnp.int32)

    def side(places, k, v, rows):  # of what layers share, some has the batch and some has not
        return Side(rows, places, rows, k, v, count, count)

    start = jax.jit(stack.init)(jax.random.key(0), x, side(places, k, v, rows))

    def loss(params, x, k, v, rows):
        given = side(params["places"], k, v, rows)
        x, tapped, _ = stack.apply({"params": params["params"]}, x, given, tap=1)
        return jnp.square(x).mean() + tapped.mean()

    split_equals_whole(loss, {**start, "places": places}, (x, k, v, rows))


def split_equals_whole(loss, params, batch) -> None:
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), params)
    want = jax.jit(jax.value_and_grad(loss))(params, *batch)
    mesh = sharding.make_mesh(data=2, fsdp=4)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.param_shardings(params, mesh))
        assert any(len(x.sharding.spec) for x in jax.tree.leaves(placed))
        own = jax.device_put(batch, sharding.batch_sharding(mesh))
        got = jax.jit(jax.value_and_grad(loss))(placed, *own)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(np.abs(b).max(), 1.0))


if __name__ == "__main__":
    cut_layers_compute_what_whole_ones_do()
    meshes_fit_the_devices()
    rows_are_cut_by_the_axes_that_divide_them()
    attention_stays_on_its_rows()
    accumulation_stays_on_its_device()
    virtual_batches_span_devices()
