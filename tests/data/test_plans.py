"""Plans: every clip once an epoch, whole; any place is found from its index; rows are full."""

from itertools import islice

import numpy as np
import pytest

from evatok_jax.data.plans import Buckets, Packing, first_fit, host_indices

CAPACITY = 4224  # 33 x 128
BEFORE = 5  # the lengths of four blocks, and the class


def evatok_lengths(count, seed=0):
    """Clips of 774 +- 300 tokens in four blocks of 32 to 512, as EVATok's router spends them."""
    rng = np.random.default_rng(seed)
    share = [0.12, 0.19, 0.27, 0.28, 0.14]
    return rng.choice([32, 64, 128, 256, 512], (count, 4), p=share).sum(axis=1) + BEFORE


def any_lengths(count, seed=0):
    """774 +- 300 tokens, each number possible."""
    tokens = np.random.default_rng(seed).normal(774, 300, count)
    return tokens.clip(128, 2048).round().astype(int) + BEFORE


def loops(lengths, capacity):
    """First fit decreasing, one clip after another."""
    room, rows = [], []
    for length in sorted(lengths.tolist(), reverse=True):
        row = next((r for r, free in enumerate(room) if free >= length), len(room))
        if row == len(room):
            room.append(capacity)
        room[row] -= length
        rows.append(row)
    return rows


@pytest.mark.parametrize("lengths", [evatok_lengths(400), any_lengths(300), np.array([7, 7, 7, 2])])
@pytest.mark.parametrize("capacity", [2053, CAPACITY])
def test_first_fit_is_that_of_plain_loops(lengths, capacity):
    rows = first_fit(lengths, capacity)
    # Clips of one length are alike: a row may name them in another order.
    ordered = np.sort(lengths)[::-1]
    assert sorted(zip(ordered, rows, strict=True)) == sorted(
        zip(ordered, loops(lengths, capacity), strict=True)
    )


@pytest.mark.parametrize("make", [evatok_lengths, any_lengths])
@pytest.mark.parametrize("count", [2000, 100_000])
def test_rows_are_full(make, count):
    lengths = make(count)
    tokens = lengths - BEFORE
    assert abs(tokens.mean() - 774) < 25 and abs(tokens.std() - 300) < 25
    plan = Packing(lengths, CAPACITY, seed=0)
    assert plan.share == pytest.approx(lengths.sum() / (plan.rows * CAPACITY))
    assert plan.share >= 0.97


def test_each_epoch_has_every_clip_once_and_whole():
    lengths = evatok_lengths(500)
    plan = Packing(lengths, CAPACITY, seed=3)
    epochs = [plan.take(np.arange(plan.rows) + e * plan.rows) for e in range(3)]
    for rows in epochs:
        there = rows.clips >= 0
        assert sorted(rows.clips[there]) == list(range(500))
        for clips, offsets, segments in zip(rows.clips, rows.offsets, rows.segments, strict=True):
            want, begin = np.full(CAPACITY, -1), 0
            for place, clip in enumerate(clips[clips >= 0]):
                assert offsets[place] == begin
                want[begin : begin + lengths[clip]] = place
                begin += lengths[clip]
            np.testing.assert_array_equal(segments, want)
    assert not np.array_equal(epochs[0].clips, epochs[1].clips)
    # The template stays: as many rows hold the same lengths.
    held = [sorted(tuple(lengths[c[c >= 0]]) for c in rows.clips) for rows in epochs]
    assert held[0] == held[1] == held[2]
    # Clips of one length change places, and rows change theirs.
    beside = [{frozenset(c[c >= 0]) for c in rows.clips} for rows in epochs]
    assert len(beside[0] & beside[1]) < 0.1 * plan.rows


def test_positions_count_within_each_clip():
    plan = Packing(np.array([3, 2, 4, 1]), 5, seed=0)
    rows = plan.take(np.arange(plan.rows))
    for segments, positions in zip(rows.segments, rows.positions, strict=True):
        for segment in set(segments) - {-1}:
            own = positions[segments == segment]
            assert own.tolist() == list(range(len(own)))
        assert (positions[segments < 0] == 0).all()


def packing(seed=0):
    return Packing(evatok_lengths(300), CAPACITY, seed)


def buckets(seed=0):
    return Buckets(evatok_lengths(301), 8, seed)


def taken(plan, index):
    found = plan.take(index)
    return found if isinstance(found, np.ndarray) else found.clips


@pytest.mark.parametrize("make", [packing, buckets])
def test_any_place_is_rebuilt(make):
    """What a fresh plan gives at an index is what one gives that has come all the way."""
    plan, size = make(), 8
    whole = [taken(plan, index) for index in islice(host_indices(size), 120)]
    assert not np.array_equal(whole[0], taken(make(seed=1), np.arange(size)))
    for start in (0, 5, 37, 119):
        (index,) = islice(host_indices(size, start * size), 1)
        np.testing.assert_array_equal(taken(make(), index), whole[start])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_global_batches(count):
    plan = packing()
    whole = [plan.take(index).segments for index in islice(host_indices(8, 16), 12)]
    parts = [
        [make.take(index).segments for index in islice(host_indices(8, 16, i, count), 12)]
        for i, make in enumerate(packing() for _ in range(count))
    ]
    for batch, rows in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(batch, np.concatenate(rows))


@pytest.mark.parametrize("count, size", [(301, 8), (64, 8), (5, 8), (9, 4)])
def test_buckets_have_every_clip_once_an_epoch(count, size):
    plan = Buckets(evatok_lengths(count), size, seed=2)
    flat = np.concatenate([plan.take(i) for i in islice(host_indices(size), 5 * count)])
    for epoch in flat[: len(flat) // count * count].reshape(-1, count):
        assert sorted(epoch) == list(range(count))
    assert len({tuple(epoch) for epoch in flat[: 4 * count].reshape(4, count)}) == 4


def test_batches_of_buckets_need_little_padding():
    """All but the one batch an epoch that begins in one epoch and ends in the next."""
    lengths = evatok_lengths(2003)
    plan = Buckets(lengths, 16, seed=0)
    batches = [lengths[plan.take(i)] for i in islice(host_indices(16), 3 * 2003 // 16)]
    padding = np.array([1 - batch.sum() / (len(batch) * batch.max()) for batch in batches])
    assert np.sum(padding > 0.1) <= 3 + 3  # the mixed ones, and where the rarest lengths meet
    assert np.median(padding) < 0.01
    means = np.array([batch.mean() for batch in batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2  # short and long ones take turns


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(ValueError, match="clip 1 has 11 positions, a row has 10"):
        Packing(np.array([3, 11]), 10, seed=0)
    with pytest.raises(ValueError, match="lengths of 1 or more"):
        Packing(np.array([3, 0]), 10, seed=0)
    with pytest.raises(ValueError, match="lengths of 1 or more"):
        Buckets(np.array([], int), 4, seed=0)
    with pytest.raises(ValueError, match="seed -1"):
        Buckets(np.array([1]), 4, seed=-1)
    with pytest.raises(ValueError, match="batch of 6 cannot be divided among 4"):
        next(host_indices(6, 0, 0, 4))
