"""Assignments and the proxy reward against plain loops and the paper's numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evatok_jax.allocation.assignments import (
    all_assignments,
    assignment_index,
    random_lengths,
    strata,
)
from evatok_jax.allocation.reward import (
    Normalizer,
    best_fixed,
    best_uniform,
    labels,
    percentile,
    proxy_reward,
)

LEVELS = (32, 64, 128, 256, 512)


def test_the_papers_625():
    """625 assignments, mean total 793.6, population std 349.14 (EVATok sec. 3.2)."""
    table = all_assignments(LEVELS, 4)
    assert table.shape == (625, 4)
    assert table.sum(axis=1).mean() == pytest.approx(793.6)
    assert table.sum(axis=1).std() == pytest.approx(349.14, abs=0.01)
    np.testing.assert_array_equal(assignment_index(table, LEVELS), np.arange(625))


def test_strata_hold_every_assignment_once():
    parts = strata(LEVELS, 4, 5)
    assert sorted(map(tuple, parts.reshape(-1, 4))) == sorted(itertools.product(LEVELS, repeat=4))
    tops = parts.sum(axis=2).max(axis=1)
    assert (np.diff(tops) >= 0).all()
    with pytest.raises(ValueError, match="do not divide"):
        strata(LEVELS, 4, 7)


@pytest.mark.parametrize("parts", [1, 3])
def test_random_lengths_are_uniform_and_follow_the_sample(parts):
    """Every assignment is equally likely; a sample's own does not depend on its place."""
    levels, blocks, batch = (1, 2, 4), 2, 64
    draw = jax.jit(lambda rng, keys: random_lengths(rng, keys, levels, blocks, parts))
    counts = np.zeros(9)
    for n in range(60):
        rng = jax.random.key(n)
        keys = jax.random.split(rng, batch)
        lengths = np.asarray(draw(rng, keys))
        counts += np.bincount(assignment_index(lengths, levels), minlength=9)
        np.testing.assert_array_equal(draw(rng, keys[::-1]), lengths[::-1])
    expected = 60 * batch / 9
    spread = 5 * np.sqrt(expected) * (1 if parts == 1 else np.sqrt(batch / 3))
    assert np.abs(counts - expected).max() < spread


def test_reward_by_hand():
    """Eq. 4-6 for one clip, with the sign that makes good LPIPS good."""
    table = np.array([[1, 1], [2, 2]])
    lpips = np.array([[0.4, 0.2], [0.5, 0.1]])
    norm = Normalizer.of(lpips, table)
    reward = proxy_reward(lpips, table, norm, 1.2, 0.8)
    for n in range(2):
        for a in range(2):
            quality = -(lpips[n, a] - lpips.mean()) / lpips.std()
            length = (table[a].sum() - 3.0) / 1.0
            assert reward[n, a] == pytest.approx(1.2 * quality - 0.8 * length)


def test_percentiles():
    """0 for the worst choice, 1 for the best; best-uniform and best-fixed are what they say."""
    table = all_assignments((1, 2), 2)
    reward = np.random.default_rng(0).normal(size=(50, 4))
    assert percentile(reward, labels(reward)) == pytest.approx(1.0)
    assert percentile(reward, reward.argmin(axis=1)) == pytest.approx(0.0)
    fixed = best_fixed(reward)
    assert all(reward[:, fixed].mean() >= reward[:, a].mean() for a in range(4))
    chosen = best_uniform(reward, table)
    assert set(chosen) <= {0, 3}
    assert (reward[np.arange(50), chosen] == reward[:, [0, 3]].max(axis=1)).all()


def test_relabelling_moves_with_the_weights():
    """More weight on quality never shortens the mean label."""
    table = all_assignments((1, 2, 4), 2)
    rng = np.random.default_rng(0)
    lpips = 1.0 / table.sum(axis=1) + 0.01 * rng.normal(size=(40, 9))
    norm = Normalizer.of(lpips, table)
    means = [
        table[labels(proxy_reward(lpips, table, norm, w, 2 - w))].sum(axis=1).mean()
        for w in (0.2, 0.8, 1.4, 2.0)
    ]
    assert means == sorted(means) and means[0] < means[-1]


def test_keys_are_typed():
    """The lengths come out as int32 whatever x64 says."""
    keys = jax.random.split(jax.random.key(0), 3)
    assert random_lengths(jax.random.key(1), keys, (1, 2), 2).dtype == jnp.int32
