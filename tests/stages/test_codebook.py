"""Codebook health: counts forget as stated, dead codes alone move, k-means fits better."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from evatok_jax.models.quantizers import VectorQuantizer, normalize
from evatok_jax.models.ragged import layout
from evatok_jax.stages.codebook import SPARE, CodebookHealth

SIZE, DIM = 16, 4
ROWS = layout(jnp.asarray([[3, 4], [8, 0]], jnp.int32), 8)


def health(**changes):
    settings = dict(start="data", window=64, revive_every=2, revive_below=1.0)
    return CodebookHealth(ConfigDict(settings | changes), SIZE, DIM, seed=0)


def quantized():
    z = jax.random.normal(jax.random.key(0), (2, 8, DIM))
    book = jax.random.normal(jax.random.key(1), (SIZE, DIM))
    return VectorQuantizer(SIZE, DIM).apply({"params": {"codebook": book}}, z, ROWS)


def test_counts_forget_over_a_window():
    h, q = health(), quantized()
    state = h.init()
    np.testing.assert_allclose(state["seen"], 4.0)  # a window's equal share
    state, metrics = h.observe(state, q, ROWS, jax.random.key(0))
    tokens = float(ROWS.valid.sum())
    np.testing.assert_allclose(state["seen"], 4.0 * np.exp(-tokens / 64) + q.usage, rtol=1e-6)
    assert metrics["code_usage_window"] == np.mean(np.asarray(state["seen"]) >= 1.0)
    real = np.asarray(q.latents)[np.asarray(ROWS.valid)]
    gap = np.abs(np.asarray(state["spare"])[:, None] - real[None]).max(axis=-1).min(axis=1)
    assert gap.shape == (SPARE,) and gap.max() == 0, "spare latents are of real tokens only"


@pytest.mark.parametrize("step", [3, 4])
def test_dead_codes_alone_move_when_due(step):
    h = health()
    seen = jnp.where(jnp.arange(SIZE) < 5, 0.5, 2.0)
    spare = normalize(jax.random.normal(jax.random.key(2), (SPARE, DIM)))
    state = {"seen": seen, "spare": spare}
    books = [jnp.zeros((SIZE, DIM)), jnp.full((SIZE, DIM), 2.0)]
    moved, after, count = h.revive(books, state, jnp.asarray(step))
    dead = np.arange(SIZE) < (5 if step == 4 else 0)
    assert int(count) == dead.sum()
    for book, new in zip(books, moved, strict=True):
        np.testing.assert_array_equal(np.asarray(new)[~dead], np.asarray(book)[~dead])
        gap = np.abs(np.asarray(new)[dead][:, None] - np.asarray(spare)[None]).max(axis=-1)
        assert gap.shape[0] == len(set(gap.argmin(axis=1))), "no two share a latent"
        assert gap.size == 0 or gap.min(axis=1).max() == 0
    np.testing.assert_allclose(after["seen"], np.where(dead, 4.0, seen))


def test_kmeans_fits_a_cone_better_than_random_latents():
    z = jax.random.normal(jax.random.key(0), (512, DIM)) * 0.3 + 1.0
    errors = {}
    for start in ("data", "kmeans"):
        book = health(start=start).start(z, jax.random.key(1))
        np.testing.assert_allclose(jnp.linalg.norm(book, axis=1), 1.0, rtol=1e-5)
        errors[start] = float((2 - 2 * (normalize(z) @ book.T).max(axis=1)).mean())
    assert errors["kmeans"] < 0.8 * errors["data"] < 0.1


def test_an_unknown_start_is_named():
    with pytest.raises(ValueError, match="did you mean 'kmeans'"):
        health(start="kmean")
