"""The layout of ragged rows against plain loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from evatok_jax.models.ragged import check_lengths, layout, static_size, take_firsts, take_slots


@pytest.mark.parametrize("blocks", [1, 4, 7])
def test_layout_against_loops(blocks):
    """Every position's block, slot and validity, for random lengths."""
    rng = np.random.default_rng(blocks)
    lengths = rng.choice([1, 3, 8], size=(16, blocks))
    size = int(lengths.sum(axis=1).max()) + 2
    rows = layout(jnp.asarray(lengths), size)
    for n, own in enumerate(lengths):
        flat = [(t, i) for t, count in enumerate(own) for i in range(count)]
        assert np.asarray(rows.valid[n]).sum() == len(flat)
        for position, (block, slot) in enumerate(flat):
            assert rows.block[n, position] == block and rows.slot[n, position] == slot
        assert [flat.index((t, 0)) for t in range(blocks)] == list(np.asarray(rows.starts[n]))


def test_gathers_pick_the_right_entries():
    """take_slots and take_firsts against indexing; padding is zero."""
    lengths = jnp.asarray([[2, 3], [1, 1]])
    table = jnp.arange(2 * 2 * 3, dtype=jnp.float32).reshape(2, 2, 3, 1)
    rows = layout(lengths, 6)
    picked = take_slots(table, rows)[..., 0]
    np.testing.assert_array_equal(picked, [[0, 1, 3, 4, 5, 0], [6, 9, 0, 0, 0, 0]])
    np.testing.assert_array_equal(take_firsts(picked[..., None], rows)[..., 0], [[0, 3], [6, 9]])


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
