"""What several devices must not change; run in a process of its own with eight of them."""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import re

import jax
import jax.numpy as jnp
import numpy as np
from toy_stage import ToyStage, toy_config

from evatok_jax import sharding
from evatok_jax import train as training
from evatok_jax.models.discriminators import VirtualBatchNorm


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


if __name__ == "__main__":
    meshes_fit_the_devices()
    accumulation_stays_on_its_device()
    virtual_batches_span_devices()
