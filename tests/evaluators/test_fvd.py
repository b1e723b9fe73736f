"""The Frechet distance against independent computations; streams and merges against the whole."""

import json

import numpy as np
import pytest
import scipy.linalg
from needs import PARITY, needs_assets, needs_parity

from evatok_jax.evaluators.fvd import FvdStats, bootstrap_interval, clip_features, frechet
from evatok_jax.pretrained.i3d import load_i3d


def features(n, d=16, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + 3 * rng.standard_normal(d)


def by_sqrtm(a, b):
    """The textbook formula with divisor N, in float64."""
    root = scipy.linalg.sqrtm(np.cov(a.T, bias=True) @ np.cov(b.T, bias=True)).real
    traces = np.var(a, axis=0).sum() + np.var(b, axis=0).sum()
    return np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + traces - 2 * np.trace(root)


@pytest.mark.parametrize("counts", [(50, 40), (17, 300)])
def test_equals_the_textbook_formula(counts):
    a, b = (features(n, seed=seed) for seed, n in enumerate(counts))
    found = frechet(FvdStats.of(a), FvdStats.of(b))
    assert found == pytest.approx(by_sqrtm(a, b), rel=1e-9)
    assert found == pytest.approx(frechet(FvdStats.of(b), FvdStats.of(a)), rel=1e-12)
    assert frechet(FvdStats.of(a), FvdStats.of(a)) == pytest.approx(0, abs=1e-9)


def test_singular_covariances_of_few_clips():
    # On two lines that meet at an angle, (S1 S2)^(1/2) has the trace s1 s2 |cos|.
    d, cosine = 400, 0.6
    u, v = np.zeros(d), np.zeros(d)
    u[0], v[0], v[1] = 1, cosine, 0.8
    along = np.array([[-3.0], [3.0]])
    found = frechet(FvdStats.of(along * u), FvdStats.of(along * v / 3))
    assert found == pytest.approx(9 + 1 - 2 * 3 * 1 * cosine, rel=1e-12)


@pytest.mark.parametrize("cuts", [(1, 2, 3), (30, 31, 90), (64,), ()])
def test_stream_and_merge_equal_the_whole(cuts):
    whole = features(120) + 1e4  # a mean far from zero costs no digits
    parts = np.split(whole, cuts)
    streamed, halves = FvdStats.of(*parts), [FvdStats.of(*parts[:1]), FvdStats.of(whole[:0])]
    for part in parts[1:]:
        halves[1].update(part)
    halves[0].merge(halves[1])
    for stats in (streamed, halves[0]):
        assert stats.count == 120 and len(stats.factor) <= 160
        np.testing.assert_allclose(stats.mean, whole.mean(axis=0), rtol=1e-13)
        np.testing.assert_allclose(
            stats.covariance, np.cov(whole.T, bias=True), rtol=1e-9, atol=1e-9
        )


def test_refuses_what_has_no_distance():
    one, two = FvdStats.of(features(1)), FvdStats.of(features(2))
    with pytest.raises(ValueError, match="two clips"):
        frechet(one, two)
    with pytest.raises(ValueError, match="NaN"):
        two.update(np.full((1, 16), np.nan))
    with pytest.raises(ValueError, match="paired"):
        bootstrap_interval(features(3), features(4))


def test_bootstrap_is_seeded_and_pairs_clips():
    real = features(40)
    fake = real + 0.1 * features(40, seed=1)
    low, high = bootstrap_interval(real, fake, 20, seed=3)
    assert low < high
    assert (low, high) == bootstrap_interval(real, fake, 20, seed=3)
    assert (low, high) != bootstrap_interval(real, fake, 20, seed=4)
    assert bootstrap_interval(real, real, 3)[1] < 1e-9
    assert bootstrap_interval(real, real, 3, paired=False)[0] > 0.1


@needs_assets("i3d")
@needs_parity
def test_black_against_white_is_the_published_number():
    known = json.loads((PARITY / "fvd_zeros_ones.json").read_text())["published_tf_T30"]
    clips = np.stack([np.zeros((30, 64, 64, 3), np.uint8), np.full((30, 64, 64, 3), 255, np.uint8)])
    black, white = clip_features(load_i3d(), clips, chunk=1)
    found = frechet(*(FvdStats.of(np.repeat(side[None], 8, axis=0)) for side in (black, white)))
    assert found == pytest.approx(known, abs=0.01)


@needs_parity
def test_two_halves_of_real_clips():
    logits = np.load(PARITY / "i3d_logits_fixture.npz")["logits"].astype(np.float64)
    first, second = logits[:4], logits[4:]
    found = frechet(FvdStats.of(first), FvdStats.of(second))
    assert found == pytest.approx(by_sqrtm(first, second), rel=1e-6)
