"""LPIPS equals the published numbers, and its weights are arguments."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from needs import PARITY, needs_assets, needs_parity
from PIL import Image

from evatok_jax.pretrained import lpips as module
from evatok_jax.pretrained.lpips import lpips, lpips_distance, lpips_features, lpips_spec

NETS = ("vgg", "alex")
distance = jax.jit(lpips, static_argnames=("net", "dtype"))


def random_params(net, seed=0):
    rng = np.random.default_rng(seed)

    def draw(leaf):
        scale = np.sqrt(2 / max(1, np.prod(leaf.shape[:-1])))
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree.map(draw, lpips_spec(net))


def random_images(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (*shape, 3)), jnp.float32)


@needs_assets("lpips_vgg", "lpips_alex")
@pytest.mark.parametrize("net", NETS)
def test_weights_fit_their_spec(net):
    def describe(leaf):
        return leaf.shape, np.dtype(leaf.dtype)

    loaded, spec = module.load_lpips(net), lpips_spec(net)
    assert jax.tree.structure(loaded) == jax.tree.structure(spec)
    assert jax.tree.map(describe, loaded) == jax.tree.map(describe, spec)


@needs_assets("lpips_vgg", "lpips_alex")
@needs_parity
@pytest.mark.parametrize("net", NETS)
def test_published_distances(net):
    params = module.load_lpips(net)
    expected = json.loads((PARITY / "lpips_expected.json").read_text())[net]

    def image(name):
        pixels = Image.open(PARITY / "lpips_imgs" / f"{name}.png").convert("RGB")
        return np.asarray(pixels, np.float32)[None] / 127.5 - 1

    for name in ("ex_p0", "ex_p1"):
        found = float(distance(params, image("ex_ref"), image(name), net=net)[0])
        assert found == pytest.approx(expected[f"ex_ref|{name}"], abs=1e-5)
    black = np.full((1, 64, 64, 3), -1, np.float32)
    found = float(distance(params, black, -black, net=net)[0])
    assert found == pytest.approx(expected["zeros|ones 64x64"], abs=1e-5)


@needs_assets("lpips_vgg", "lpips_alex")
@needs_parity
@pytest.mark.parametrize("net", NETS)
def test_distances_of_video_frames(net):
    video = np.load(PARITY / "i3d_logits_fixture.npz")["video"][:, [0, 8]] / np.float32(127.5) - 1
    expected = np.load(PARITY / "lpips_video_fixture.npz")[net]
    found = distance(module.load_lpips(net), video[:, 0], video[:, 1], net=net)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_features_can_be_shared():
    params, a, b = random_params("alex"), random_images(2, 32, 32), random_images(2, 32, 32, seed=2)

    @jax.jit
    def shared(params, a, b):
        features_a, features_b = (lpips_features(params, x, "alex") for x in (a, b))
        lengths = [jnp.linalg.norm(f, axis=-1).max() for f in features_a]
        return lpips_distance(params, features_a, features_b), jnp.stack(lengths)

    shared_distance, lengths = shared(params, a, b)
    np.testing.assert_allclose(shared_distance, distance(params, a, b, net="alex"), rtol=1e-6)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-5)
    np.testing.assert_allclose(distance(params, a, a, net="alex"), 0.0, atol=1e-12)


def test_gradient_is_finite_even_where_features_vanish():
    params = random_params("alex")
    params["conv_0"]["bias"] -= 100.0  # no feature of the first depth survives its ReLU
    images = random_images(1, 32, 32)
    gradient = jax.jit(jax.grad(lambda x: lpips(params, x, -images, "alex").sum()))(images)
    assert np.isfinite(gradient).all()


def test_weights_are_no_constants_of_the_program():
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    program = jax.make_jaxpr(lambda p, a, b: lpips(p, a, b, "vgg"))(
        lpips_spec("vgg"), images, images
    )
    assert sum(np.size(constant) for constant in program.consts) < 100


def test_half_precision_is_near():
    params, a, b = random_params("alex"), random_images(2, 32, 32), random_images(2, 32, 32, seed=2)
    full = distance(params, a, b, net="alex")
    half = distance(params, a, b, net="alex", dtype=jnp.bfloat16)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, full, atol=0.05 * float(jnp.abs(full).max()))


@pytest.mark.parametrize("net", NETS)
def test_small_images_are_refused(net):
    side = {"vgg": 16, "alex": 31}[net]
    shape = jax.eval_shape(
        lambda p, x: lpips(p, x, x, net),
        lpips_spec(net),
        jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32),
    )
    assert shape.shape == (1,)
    with pytest.raises(ValueError, match=f"{side} pixels"):
        lpips(random_params("alex"), *[jnp.zeros((1, side - 1, 64, 3))] * 2, net)


@pytest.mark.parametrize("side, size, padding", [(2, 3, 1), (1, 3, 1), (3, 5, 2)])
def test_convolution_of_small_maps(side, size, padding):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, side, side, 5)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((size, size, 5, 4)), jnp.float32)
    layout = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=layout
    )
    np.testing.assert_allclose(module._conv(x, kernel, 1, padding), expected, atol=1e-5)
