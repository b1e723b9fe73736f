"""Meshes and partition specs: the only file that knows on how many devices a job runs."""

import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp")
WAYS = 16  # cut finer, most axes of the models' matrices leave the tiles of a TPU


def make_mesh(data: int = -1, fsdp: int = 1, devices=None) -> Mesh:
    """A data x fsdp mesh over all devices, or these; -1 takes what the other axis leaves.

    `fsdp` 0 is as many ways as divide the devices, at most `WAYS`. Raises ValueError where the two
    do not multiply to the number of devices.
    """
    count = len(devices) if devices else jax.device_count()
    shape = [data, fsdp or math.gcd(WAYS, count)]
    if -1 in shape:
        other = shape[1 - shape.index(-1)]
        shape[shape.index(-1)] = count // other
    if math.prod(shape) != count or min(shape) < 1:
        raise ValueError(f"mesh {data} x {fsdp} (data x fsdp) does not cover {count} devices")
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are cut along their first axis over all devices."""
    return NamedSharding(mesh, P(AXES))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())


def param_shardings(tree, mesh: Mesh | AbstractMesh):
    """Shardings of parameters and optimiser state, if `fsdp` cuts them at all.

    Over as many devices as a cut stays aligned for: those of both axes, of `fsdp`, or of `data`.
    The TPU lays the last two axes out in tiles, of 16 x 128 in bf16. Cutting an axis into pieces
    that are no multiple of its tile turns gathers, and sums that are cut, into padded all-reduces,
    so such a leaf stays whole.
    """
    if mesh.shape["fsdp"] == 1:
        return jax.tree.map(lambda _: replicated(mesh), tree)
    ways = {axes: math.prod(mesh.shape[axis] for axis in axes) for axes in (AXES, *zip(AXES))}
    ways = sorted(ways.items(), key=lambda item: -item[1])

    def spec(leaf):
        for axes, count in ways:
            for axis in range(leaf.ndim - 1, -1, -1):
                tile = {1: 128, 2: 16}.get(leaf.ndim - axis, 1)
                if leaf.shape[axis] % (count * tile) == 0:
                    return NamedSharding(mesh, P(*[None] * axis, axes))
        return replicated(mesh)

    return jax.tree.map(spec, tree)


def placed(spec, shardings):
    """Shapes that say where they lie; `shardings` are a tree of the same form, or one for all."""
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, spec)

    def leaf(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, spec, shardings)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a global batch as global arrays."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def ways() -> int:
    """Among how many devices a batch is cut under `jax.set_mesh`; without a mesh 1."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def cut(batch):
    """Inside a program: the batch, lying as `put_batch` lays it under `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return batch
    return jax.lax.with_sharding_constraint(batch, P(mesh.axis_names))


def splits(batch: int) -> bool:
    """Whether under `jax.set_mesh` parameters are cut, and a batch of this size can be."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or mesh.shape["fsdp"] == 1:
        return False
    return batch % mesh.size == 0


def to_host(tree, mesh: Mesh):
    """NumPy copies of global arrays, on every process."""
    if jax.process_count() > 1:
        tree = jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)
    return jax.device_get(tree)


def per_device(function: Callable) -> Callable:
    """`function`, run by each device on its own rows; all its arrays have the batch first.

    For kernels that the compiler cannot cut. The mesh is that of `jax.set_mesh`. Its axes cut the
    batch, the first before the next, as long as they divide it; devices along the others compute
    the same. Without a mesh, and where `jax.shard_map` has cut along all axes, the function works
    on what it is given.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = mesh.auto_axes
    if not axes:
        return function

    def call(*args):
        batch, ways, cutting = jax.tree.leaves(args)[0].shape[0], 1, []
        for axis in axes:
            ways *= mesh.shape[axis]
            if batch % ways:
                break
            cutting.append(axis)
        spec = P(tuple(cutting))
        cut = jax.shard_map(
            function, in_specs=spec, out_specs=spec, axis_names=set(axes), check_vma=False
        )
        return cut(*args)

    return call
