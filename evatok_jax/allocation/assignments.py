"""Assignments: which level each block of a clip has, numbered like digits, first block first."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key


def all_assignments(levels: tuple[int, ...], blocks: int) -> np.ndarray:
    """Every assignment of levels to blocks, int32 [levels ** blocks, blocks] of token counts.

    Row i has the digits of i in base len(levels), the first block's digit first.
    """
    return np.array(list(itertools.product(levels, repeat=blocks)), np.int32)


def assignment_index(lengths, levels: tuple[int, ...]) -> np.ndarray:
    """Row numbers in `all_assignments` of lengths [..., blocks]; every length must be a level."""
    digits = np.searchsorted(np.asarray(levels), np.asarray(lengths))
    place = len(levels) ** np.arange(digits.shape[-1])[::-1]
    return (digits * place).sum(axis=-1)


def strata(levels: tuple[int, ...], blocks: int, count: int) -> np.ndarray:
    """The assignments sorted by total length and cut into `count` equal parts, [count, n, blocks].

    A batch that draws from one part holds clips of similar length and so needs little padding; when
    parts are drawn uniformly, every assignment is still equally likely.

    Raises ValueError where `count` does not divide the number of assignments.
    """
    table = all_assignments(levels, blocks)
    if len(table) % count:
        raise ValueError(f"{count} strata do not divide {len(table)} assignments")
    order = np.argsort(table.sum(axis=1), kind="stable")
    return table[order].reshape(count, -1, blocks)


def random_lengths(
    rng: Key[Array, ""],
    keys: Key[Array, " b"],
    levels: tuple[int, ...],
    blocks: int,
    parts: int = 1,
) -> Int[Array, "b t"]:
    """A uniformly random assignment for each sample (EVATok sec. 3.2.1).

    `rng` is the batch's and picks the stratum; `keys` are the samples' own and pick within it.
    """
    table = jnp.asarray(strata(levels, blocks, parts))
    part = table[jax.random.randint(rng, (), 0, parts)]
    pick = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(part)))(keys)
    return part[pick]


def fixed_lengths(lengths: tuple[int, ...], batch: int) -> Int[Array, "b t"]:
    """The same assignment for every sample."""
    return jnp.broadcast_to(jnp.asarray(lengths, jnp.int32), (batch, len(lengths)))
