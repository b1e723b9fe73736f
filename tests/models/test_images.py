"""Images, clips of one frame, through the CNN hybrid: nothing mixes that should not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evatok_jax.geometry import geometry
from evatok_jax.models.build import build_router, build_tokenizer
from evatok_jax.models.cnn import CnnDecoder, CnnEncoder
from evatok_jax.models.pyramid import pyramid
from evatok_jax.models.ragged import layout, take_slots
from evatok_jax.models.router import route, scores
from evatok_jax.models.sizes import CNNS, CnnConfig

G = geometry("image32")
IMAGE = {"geometry": "image32", "size": "tiny", "stem": "cnn", "codebook_size": 64}
LENGTHS = jnp.array([[12], [4], [32]], jnp.int32)  # 12 ends inside a scale of the pyramid
SIZE = 32


def noise(*shape):
    return jnp.asarray(np.random.default_rng(0).uniform(-0.5, 0.5, shape), jnp.float32)


def abstract(description):
    """Shapes of a model's parameters; nothing is computed."""
    model = build_tokenizer(description)
    g = model.config.geometry
    video = jax.ShapeDtypeStruct((1, *g.clip_shape), jnp.float32)
    lengths = jax.ShapeDtypeStruct((1, g.blocks), jnp.int32)
    init = partial(model.init, size=g.max_length)
    return jax.eval_shape(init, jax.random.key(0), video, lengths)["params"]


def draw(shapes):
    """Random weights for shapes, without compiling an initialisation."""
    rng = np.random.default_rng(1)

    def leaf(path, spec):
        x = rng.standard_normal(spec.shape, np.float32)
        if len(spec.shape) < 2 or path[-1].key != "kernel":
            return jnp.asarray((path[-1].key == "scale") + 0.1 * x)
        return jnp.asarray(x / np.sqrt(np.prod(spec.shape[:-1])))

    return jax.tree_util.tree_map_with_path(leaf, shapes)


@pytest.fixture(scope="module")
def made():
    """A hybrid with random weights, images, and both halves compiled."""
    model, video, params = build_tokenizer(IMAGE), noise(3, *G.clip_shape), draw(abstract(IMAGE))

    def apply(method, *args):
        return model.apply({"params": params}, *args, method=method)

    encode = jax.jit(partial(apply, "encode"), static_argnums=2)
    return apply, video, encode, jax.jit(partial(apply, "decode"))


def test_frames_do_not_mix():
    """A frame's features and pixels are its own: by value exactly, and by gradient."""
    parts = [part(CNNS["tiny"], jnp.dtype("float32")) for part in (CnnEncoder, CnnDecoder)]
    key, inputs = jax.random.key(0), (jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 4, 4, 32)))
    weights = [
        draw(jax.eval_shape(part.init, key, x)) for part, x in zip(parts, inputs, strict=True)
    ]

    @jax.jit
    def both(frames):
        features = parts[0].apply(weights[0], frames)
        pixels, back = jax.vjp(partial(parts[1].apply, weights[1]), features)
        return features, pixels, *back(pixels.at[1:].set(0.0))

    frames = noise(3, 32, 32, 3)
    found, other = both(frames), both(frames.at[1].multiply(-0.7))
    assert found[0].shape == (3, 4, 4, 32) and found[1].shape == frames.shape
    for a, b in zip(found, other, strict=True):
        assert (a[::2] == b[::2]).all()
    assert all(np.abs(a[1] - b[1]).max() > 1e-3 for a, b in zip(found[:2], other[:2], strict=True))
    assert (found[2][1:] == 0).all() and np.abs(found[2][0]).max() > 0


def test_later_blocks_change_no_earlier_latent():
    """With the CNN a video stays block-causal: its frames meet within their block alone."""
    description, g = IMAGE | {"geometry": "nano"}, geometry("nano")
    model, params = build_tokenizer(description), draw(abstract(description))
    video, lengths = noise(1, *g.clip_shape), jnp.full((1, g.blocks), 4, jnp.int32)

    @jax.jit
    def latents(video):
        return model.apply({"params": params}, video, lengths, 16, method="encode")

    cut = 2 * g.block_frames
    found, other = latents(video), latents(video.at[:, cut:].multiply(-0.7))
    assert (found[:, :8] == other[:, :8]).all()
    assert np.abs(found[:, 8:] - other[:, 8:]).max() > 1e-3


def test_ragged_equals_each_image_alone(made):
    _, video, encode, decode = made
    together = encode(video, LENGTHS, SIZE)
    vectors = noise(3, SIZE, 8)
    pixels = decode(vectors, LENGTHS)
    assert pixels.shape == video.shape and pixels.dtype == jnp.float32
    for n, own in enumerate(LENGTHS[:, 0].tolist()):
        same = np.full(3, n)  # the image among copies of itself: one program for all
        alone = encode(video[same], LENGTHS[same], SIZE)[0, :own]
        np.testing.assert_allclose(together[n, :own], alone, atol=1e-5, rtol=0)
        alone = decode(vectors[same].at[:, own:].set(9.0), LENGTHS[same])  # padding has no say
        np.testing.assert_allclose(pixels[n], alone[0], atol=1e-5, rtol=0)


def test_the_block_step_is_the_full_pass(made):
    """An image has one block: its step from an empty cache gives what the full pass gives."""
    apply, video, encode, decode = made
    own = LENGTHS[:, 0]
    step = jax.jit(partial(apply, "encode_step"), static_argnums=4)
    _, z = step(apply("encoder_cache", 3), video, own, 0, G.max_block)
    real = np.arange(SIZE) < LENGTHS
    whole = encode(video, LENGTHS, SIZE)
    np.testing.assert_allclose(np.asarray(z)[real], np.asarray(whole)[real], atol=1e-5)
    step = jax.jit(partial(apply, "decode_step"))
    _, frames = step(apply("decoder_cache", 3), whole, own, 0)
    np.testing.assert_allclose(frames, decode(whole, LENGTHS), atol=1e-5)


def test_a_level_inside_a_scale_holds_its_top_rows():
    """12 tokens are the 8 of the coarser scales and the upper four of a 2 x 4 scale."""
    grid = noise(1, 1, 4, 4, 5)
    rows = layout(jnp.array([[12]]), 12)
    queries = take_slots(pyramid(grid), rows)[0]
    np.testing.assert_allclose(queries[8:], grid[0, 0, :2].mean(axis=0), atol=1e-6)
    full = take_slots(pyramid(grid), layout(jnp.array([[32]]), 32))[0]
    np.testing.assert_array_equal(queries, full[:12])


def test_the_router_chooses_among_levels():
    """One block: as many assignments as levels, and the likeliest is a level."""
    g = geometry("image256")
    assert (g.blocks, g.assignments, g.max_length) == (1, 8, 512)
    model = build_router({"geometry": "image32", "size": "tiny"})
    video = noise(2, *G.clip_shape)
    params = draw(jax.eval_shape(model.init, jax.random.key(0), video))
    logits = jax.jit(model.apply)(params, video)
    assert logits.shape == (2, len(G.levels))
    table = np.array(G.levels)[:, None]
    best = scores(logits, table, G).argmax(axis=1)
    np.testing.assert_array_equal(route(logits, G), table[best])


def test_the_papers_size():
    """GigaTok's S-B has 232M, its MLP for the alignment included and 256 queries, not 512."""
    shapes = abstract({"geometry": "image256", "size": "S-B", "stem": "cnn", "remat": "layer"})
    total = sum(x.size for x in jax.tree.leaves(shapes))
    phi = sum(a * b + b for a, b in ((768, 3072), (3072, 3072), (3072, 768)))
    assert total + phi - 256 * (512 + 768) == pytest.approx(232e6, rel=0.003)
    recomputed = abstract(IMAGE | {"remat": "layer"})
    assert jax.tree.structure(recomputed) == jax.tree.structure(abstract(IMAGE))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="did you mean 'cnn'"):
        abstract(IMAGE | {"stem": "cn"})
    with pytest.raises(ValueError, match="5 scales has patches of 16x16 pixels, the geometry has"):
        abstract(IMAGE | {"size": "S-B"})
    assert 2 ** (len(CnnConfig().multipliers) - 1) == geometry("image256").patch[1]
