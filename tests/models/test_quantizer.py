"""The quantiser against plain NumPy, and its straight-through gradient."""

import jax
import jax.numpy as jnp
import numpy as np
from evatok_jax.models.quantizer import VectorQuantizer

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
    np.testing.assert_allclose(got.codebook_loss, error, atol=1e-5)
    np.testing.assert_allclose(got.commitment_loss, error, atol=1e-5)
    logits = -distance / 0.01
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    each = -(p * np.log(np.maximum(p, 1e-30))).sum(axis=1).mean()
    mean = p.mean(axis=0)
    whole = -(mean * np.log(mean + 1e-8)).sum()
    np.testing.assert_allclose(got.entropy_loss, each - whole, atol=1e-4)
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
    book = jax.grad(lambda v: MODEL.apply(v, z, ROWS).commitment_loss)(variables)
    assert not np.asarray(book["params"]["codebook"]).any()
    pulled = jax.grad(lambda z: MODEL.apply(variables, z, ROWS).codebook_loss)(z)
    assert not np.asarray(pulled).any()
