"""Sequences and their grammar against plain loops, for several numbers of blocks and levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evatok_jax.models import sequence
from evatok_jax.models.sequence import LENGTH, PADDING, VISUAL, Grammar

to_sequence = jax.jit(sequence.to_sequence, static_argnums=(2, 3))
from_sequence = jax.jit(sequence.from_sequence, static_argnums=1)
GRAMMARS = [Grammar(64, (8, 16, 32), 4), Grammar(5, (1, 2, 3, 7), 2), Grammar(9, (3,), 1)]


def random_tokens(grammar, batch, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.choice(grammar.levels, (batch, grammar.blocks)).astype(np.int32)
    lengths[0], lengths[1] = grammar.levels[0], grammar.levels[-1]
    codes = np.zeros((batch, grammar.blocks * grammar.levels[-1]), np.int32)
    for row, n in zip(codes, lengths.sum(1), strict=True):
        row[:n] = rng.integers(0, grammar.codebook_size, n)
    return codes, lengths


def written_out(codes, lengths, grammar):
    """The sequence of one clip, by the definition."""
    ids, kind, read = [], [], 0
    for length in lengths:
        ids.append(grammar.codebook_size + grammar.levels.index(length))
        kind.append(LENGTH)
        for _ in range(length):
            ids.append(codes[read])
            kind.append(VISUAL)
            read += 1
    return ids, kind


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_sequences_equal_the_loop_and_come_back(grammar):
    codes, lengths = random_tokens(grammar, 6)
    ids, kind = to_sequence(jnp.asarray(codes), jnp.asarray(lengths), grammar, grammar.longest)
    for b in range(len(codes)):
        want, want_kind = written_out(codes[b], lengths[b], grammar)
        rest = grammar.longest - len(want)
        np.testing.assert_array_equal(ids[b], want + [0] * rest)
        np.testing.assert_array_equal(kind[b], want_kind + [PADDING] * rest)
    back = from_sequence(ids, grammar)
    np.testing.assert_array_equal(back.codes, codes)
    np.testing.assert_array_equal(back.lengths, lengths)
    for b in range(len(codes)):
        slots = [slot for length in lengths[b] for slot in range(length)]
        slots += [-1] * (codes.shape[1] - len(slots))
        np.testing.assert_array_equal(back.slot[b], slots)


def test_a_smaller_static_size_holds_the_same_sequences():
    grammar = GRAMMARS[0]
    codes, lengths = random_tokens(grammar, 2)
    codes, lengths = jnp.asarray(codes)[:1, :32], jnp.asarray(lengths)[:1]
    small, _ = to_sequence(codes, lengths, grammar, 36)
    large, _ = to_sequence(codes, lengths, grammar, grammar.longest)
    np.testing.assert_array_equal(small, large[:, :36])
    np.testing.assert_array_equal(from_sequence(small, grammar).codes, codes)


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_the_grammar_allows_exactly_what_sequences_contain(grammar):
    codes, lengths = random_tokens(grammar, 5, seed=1)
    levels = set(range(grammar.codebook_size, grammar.vocab))
    visual = set(range(grammar.codebook_size))
    want = [written_out(c, n, grammar) for c, n in zip(codes, lengths, strict=True)]
    step = jax.jit(
        lambda progress, ids: (
            sequence.allowed(progress, grammar),
            sequence.finished(progress, grammar),
            sequence.advance(progress, ids, grammar),
        )
    )
    progress = sequence.start(len(codes))
    for position in range(grammar.longest + 2):
        ids = jnp.asarray([i[position] if position < len(i) else 0 for i, _ in want], jnp.int32)
        mask, finished, progress = step(progress, ids)
        for b, (_, kind) in enumerate(want):
            may = set(np.flatnonzero(mask[b]))
            assert bool(finished[b]) == (position >= len(kind))
            if position >= len(kind):
                assert may == set()
            else:
                assert may == (levels if kind[position] == LENGTH else visual)
