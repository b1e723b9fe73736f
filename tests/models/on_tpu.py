"""What the TPU's compiler makes of attention; needs libtpu, no TPU. Run in a process of its own."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from evatok_jax.models.attention import MultiHeadAttention, attend
from evatok_jax.models.rows import Rows


def mesh_of(name: str) -> Mesh:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    return Mesh(np.array(devices).reshape(-1, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def layer_without_logits(mesh: Mesh) -> None:
    """Forward and backward of a cross-attention layer on packed rows, cut over four chips."""
    b, n, m, width = 4, 384, 640, 256
    layer = MultiHeadAttention(width, 4, jnp.bfloat16)

    def loss(params, x, y, queries, keys):
        out, _ = layer.apply(params, x, y, y, queries, keys)
        return jnp.square(out.astype(jnp.float32)).mean()

    own = NamedSharding(mesh, P(("data", "fsdp")))

    def array(*shape, dtype=jnp.bfloat16, sharding=own):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    x, y = array(b, n, width), array(b, m, width)
    queries, keys = (Rows(*[array(b, s, dtype=jnp.int32)] * 2) for s in (n, m))
    params = jax.eval_shape(layer.init, jax.random.key(0), x, y, y, queries, keys)
    params = jax.tree.map(
        lambda p: array(*p.shape, dtype=p.dtype, sharding=NamedSharding(mesh, P())), params
    )
    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss)).lower(params, x, y, queries, keys).compile().as_text()
    assert "attention_forward" in text and "attention_backward" in text
    assert "all-gather" not in text
    shapes = {tuple(map(int, found.split(","))) for found in re.findall(r"\[([\d,]+)\]", text)}
    logits = [s for s in shapes if {384, 512} & set(s) and {640, 768} & set(s)]
    assert not logits, logits


def kernels_compile(mesh: Mesh) -> None:
    """Sizes of heads, types, and the generator's packed rows."""
    one = NamedSharding(Mesh(mesh.devices.ravel()[:1], "data"), P())
    for n, heads, head_dim, dtype in (
        (512, 2, 128, jnp.bfloat16),
        (300, 3, 64, jnp.float32),
        (200, 2, 32, jnp.bfloat16),
        (4224, 2, 64, jnp.bfloat16),
        (4224, 2, 64, jnp.float32),
    ):
        x = jax.ShapeDtypeStruct((1, n, heads, head_dim), dtype, sharding=one)
        rows = Rows(*[jax.ShapeDtypeStruct((1, n), jnp.int32, sharding=one)] * 2)

        def loss(q, k, v, rows):
            return attend(q, k, v, rows, rows).sum(dtype="float32")

        jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x, rows).compile()


if __name__ == "__main__":
    four = mesh_of("v5e:2x2")
    layer_without_logits(four)
    kernels_compile(four)
