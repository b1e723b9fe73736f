"""The token sequence that the generator learns, and the grammar that every sample of it obeys.

A clip is, for each block, a length token and then exactly that many visual tokens (EVATok).
Visual ids are the codebook's, 0 .. codebook_size - 1; level i has the id codebook_size + i in every
block. Everything here is data of a `Grammar`: any number of blocks and levels will do.
"""

from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from evatok_jax.models.ragged import layout
from evatok_jax.tokens import Tokens

# What a position of a sequence holds. Padding carries id 0, which every table can look up.
PADDING, VISUAL, LENGTH = -1, 0, 1


@dataclass(frozen=True)
class Grammar:
    """Which sequences there are.

    Attributes:
      codebook_size: visual ids.
      levels: tokens that a block may have, strictly increasing.
      blocks: blocks of a clip.
    """

    codebook_size: int
    levels: tuple[int, ...]
    blocks: int

    @property
    def vocab(self) -> int:
        """Visual and length ids together."""
        return self.codebook_size + len(self.levels)

    @property
    def longest(self) -> int:
        """Positions of the longest sequence: its length tokens and all visual ones."""
        return self.blocks * (1 + self.levels[-1])

    def length_ids(self, lengths: Int[Array, "*b"]) -> Int[Array, "*b"]:
        """The length tokens that announce these lengths, each of which must be a level."""
        level = jnp.sum(lengths[..., None] > jnp.asarray(self.levels), axis=-1, dtype=jnp.int32)
        return self.codebook_size + level

    def announced(self, ids: Int[Array, "*b"]) -> Int[Array, "*b"]:
        """The lengths that these length tokens announce; for other ids the nearest level."""
        level = jnp.clip(ids - self.codebook_size, 0, len(self.levels) - 1)
        return jnp.asarray(self.levels, jnp.int32)[level]


def to_sequence(
    codes: Int[Array, "b s"], lengths: Int[Array, "b t"], grammar: Grammar, size: int
) -> tuple[Int[Array, "b {size}"], Int[Array, "b {size}"]]:
    """Tokens of clips as sequences of `size` positions, without the class that stands before them.

    Returns ids and kind (PADDING, VISUAL or LENGTH). s + blocks positions hold every sequence;
    positions beyond `size` are cut off.
    """
    rows = layout(lengths + 1, size)
    # Position p of block t stands behind t + 1 length tokens.
    source = jnp.arange(size) - rows.block - 1
    visual = jnp.take_along_axis(codes, jnp.clip(source, 0, codes.shape[1] - 1), axis=1)
    length = jnp.take_along_axis(grammar.length_ids(lengths), rows.block, axis=1)
    kind = jnp.where(rows.slot == 0, LENGTH, VISUAL)
    ids = jnp.where(rows.slot == 0, length, visual.astype(jnp.int32))
    return jnp.where(rows.valid, ids, 0), jnp.where(rows.valid, kind, PADDING)


def from_sequence(ids: Int[Array, "b n"], grammar: Grammar) -> Tokens:
    """The tokens of sequences that obey the grammar and end within their n positions.

    The inverse of `to_sequence`; codes and slot have n - blocks positions.
    """
    n = ids.shape[1]
    position, lengths = jnp.zeros((ids.shape[0], 1), jnp.int32), []
    for _ in range(grammar.blocks):
        at = jnp.take_along_axis(ids, jnp.clip(position, 0, n - 1), axis=1)
        lengths.append(grammar.announced(at))
        position = position + 1 + lengths[-1]
    lengths = jnp.concatenate(lengths, axis=1)
    rows = layout(lengths, n - grammar.blocks)
    source = jnp.arange(n - grammar.blocks) + rows.block + 1
    codes = jnp.take_along_axis(ids, jnp.clip(source, 0, n - 1), axis=1)
    return Tokens(
        codes=jnp.where(rows.valid, codes, 0).astype(jnp.int32),
        slot=jnp.where(rows.valid, rows.slot, -1),
        lengths=lengths,
    )


@flax.struct.dataclass
class Progress:
    """How far each sample's sequence has come.

    Attributes:
      announced: int32 [b], blocks whose length token has been written.
      due: int32 [b], visual tokens that the current block still lacks.
    """

    announced: jax.Array
    due: jax.Array


def start(batch: int) -> Progress:
    """Before the first length token."""
    return Progress(jnp.zeros(batch, jnp.int32), jnp.zeros(batch, jnp.int32))


def at_block_start(progress: Progress, grammar: Grammar) -> Bool[Array, " b"]:
    """Whether a length token comes next."""
    return (progress.due == 0) & (progress.announced < grammar.blocks)


def finished(progress: Progress, grammar: Grammar) -> Bool[Array, " b"]:
    """Whether nothing comes next: the last block has all its tokens."""
    return (progress.due == 0) & (progress.announced == grammar.blocks)


def allowed(progress: Progress, grammar: Grammar) -> Bool[Array, "b v"]:
    """The ids that may come next: levels at block starts, codes inside blocks, none at the end."""
    is_level = jnp.arange(grammar.vocab) >= grammar.codebook_size
    is_next = is_level == at_block_start(progress, grammar)[:, None]
    return is_next & ~finished(progress, grammar)[:, None]


def advance(progress: Progress, ids: Int[Array, " b"], grammar: Grammar) -> Progress:
    """After these ids, each of which was allowed; finished samples stay finished."""
    begins = at_block_start(progress, grammar)
    due = jnp.where(begins, grammar.announced(ids), jnp.maximum(progress.due - 1, 0))
    return Progress(progress.announced + begins, due)
