"""What the TPU's compiler makes of attention; needs libtpu, no TPU. Run in a process of its own."""

import math
import re

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from evatok_jax import sharding, tpu
from evatok_jax.models.attention import MultiHeadAttention, attend
from evatok_jax.models.rows import Rows


def layer_without_logits(mesh: Mesh) -> None:
    """Forward and backward of a cross-attention layer on packed rows, one a chip."""
    n, m, width = 384, 640, 256
    layer = MultiHeadAttention(width, 4, jnp.bfloat16)

    def loss(params, x, y, queries, keys):
        out, _ = layer.apply(params, x, y, y, queries, keys)
        return jnp.square(out.astype(jnp.float32)).mean()

    x, y = (jax.ShapeDtypeStruct((mesh.size, s, width), jnp.bfloat16) for s in (n, m))
    queries, keys = (Rows(*[jax.ShapeDtypeStruct((mesh.size, s), jnp.int32)] * 2) for s in (n, m))
    params = jax.eval_shape(layer.init, jax.random.key(0), x, y, y, queries, keys)
    params = sharding.placed(params, sharding.replicated(mesh))
    inputs = sharding.placed((x, y, queries, keys), sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(params, *inputs).compile().as_text()
    assert "attention_forward" in text and "attention_backward" in text
    assert "all-gather" not in text
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", text)}
    # The largest input, keys' and values', has 640 x 256 numbers a row.
    logits = [shape for shape in shapes if math.prod(shape) >= n * m]
    assert (1, m, width) in shapes and not logits, logits


def kernels_compile(devices) -> None:
    """Sizes of heads, types, tiles, and the generator's packed rows."""
    one = sharding.replicated(sharding.make_mesh(devices=devices[:1]))
    for n, m, heads, head_dim, dtype in (
        (512, 512, 2, 128, jnp.bfloat16),
        (301, 257, 3, 64, jnp.float32),
        (200, 1000, 2, 32, jnp.bfloat16),
        (2176, 128, 2, 64, jnp.bfloat16),
        (4224, 4224, 2, 64, jnp.bfloat16),
        (4224, 4224, 2, 64, jnp.float32),
    ):
        q, k = (jax.ShapeDtypeStruct((1, s, heads, head_dim), dtype) for s in (n, m))
        queries, keys = (Rows(*[jax.ShapeDtypeStruct((1, s), jnp.int32)] * 2) for s in (n, m))

        def loss(q, k, v, queries, keys):
            return attend(q, k, v, queries, keys, backend="pallas").sum(dtype="float32")

        args = sharding.placed((q, k, k, queries, keys), one)
        text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*args).compile().as_text()
        assert "attention_forward" in text and "attention_backward" in text


if __name__ == "__main__":
    four, _ = tpu.describe("v5e:2x2")
    layer_without_logits(sharding.make_mesh(data=2, fsdp=2, devices=four))
    kernels_compile(four)
