"""The quantisers against plain NumPy, and their straight-through gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evatok_jax.models.quantizers import (
    FiniteScalarQuantizer,
    KlBottleneck,
    LookupFreeQuantizer,
    VectorQuantizer,
    make_quantizer,
)
from evatok_jax.models.ragged import layout

LENGTHS = jnp.array([[3, 2], [1, 1]])
ROWS = layout(LENGTHS, 6)
MODEL = VectorQuantizer(16, 4)


def made():
    z = jax.random.normal(jax.random.key(1), (2, 6, 4))
    return MODEL.init(jax.random.key(0), z, ROWS), z


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_against_numpy():
    """Codes, losses and usage over real tokens only."""
    variables, z = made()
    got = MODEL.apply(variables, z, ROWS)
    book, real = unit(np.asarray(variables["params"]["codebook"])), np.asarray(ROWS.valid)
    points = unit(np.asarray(z))[real]
    distance = ((points[:, None] - book[None]) ** 2).sum(axis=-1)
    codes = distance.argmin(axis=1)
    np.testing.assert_array_equal(np.asarray(got.codes)[real], codes)
    assert (np.asarray(got.codes)[~real] == 0).all()
    error = ((points - book[codes]) ** 2).mean()
    np.testing.assert_allclose(got.losses["codebook"], error, atol=1e-5)
    np.testing.assert_allclose(got.losses["commitment"], error, atol=1e-5)
    logits = -distance / 0.01
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    each = -(p * np.log(np.maximum(p, 1e-30))).sum(axis=1).mean()
    mean = p.mean(axis=0)
    whole = -(mean * np.log(mean + 1e-8)).sum()
    np.testing.assert_allclose(got.losses["entropy"], each - whole, atol=1e-4)
    np.testing.assert_array_equal(got.usage, np.bincount(codes, minlength=16))


def test_gradients():
    """The decoder's gradient passes the codes by; each loss pulls its own side."""
    variables, z = made()
    z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    weight = jax.random.normal(jax.random.key(2), z.shape)

    def through(z):
        return jnp.sum(MODEL.apply(variables, z, ROWS).vectors * weight)

    # z is already of unit length: the gradient is the part of the weight along the sphere.
    tangent = weight - jnp.sum(weight * z, axis=-1, keepdims=True) * z
    np.testing.assert_allclose(jax.grad(through)(z), tangent, atol=1e-4)
    book = jax.grad(lambda v: MODEL.apply(v, z, ROWS).losses["commitment"])(variables)
    assert not np.asarray(book["params"]["codebook"]).any()
    pulled = jax.grad(lambda z: MODEL.apply(variables, z, ROWS).losses["codebook"])(z)
    assert not np.asarray(pulled).any()


def latents(channels):
    return 2.0 * jax.random.normal(jax.random.key(3), (2, 6, channels))


def test_stochastic_draws():
    """SVQ: frequencies of the codes are the softmax of distances; without keys the nearest."""
    model = VectorQuantizer(8, 4, sampling=0.5)
    z = latents(4)
    variables = model.init(jax.random.key(0), z, ROWS)
    book = unit(np.asarray(variables["params"]["codebook"]))
    logits = -((unit(np.asarray(z))[0, 0] - book) ** 2).sum(axis=-1) / 0.5
    p = np.exp(logits) / np.exp(logits).sum()
    draw = jax.jit(jax.vmap(lambda keys: model.apply(variables, z, ROWS, keys).codes[0, 0]))
    codes = draw(jax.random.split(jax.random.key(7), (4000, 2)))
    np.testing.assert_allclose(np.bincount(codes, minlength=8) / 4000, p, atol=0.03)
    nearest = model.apply(variables, z, ROWS).codes
    plain = VectorQuantizer(8, 4).apply(variables, z, ROWS).codes
    np.testing.assert_array_equal(nearest, plain)


def test_fsq_against_numpy():
    """Bounded, rounded, numbered in mixed radix; ids give back the vectors."""
    levels = (5, 4, 3)
    model, z = FiniteScalarQuantizer(levels), latents(3)
    got = model.apply({}, z, ROWS)
    high = np.array(levels, float)
    half, offset = (high - 1) * 1.001 / 2, np.where(high % 2 == 0, 0.5, 0.0)
    bounded = np.tanh(np.asarray(z, float) + np.arctanh(offset / half)) * half - offset
    rounded = np.round(bounded)
    np.testing.assert_allclose(got.vectors, rounded / (high // 2), atol=1e-5)
    codes = ((rounded + high // 2) * [1, 5, 20]).sum(axis=-1)
    real = np.asarray(ROWS.valid)
    np.testing.assert_array_equal(np.asarray(got.codes)[real], codes[real])
    assert codes.max() < model.codebook_size and codes.min() >= 0
    np.testing.assert_allclose(
        np.asarray(model.look_up(got.codes))[real], np.asarray(got.vectors)[real], atol=1e-6
    )
    slope = jax.grad(lambda z: model.apply({}, z, ROWS).vectors.sum())(z)
    bound = jax.grad(
        lambda z: jnp.sum((jnp.tanh(z + np.arctanh(offset / half)) * half) / (high // 2))
    )(z)
    np.testing.assert_allclose(slope, bound, atol=1e-5)


def test_lfq_against_numpy():
    """Signs are bits; entropies over all codes of a group."""
    model, z = LookupFreeQuantizer(3, entropy_temperature=1.0), latents(3)
    got, real = model.apply({}, z, ROWS), np.asarray(ROWS.valid)
    points = np.asarray(z)[real]
    np.testing.assert_array_equal(np.asarray(got.codes)[real], (points > 0) @ [1, 2, 4])
    book = np.array([[(c >> i & 1) * 2 - 1 for i in range(3)] for c in range(8)])
    logits = -((points[:, None] - book) ** 2).sum(axis=-1)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    entropy = -(p * np.log(p)).sum(axis=1).mean() + (p.mean(axis=0) * np.log(p.mean(axis=0))).sum()
    np.testing.assert_allclose(got.losses["entropy"], entropy, atol=1e-4)
    signs = np.where(points > 0, 1.0, -1.0)
    np.testing.assert_allclose(got.losses["commitment"], ((points - signs) ** 2).mean(), atol=1e-5)
    np.testing.assert_array_equal(np.asarray(model.look_up(got.codes))[real], signs)
    slope = jax.grad(lambda z: model.apply({}, z, ROWS).vectors.sum())(z)
    np.testing.assert_array_equal(slope, np.ones_like(slope))


def test_kl_against_numpy():
    """The divergence from the standard Gaussian; the mean without keys, a draw with them."""
    model, z = KlBottleneck(2), latents(4)
    got, real = model.apply({}, z, ROWS), np.asarray(ROWS.valid)
    mean, log_variance = np.split(np.asarray(z), 2, axis=-1)
    each = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(axis=-1)
    np.testing.assert_allclose(got.losses["kl"], each[real].mean(), rtol=1e-5)
    np.testing.assert_array_equal(got.vectors, mean)
    drawn = model.apply({}, z, ROWS, jax.random.split(jax.random.key(0), 2)).vectors
    assert np.abs(drawn - mean).max() > 0.01
    with pytest.raises(ValueError, match="no codes"):
        model.look_up(got.codes)


def test_names_and_sizes():
    """Unknown names and sizes that do not fit are refused."""
    assert make_quantizer("fsq", 60, 3, (5, 4, 3)).inputs == 3
    with pytest.raises(ValueError, match="'fsq' has 60 codes"):
        make_quantizer("fsq", 64, 3, (5, 4, 3))
    with pytest.raises(ValueError, match="unknown quantizer"):
        make_quantizer("vqq", 64, 3)
