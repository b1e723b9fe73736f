"""Adversarial losses, LeCam and DiffAug against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from evatok_jax.losses import adversarial
from evatok_jax.losses.adversarial import LecamAverages
from evatok_jax.losses.diffaug import cutout, diffaug, translate

RNG = np.random.default_rng(0)
REAL, FAKE = RNG.normal(1.0, 2.0, (4, 3)), RNG.normal(-1.0, 2.0, (4, 3))
KEYS = jax.random.split(jax.random.key(0), 4)


def softplus(x):
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


def test_generator_loss():
    """-log sigmoid of the logits."""
    got = adversarial.generator_loss(jnp.asarray(FAKE))
    np.testing.assert_allclose(got, softplus(-FAKE).mean(), atol=1e-6)


def test_discriminator_loss():
    """Cross-entropy with the noisy targets that the keys draw."""
    both = jax.vmap(jax.random.split, out_axes=1)(KEYS)
    noise = np.asarray(jax.vmap(jax.vmap(lambda k: jax.random.normal(k, (3,))))(both))
    noise = np.minimum(0.15 * np.abs(noise), 0.3)
    sides = []
    for logits, targets in ((REAL, 1.0 - noise[0]), (FAKE, noise[1])):
        p = 1.0 / (1.0 + np.exp(-logits))
        sides.append(-(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean())
    got = adversarial.discriminator_loss(jnp.asarray(REAL), jnp.asarray(FAKE), KEYS)
    np.testing.assert_allclose(got, np.mean(sides), atol=1e-5)
    assert noise.max() <= 0.3


def test_lecam():
    """The regulariser and its averages."""
    averages = LecamAverages(jnp.asarray(0.5), jnp.asarray(-0.25))
    got = adversarial.lecam(jnp.asarray(REAL), jnp.asarray(FAKE), averages)
    above, below = np.maximum(REAL + 0.25, 0), np.maximum(0.5 - FAKE, 0)
    np.testing.assert_allclose(got, (above**2).mean() + (below**2).mean(), atol=1e-5)
    after = averages.update(jnp.asarray(REAL), jnp.asarray(FAKE), 0.9)
    np.testing.assert_allclose(after.real, 0.45 + 0.1 * REAL.mean(), atol=1e-6)
    np.testing.assert_allclose(after.fake, -0.225 + 0.1 * FAKE.mean(), atol=1e-6)


def test_accuracy():
    """Half of both sides."""
    real, fake = jnp.asarray([[1.0], [-1.0]]), jnp.asarray([[-1.0], [1.0]])
    assert adversarial.accuracy(real, fake) == 0.5


def test_translation_and_cutout_against_numpy():
    """Shifted with zeros coming in; one rectangle of zeros, cut at the borders."""
    clip = RNG.uniform(0.1, 1.0, (2, 16, 24, 3)).astype(np.float32)
    for seed in range(5):
        key = jax.random.key(seed)
        a, b = jax.random.split(key)
        i = int(jax.random.randint(a, (), 0, 5)) - 2
        j = int(jax.random.randint(b, (), 0, 7)) - 3
        want = np.zeros_like(clip)
        rows, columns = np.arange(16), np.arange(24)
        for r in rows[(rows + i >= 0) & (rows + i < 16)]:
            for c in columns[(columns + j >= 0) & (columns + j < 24)]:
                want[:, r, c] = clip[:, r + i, c + j]
        np.testing.assert_array_equal(translate(jnp.asarray(clip), key), want)
        got = np.asarray(cutout(jnp.asarray(clip), key))
        hole = (got == 0).all(axis=(0, 3))
        assert 0 < hole.sum() <= 3 * 5
        assert hole.sum() == hole.any(axis=1).sum() * hole.any(axis=0).sum()
        np.testing.assert_array_equal(got[:, ~hole], clip[:, ~hole])


def test_augmentation_is_that_of_the_clip():
    """One draw for all frames, another for another clip, the same wherever it stands in a batch."""
    frame = RNG.uniform(-0.5, 0.5, (16, 16, 3)).astype(np.float32)
    video = jnp.broadcast_to(frame, (4, 3, *frame.shape))
    got = np.asarray(jax.jit(diffaug)(video, KEYS))
    for clip in got:
        np.testing.assert_allclose(clip, np.broadcast_to(clip[0], clip.shape), atol=1e-6)
    assert np.abs(got[0] - got[1]).max() > 0.01
    turned = np.asarray(jax.jit(diffaug)(video, KEYS[::-1]))
    np.testing.assert_allclose(turned[::-1], got, atol=1e-6)
