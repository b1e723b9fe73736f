"""Raggedness lives here: how clips with different numbers of tokens share arrays of one shape.

`lengths [b, blocks]` is data, never a shape. `layout` turns it and a static size s into a
description of s positions per row, block after block without gaps and padded at the end; everybody
else asks the layout. A row holds one clip or several, one after another: the more there are, the
nearer it comes to their mean length, and the less is padding.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from evatok_jax.models.rows import Rows, causal_share


@flax.struct.dataclass
class Layout:
    """What each of the s positions of a ragged row is.

    r rows hold b = r * clips clips.

    Attributes:
      segment: int32 [r, s], which clip of its row each token is of, -1 on padding.
      block: int32 [r, s], block of each token; 0 on padding.
      slot: int32 [r, s], which query of its block each token is; 0 on padding.
      starts: int32 [r, clips * blocks], position of the first token of each block.
      lengths: int32 [r, clips * blocks].
      total: fp32, by what sums over tokens are divided to make a mean: the number of tokens, or
        where a batch is worked on in parts, its part of all.
      clips: of a row.
    """

    segment: jax.Array
    block: jax.Array
    slot: jax.Array
    starts: jax.Array
    lengths: jax.Array
    total: jax.Array
    clips: int = flax.struct.field(pytree_node=False, default=1)

    @property
    def valid(self) -> jax.Array:
        """bool [b, s], true on tokens and false on padding."""
        return self.segment >= 0

    @property
    def rows(self) -> Rows:
        """Descriptor for block-causal attention."""
        blocks = self.lengths.shape[1] // self.clips
        return Rows(self.segment, self.block, causal_share(blocks, self.clips))

    @property
    def clip(self) -> jax.Array:
        """int32 [r, s], which of all clips each token is of; that of the row's first on padding."""
        first = self.clips * jnp.arange(len(self.segment), dtype=jnp.int32)
        return first[:, None] + jnp.maximum(self.segment, 0)

    @property
    def place(self) -> jax.Array:
        """int32 [r, s], place of each token in its clip; padding has some number."""
        starts = self.starts.reshape(-1)[self.clip * (self.lengths.shape[1] // self.clips)]
        return jnp.arange(self.segment.shape[1], dtype=jnp.int32) - starts


def layout(
    lengths: Int[Array, "b t"],
    size: int,
    first_block: Int[Array, ""] | int = 0,
    clips: int = 1,
) -> Layout:
    """The layout of rows of clips whose blocks have these lengths, in `size` positions.

    Tokens beyond `size` do not exist: `static_size` gives one that holds them all. `first_block` is
    the block id of lengths[:, 0], for rows that hold the next blocks of longer clips. `clips` of
    them, which must divide b, share a row.
    """
    blocks = lengths.shape[1]
    lengths = lengths.astype(jnp.int32).reshape(-1, clips * blocks)
    ends = jnp.cumsum(lengths, axis=1)
    starts = ends - lengths
    position = jnp.arange(size, dtype=jnp.int32)
    which = jnp.sum(position[None, :, None] >= ends[:, None, :], axis=-1, dtype=jnp.int32)
    valid = which < lengths.shape[1]
    which = jnp.where(valid, which, 0)
    slot = jnp.where(valid, position[None] - jnp.take_along_axis(starts, which, axis=1), 0)
    return Layout(
        segment=jnp.where(valid, which // blocks, -1),
        block=jnp.where(valid, which % blocks + first_block, 0),
        slot=slot,
        starts=starts,
        lengths=lengths,
        total=jnp.maximum(jnp.sum(valid), 1).astype(jnp.float32),
        clips=clips,
    )


def block_rows(
    batch: int,
    blocks: int,
    per_block: int,
    first_block: Int[Array, ""] | int = 0,
    clips: int = 1,
) -> Rows:
    """Descriptor of dense rows: `blocks` blocks of `per_block` positions each (the patches)."""
    order = jnp.repeat(jnp.arange(blocks, dtype=jnp.int32), per_block) + first_block
    segment = jnp.repeat(jnp.arange(clips, dtype=jnp.int32), len(order))
    shape = (batch // clips, len(segment))
    ids = (jnp.broadcast_to(x, shape) for x in (segment, jnp.tile(order, clips)))
    return Rows(*ids, causal_share(blocks, clips))


def take_slots(per_block: Float[Array, "b t k d"], rows: Layout) -> Float[Array, "r s d"]:
    """Picks entry (block, slot) of each token from its clip's array; zeros on padding."""
    _, t, k, d = per_block.shape
    index = (jnp.maximum(rows.segment, 0) * t + rows.block) * k + rows.slot
    entries = per_block.reshape(-1, rows.clips * t * k, d)
    picked = jnp.take_along_axis(entries, index[..., None], axis=1)
    return jnp.where(rows.valid[..., None], picked, 0)


def look_up(table: Float[Array, "t k d"], rows: Layout) -> Float[Array, "r s d"]:
    """Entry (block, slot) of a table that all clips share (learned positions)."""
    t, k, d = table.shape
    return table.reshape(t * k, d)[rows.block * k + rows.slot]


def take_firsts(x: Float[Array, "r s d"], rows: Layout) -> Float[Array, "r m d"]:
    """The first token of each of the m blocks of a row."""
    return jnp.take_along_axis(x, rows.starts[..., None], axis=1)


def token_keys(keys: Key[Array, " b"], rows: Layout) -> Key[Array, "r s"]:
    """A key for each token from that of its clip and its place there, wherever the clip stands."""
    return jax.vmap(jax.vmap(jax.random.fold_in))(keys[rows.clip], rows.place)


def masked_mean(values: Float[Array, "r s"], rows: Layout) -> Float[Array, ""]:
    """Mean over real tokens only."""
    return jnp.sum(jnp.where(rows.valid, values, 0)) / rows.total


def deal(tokens: Int[Array, " b"], rows: int) -> Int[Array, " b"]:
    """An order of clips in which every b / rows of them, a row, hold about as many tokens.

    From the longest to the shortest they are dealt to the rows, to and fro; in its row each stands
    by its number, so that no place of a row is the longer clips'.
    """
    hands = jnp.argsort(-tokens).reshape(-1, rows)
    turned = jnp.arange(len(hands))[:, None] % 2 == 1
    return jnp.sort(jnp.where(turned, hands[:, ::-1], hands), axis=0).T.ravel()


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
