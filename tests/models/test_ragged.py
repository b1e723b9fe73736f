"""The layout of ragged rows against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evatok_jax.models.ragged import (
    block_rows,
    check_lengths,
    deal,
    layout,
    static_size,
    take_firsts,
    take_slots,
    token_keys,
)


@pytest.mark.parametrize(("blocks", "clips"), [(1, 1), (4, 1), (7, 1), (4, 2), (3, 8)])
def test_layout_against_loops(blocks, clips):
    """Every position's clip, block, slot, place and validity, for random lengths."""
    rng = np.random.default_rng(blocks)
    lengths = rng.choice([1, 3, 8], size=(16, blocks))
    size = int(lengths.reshape(-1, clips * blocks).sum(axis=1).max()) + 2
    rows = layout(jnp.asarray(lengths), size, clips=clips)
    found = np.stack([rows.clip, rows.segment, rows.block, rows.slot, rows.place], axis=-1)
    for n in range(16 // clips):
        wanted, firsts = [], []
        for c in range(clips):
            place = 0
            for t, count in enumerate(lengths[n * clips + c]):
                firsts.append(len(wanted))
                wanted += [(n * clips + c, c, t, i, place + i) for i in range(count)]
                place += count
        assert rows.valid[n].tolist() == [True] * len(wanted) + [False] * (size - len(wanted))
        np.testing.assert_array_equal(found[n, : len(wanted)], wanted)
        assert rows.starts[n].tolist() == firsts
    assert rows.total == lengths.sum()


def test_gathers_pick_the_right_entries():
    """take_slots and take_firsts against indexing; padding is zero."""
    lengths = jnp.asarray([[2, 3], [1, 1]])
    table = jnp.arange(2 * 2 * 3, dtype=jnp.float32).reshape(2, 2, 3, 1)
    rows = layout(lengths, 6)
    picked = take_slots(table, rows)[..., 0]
    np.testing.assert_array_equal(picked, [[0, 1, 3, 4, 5, 0], [6, 9, 0, 0, 0, 0]])
    np.testing.assert_array_equal(take_firsts(picked[..., None], rows)[..., 0], [[0, 3], [6, 9]])


def test_a_row_of_clips_is_each_of_them_alone():
    """What is looked up, and the keys that tokens draw with, do not depend on the row."""
    lengths = jnp.asarray([[2, 3], [1, 1], [3, 1], [2, 2]])
    table = jnp.arange(4 * 2 * 3, dtype=jnp.float32).reshape(4, 2, 3, 1)
    alone, shared = layout(lengths, 6), layout(lengths, 8, clips=2)
    keys = jax.random.split(jax.random.key(0), 4)

    def of_tokens(rows):
        drawn = jax.random.key_data(token_keys(keys, rows))[rows.valid]
        return take_slots(table, rows)[rows.valid], drawn

    for one, two in zip(of_tokens(alone), of_tokens(shared), strict=True):
        np.testing.assert_array_equal(one, two)


def test_patches_of_a_row_belong_to_their_clips():
    rows = block_rows(6, 2, 3, clips=3)
    for n in range(2):
        assert rows.segment[n].tolist() == [c for c in range(3) for _ in range(6)]
        assert rows.order[n].tolist() == [0, 0, 0, 1, 1, 1] * 3


@pytest.mark.parametrize("rows", [1, 2, 4, 16])
def test_rows_are_dealt_evenly(rows):
    """Each clip once, in order within its row; rows differ by less than two clips may."""
    tokens = np.random.default_rng(0).integers(100, 2000, 64)
    order = np.asarray(deal(jnp.asarray(tokens), rows)).reshape(rows, -1)
    assert sorted(order.ravel()) == list(range(64))
    assert (np.diff(order, axis=1) > 0).all()
    held, undealt = (np.ptp(x.sum(axis=1)) for x in (tokens[order], tokens.reshape(rows, -1)))
    assert held <= min(np.ptp(tokens), undealt / 4)


def test_static_size():
    """The smallest multiple that holds the longest row."""
    assert static_size(65, 64, 512) == 128
    assert static_size(64, 64, 512) == 64
    assert static_size(500, 64, 512) == 512


def test_check_lengths_names_the_culprit():
    """Wrong shapes and lengths that are no level are refused by name."""
    with pytest.raises(ValueError, match=r"lengths\[0, 1\] is 9"):
        check_lengths([[8, 9]], (8, 16), 2)
    with pytest.raises(ValueError, match="shape"):
        check_lengths([8, 8], (8, 16), 2)
