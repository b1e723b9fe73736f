"""Layers in a stack: one scanned program, whose parameters are arrays with the layers first."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from evatok_jax import sharding
from evatok_jax.models.remat import rematerialised


class Stack(nn.Module):
    """`length` layers of one class, called one after the other by a scan.

    Called with a carry and further arguments, a layer returns the next carry and an output; so does
    the stack, its outputs stacked.

    Attributes:
      layer: the class; arguments: its attributes.
      dtype: compute type of its products.
      in_axes: of the further arguments, as in `nn.scan`.
      remat: what of a layer the backward pass computes again (`remat.POLICIES`).
      unroll: layers of the loop that are unrolled (speed against compile time).
    """

    layer: type[nn.Module]
    arguments: tuple
    length: int
    dtype: jnp.dtype
    in_axes: tuple
    remat: str
    unroll: int = 1

    def setup(self):
        self.scanned = nn.scan(
            rematerialised(nn.remat, self.layer, self.remat, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=self.in_axes,
            length=self.length,
            unroll=min(self.unroll, self.length),
        )(*self.arguments)
        nn.share_scope(self, self.scanned)

    def __call__(self, carry, *args, split: bool = True):
        """`split` False keeps to the compiler's own partition (layers with caches)."""
        batch = jax.tree.leaves(carry)[0].shape[0]
        if self.is_initializing() or not (split and sharding.splits(batch)):
            return self.scanned(carry, *args)
        return self._split(batch, carry, args)

    def _split(self, batch: int, carry, args):
        """The same without outputs, where a mesh cuts the batch and the parameters.

        Each device gathers matrices once a step, in the compute type, and reads them again in the
        backward pass. Each layer's gradients are summed, in that type too, and cut as soon as they
        are there, so that no device holds them all. Left to itself, the compiler may rather gather
        activations, which are many times larger, or sum gradients whole.

        Of what layers share, arrays whose first axis is as long as the batch have it there; of what
        each has for itself, those of several axes whose last one is.
        """
        mesh, params = jax.sharding.get_abstract_mesh(), self.variables["params"]
        cuts = jax.tree.map(_between, params, sharding.param_shardings(params, mesh))
        cast = jax.tree.map(lambda x: x.astype(self.dtype) if x.ndim > 2 else x, params)
        pairs = zip(self.in_axes, args, strict=True)
        own = [axis == 0 for axis, x in pairs for _ in jax.tree.leaves(x)]
        args, form = jax.tree.flatten(args)

        def spec(mine, x):
            axis = x.ndim - 1 if mine else 0
            at = x.ndim > max(axis, mine) and x.shape[axis] == batch
            return P(*[None] * axis, mesh.axis_names) if at else P()

        def apply(carry, params, args):
            module = self.layer(*self.arguments, parent=None)
            return module.apply({"params": params}, carry, *args)

        layer = rematerialised(jax.checkpoint, apply, self.remat, prevent_cse=False)

        def run(params, carry, args):
            whole = jax.tree.map(_gathered, params, cuts)
            # Or the compiler makes what it can, copies of positions say, anew in every layer.
            args = jax.lax.optimization_barrier(args)

            def one(carry, each):
                cut, full, mine = each
                mine = iter(mine)
                leaves = [next(mine) if is_own else a for a, is_own in zip(args, own, strict=True)]
                stood_in = jax.tree.map(_standing_in, full, cut, cuts)
                return layer(carry, stood_in, jax.tree.unflatten(form, leaves))

            mine = [a for a, is_own in zip(args, own, strict=True) if is_own]
            unroll = min(self.unroll, self.length)
            return jax.lax.scan(one, carry, (params, whole, mine), unroll=unroll)[0]

        carried = jax.tree.map(lambda x: spec(False, x), carry)
        specs = [spec(*pair) for pair in zip(own, args, strict=True)]
        # Nothing is asserted of which results are the same on which devices: all are cut.
        run = jax.shard_map(
            run,
            in_specs=(cuts, carried, specs),
            out_specs=carried,
            check_vma=False,
        )
        return run(cast, carry, args), None


def _between(x, placed) -> P:
    """How a stacked parameter is cut, unless between layers: it is each layer that is gathered."""
    return P() if placed.spec and placed.spec[0] else placed.spec


def _where(spec: P):
    """Which axis is cut, and along which axes of the mesh; (None, None) if none is."""
    return next(((axis, names) for axis, names in enumerate(spec) if names), (None, None))


def _gathered(x, spec: P):
    """A stacked parameter, whole and without gradient."""
    (axis, names), x = _where(spec), jax.lax.stop_gradient(x)
    return x if axis is None else jax.lax.all_gather(x, names, axis=axis, tiled=True)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _standing_in(whole, cut, spec: P):
    """`whole`, that was gathered of what `cut` is of this layer; `cut` gets the gradient."""
    return whole


def _forward(whole, cut, spec):
    return whole, None


def _backward(spec, _, gradient):
    (axis, names), own = _where(spec), gradient
    if axis is not None:  # along axes of the mesh that are not named `jax.shard_map` sums
        own = jax.lax.psum_scatter(gradient, names, scatter_dimension=axis - 1, tiled=True)
    return jnp.zeros_like(gradient), own


_standing_in.defvjp(_forward, _backward)
