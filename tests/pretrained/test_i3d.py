"""I3D equals its original on real clips, and its short cuts equal the plain operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from needs import PARITY, needs_assets, needs_parity

from evatok_jax.evaluators.fvd import clip_features
from evatok_jax.pretrained import i3d


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@needs_assets("i3d")
def test_weights_fit_their_spec():
    def describe(leaf):
        return leaf.shape, np.dtype(leaf.dtype)

    loaded, spec = i3d.load_i3d(), i3d.i3d_spec()
    assert jax.tree.structure(loaded) == jax.tree.structure(spec)
    assert jax.tree.map(describe, loaded) == jax.tree.map(describe, spec)


@needs_assets("i3d")
@needs_parity
def test_logits_of_real_clips():
    with np.load(PARITY / "i3d_logits_fixture.npz") as known:
        video, expected = known["video"], known["logits"]
    found = clip_features(i3d.load_i3d(), video)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def plain_conv(x, kernel, stride):
    dimensions = ("NDHWC", "DHWIO", "NDHWC")
    return lax.conv_general_dilated(x, kernel, (stride,) * 3, "SAME", dimension_numbers=dimensions)


@pytest.mark.parametrize(
    "frames, side, taps, stride",
    [
        (8, 6, 3, 1),
        (9, 5, 3, 1),
        (15, 5, 3, 1),
        (2, 4, 3, 1),
        (8, 4, 1, 1),
        (16, 12, 7, 2),
        (11, 9, 7, 2),
    ],
)
def test_convolution_equals_the_plain_one(frames, side, taps, stride):
    x = draw(2, frames, side, side + 2, 5)
    kernel = draw(taps, taps, taps, 5, 4, seed=1)
    expected = plain_conv(x, kernel, stride)
    found = jax.jit(i3d._conv3d, static_argnums=2)(x, kernel, stride)
    stacked = i3d._stacked_conv3d(x, kernel, stride)
    scale = float(jnp.abs(expected).max())
    assert found.shape == expected.shape == stacked.shape
    np.testing.assert_allclose(found, expected, atol=1e-5 * scale)
    np.testing.assert_allclose(stacked, expected, atol=2e-6 * scale)


@pytest.mark.parametrize(
    "window, stride", [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (1, 1, 1)), ((2, 2, 2), (2, 2, 2))]
)
def test_pool_by_axes_equals_the_plain_one(window, stride):
    x = draw(2, 5, 7, 8, 3)
    expected = lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *stride, 1), "SAME")
    np.testing.assert_array_equal(i3d._max_pool(x, window, stride), expected)


def test_program_has_no_weights_and_any_length_from_nine_frames():
    def logits(frames, dtype=jnp.float32):
        video = jax.ShapeDtypeStruct((1, frames, 64, 64, 3), jnp.float32)
        return jax.make_jaxpr(lambda p, v: i3d.i3d_logits(p, v, dtype))(i3d.i3d_spec(), video)

    for program in (logits(9), logits(30, jnp.bfloat16)):
        assert program.out_avals[0].shape == (1, 400)
        assert program.out_avals[0].dtype == jnp.float32
        assert sum(np.size(constant) for constant in program.consts) < 1000
    with pytest.raises(ValueError, match="9 frames"):
        logits(8)
