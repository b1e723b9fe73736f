"""The next-token loss against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evatok_jax.losses.next_token import next_token_loss
from evatok_jax.models.sequence import LENGTH, PADDING, VISUAL

IDS = np.array([[5, 1, 2, 0], [6, 3, 0, 0]], np.int32)
KIND = np.array([[LENGTH, VISUAL, VISUAL, PADDING], [LENGTH, VISUAL, PADDING, PADDING]], np.int32)


def test_loss_and_metrics_equal_the_loop():
    logits = np.random.default_rng(0).normal(size=(2, 4, 7)).astype(np.float32)
    logits[0, 0, 5] = 9
    loss, metrics = next_token_loss(*map(jnp.asarray, (logits, IDS, KIND)))
    log_p = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    each = {LENGTH: [], VISUAL: []}
    for b, i in np.ndindex(IDS.shape):
        if KIND[b, i] != PADDING:
            each[KIND[b, i]].append(-log_p[b, i, IDS[b, i]])
    assert loss == pytest.approx(np.mean(each[LENGTH] + each[VISUAL]), rel=1e-5)
    assert metrics["length_loss"] == pytest.approx(np.mean(each[LENGTH]), rel=1e-5)
    assert metrics["visual_loss"] == pytest.approx(np.mean(each[VISUAL]), rel=1e-5)
    right = [logits[0, 0].argmax() == 5, logits[1, 0].argmax() == 6]
    assert metrics["length_accuracy"] == pytest.approx(np.mean(right))


def test_padding_has_no_gradient_and_may_be_all():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 7)), jnp.float32)
    gradient = jax.grad(lambda x: next_token_loss(x, jnp.asarray(IDS), jnp.asarray(KIND))[0])
    moved = np.abs(gradient(logits)).sum(-1) > 0
    np.testing.assert_array_equal(moved, KIND != PADDING)
    loss, _ = next_token_loss(logits, jnp.asarray(IDS), jnp.full((2, 4), PADDING))
    assert loss == 0
