"""Raggedness lives here: how clips with different numbers of tokens share arrays of one shape.

`lengths [b, blocks]` is data, never a shape. `layout` turns it and a static size s into a
description of s positions per row, block after block without gaps and padded at the end; everybody
else asks the layout.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from evatok_jax.models.attention import Rows


@flax.struct.dataclass
class Layout:
    """What each of the s positions of a ragged row is.

    Attributes:
      segment: int32 [b, s], 0 on tokens, -1 on padding.
      block: int32 [b, s], block of each token; 0 on padding.
      slot: int32 [b, s], which query of its block each token is; 0 on padding.
      starts: int32 [b, blocks], position of each block's first token.
      lengths: int32 [b, blocks].
    """

    segment: jax.Array
    block: jax.Array
    slot: jax.Array
    starts: jax.Array
    lengths: jax.Array

    @property
    def valid(self) -> jax.Array:
        """bool [b, s], true on tokens and false on padding."""
        return self.segment >= 0

    @property
    def rows(self) -> Rows:
        """Descriptor for block-causal attention."""
        return Rows(self.segment, self.block)


def layout(lengths: Int[Array, "b t"], size: int, first_block: Int[Array, ""] | int = 0) -> Layout:
    """The layout of rows whose blocks have these lengths, in `size` positions.

    Tokens beyond `size` do not exist: `static_size` gives one that holds them all. `first_block` is
    the block id of lengths[:, 0], for rows that hold the next blocks of a longer clip.
    """
    lengths = lengths.astype(jnp.int32)
    ends = jnp.cumsum(lengths, axis=1)
    starts = ends - lengths
    position = jnp.arange(size, dtype=jnp.int32)
    block = jnp.sum(position[None, :, None] >= ends[:, None, :], axis=-1, dtype=jnp.int32)
    valid = block < lengths.shape[1]
    block = jnp.where(valid, block, 0)
    slot = jnp.where(valid, position[None] - jnp.take_along_axis(starts, block, axis=1), 0)
    return Layout(
        segment=jnp.where(valid, 0, -1),
        block=jnp.where(valid, block + first_block, 0),
        slot=slot,
        starts=starts,
        lengths=lengths,
    )


def block_rows(
    batch: int, blocks: int, per_block: int, first_block: Int[Array, ""] | int = 0
) -> Rows:
    """Descriptor of dense rows: `blocks` blocks of `per_block` positions each (the patches)."""
    order = jnp.repeat(jnp.arange(blocks, dtype=jnp.int32), per_block) + first_block
    order = jnp.broadcast_to(order, (batch, blocks * per_block))
    return Rows(jnp.zeros_like(order), order)


def take_slots(per_block: Float[Array, "b t k d"], rows: Layout) -> Float[Array, "b s d"]:
    """Picks entry (block, slot) of each token from dense per-block arrays; zeros on padding."""
    b, t, k, d = per_block.shape
    index = rows.block * k + rows.slot
    picked = jnp.take_along_axis(per_block.reshape(b, t * k, d), index[..., None], axis=1)
    return jnp.where(rows.valid[..., None], picked, 0)


def look_up(table: Float[Array, "t k d"], rows: Layout) -> Float[Array, "b s d"]:
    """Entry (block, slot) of a table that all rows share (learned positions)."""
    t, k, d = table.shape
    return table.reshape(t * k, d)[rows.block * k + rows.slot]


def take_firsts(x: Float[Array, "b s d"], rows: Layout) -> Float[Array, "b t d"]:
    """The first token of each block."""
    return jnp.take_along_axis(x, rows.starts[..., None], axis=1)


def masked_mean(values: Float[Array, "b s"], rows: Layout) -> Float[Array, ""]:
    """Mean over real tokens only."""
    valid = rows.valid
    return jnp.sum(jnp.where(valid, values, 0)) / jnp.maximum(jnp.sum(valid), 1)


def static_size(longest: int, multiple: int, most: int) -> int:
    """The smallest multiple of `multiple` that holds `longest` tokens, at most `most`.

    A few static sizes bound both the padding and the number of compilations.
    """
    return min(-(-longest // multiple) * multiple, most)


def check_lengths(lengths, levels: tuple[int, ...], blocks: int) -> np.ndarray:
    """Lengths given by a user, as int32 [b, blocks].

    Raises ValueError where the shape is wrong or a length is no level.
    """
    lengths = np.asarray(lengths)
    if lengths.ndim != 2 or lengths.shape[1] != blocks:
        raise ValueError(f"lengths must have shape [clips, {blocks} blocks], not {lengths.shape}")
    wrong = ~np.isin(lengths, levels)
    if wrong.any():
        clip, block = np.argwhere(wrong)[0]
        raise ValueError(
            f"lengths[{clip}, {block}] is {lengths[clip, block]}: a block has one of "
            f"{', '.join(map(str, levels))} tokens"
        )
    return lengths.astype(np.int32)
