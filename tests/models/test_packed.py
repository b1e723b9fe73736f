"""A packed row is each clip's own sequence, and no clip sees another."""

import jax.numpy as jnp
import numpy as np
import pytest

from evatok_jax.data.plans import Packing
from evatok_jax.models.packed import pack, packed_lengths
from evatok_jax.models.rows import Rows, visible
from evatok_jax.models.sequence import PADDING, Grammar, to_sequence

GRAMMAR = Grammar(codebook_size=50, levels=(2, 4, 8), blocks=3)
CAPACITY = 60


@pytest.fixture(params=[0, 6], ids=["class", "frames"])
def table(request):
    """40 clips, those for frame prediction with 6 given tokens."""
    rng = np.random.default_rng(1)
    lengths = rng.choice(GRAMMAR.levels, (40, 3)).astype(np.int32)
    codes = rng.integers(1, 50, (40, 24)).astype(np.uint8)
    codes[np.arange(24) >= lengths.sum(axis=1, keepdims=True)] = 0
    columns = {"codes": codes, "lengths": lengths, "label": rng.integers(0, 7, 40)}
    if request.param:
        columns["condition"] = rng.integers(0, 50, (40, request.param)).astype(np.uint8)
    return columns


@pytest.fixture
def packed(table):
    """Plan, its rows and what they hold."""
    plan = Packing(packed_lengths(table), CAPACITY, seed=0)
    rows = plan.take(np.arange(plan.rows))
    return rows, pack(table, rows, GRAMMAR)


@pytest.fixture
def alone(table):
    """The whole sequence of each clip, and what of it a generator is to predict."""
    codes, lengths = (jnp.asarray(table[name], jnp.int32) for name in ("codes", "lengths"))
    ids, kinds = map(np.asarray, to_sequence(codes, lengths, GRAMMAR, GRAMMAR.longest))

    def sequence(clip):
        before = [*table.get("condition", np.zeros((40, 0)))[clip]]
        before.append(GRAMMAR.vocab + table["label"][clip])
        kind = kinds[clip][kinds[clip] != PADDING]
        return np.append(before, ids[clip][: len(kind)]), np.append([PADDING] * len(before), kind)

    return sequence


def test_packed_is_each_clip_alone(packed, alone):
    rows, found = packed
    assert {a.dtype for a in found.values()} == {np.dtype(np.int32)}
    seen = 0
    for row, clips in enumerate(rows.clips):
        end = 0
        for place, clip in enumerate(clips[clips >= 0]):
            ids, kind = alone(clip)
            here = slice(rows.offsets[row, place], rows.offsets[row, place] + len(ids))
            assert here.start == end
            np.testing.assert_array_equal(found["inputs"][row, here], ids)
            np.testing.assert_array_equal(found["segment"][row, here], place)
            np.testing.assert_array_equal(found["position"][row, here], np.arange(len(ids)))
            np.testing.assert_array_equal(found["kind"][row, here], [*kind[1:], PADDING])
            wanted = np.where(np.append(kind[1:], PADDING) == PADDING, 0, np.append(ids[1:], 0))
            np.testing.assert_array_equal(found["targets"][row, here], wanted)
            end, seen = here.stop, seen + 1
        for name, empty in (("inputs", 0), ("targets", 0), ("kind", PADDING), ("segment", -1)):
            assert (found[name][row, end:] == empty).all()
    assert seen == 40


def test_masks_are_those_of_plain_loops(packed):
    _, found = packed
    segment, position = found["segment"][:3], found["position"][:3]
    rows = Rows(jnp.asarray(segment), jnp.asarray(position))
    mask = np.asarray(visible(rows, rows))
    for row in range(3):
        for query in range(CAPACITY):
            for key in range(CAPACITY):
                same = segment[row, query] == segment[row, key] != -1
                assert mask[row, query, key] == (same and key <= query)


def test_the_longest_clip_of_the_paper_fits_twice():
    lengths = np.full((2, 4), 512)
    assert packed_lengths({"lengths": lengths}).tolist() == [2053, 2053]
    assert Packing(packed_lengths({"lengths": lengths}), 4224, seed=0).rows == 1
