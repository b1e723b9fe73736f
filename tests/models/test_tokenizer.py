"""Properties of the tokenizer: causality, raggedness, block steps, sizes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evatok_jax.geometry import geometry
from evatok_jax.models.build import build_router, build_tokenizer
from evatok_jax.models.pyramid import pyramid
from evatok_jax.models.ragged import layout

NANO = geometry("nano")
SIZE = 80  # static size of the ragged batch below


@pytest.fixture(scope="module")
def made():
    """A tokenizer with random weights, and a ragged batch."""
    model = build_tokenizer(
        {"geometry": "nano", "size": "tiny", "codebook_size": 64, "qk_norm": True}
    )
    lengths = jnp.array([[8, 16, 8, 32], [32, 8, 8, 8], [16, 16, 16, 16]], jnp.int32)
    video = jnp.asarray(
        np.random.default_rng(0).uniform(-0.5, 0.5, (3, *NANO.clip_shape)), jnp.float32
    )
    params = jax.jit(partial(model.init, size=SIZE))(jax.random.key(0), video, lengths)["params"]
    return model, params, video, lengths


@pytest.fixture(scope="module")
def passes(made):
    """Compiled encode and decode, shared by the tests."""
    model = made[0]

    def encode(params, video, lengths, size):
        return model.apply({"params": params}, video, lengths, size, method="encode")

    def decode(params, vectors, lengths):
        return model.apply({"params": params}, vectors, lengths, method="decode")

    return jax.jit(encode, static_argnames="size"), jax.jit(decode)


def code_vectors(batch, size):
    """Unit vectors that stand for quantised tokens."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(batch, size, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_later_frames_change_nothing_earlier(made, passes):
    """Changing block t+1 changes no latent and no pixel of blocks <= t, exactly."""
    _, params, video, lengths = made
    encode, decode = passes
    base = np.asarray(encode(params, video, lengths, SIZE))
    rows = layout(lengths, SIZE)
    vectors = code_vectors(3, SIZE)
    pixels = np.asarray(decode(params, vectors, lengths))
    for t in range(1, NANO.blocks):
        changed = np.array(video)
        changed[:, t * NANO.block_frames :] *= -0.7
        latents = np.asarray(encode(params, jnp.asarray(changed), lengths, SIZE))
        earlier = np.asarray(rows.valid & (rows.block < t))
        assert (latents[earlier] == base[earlier]).all()
        at_t = np.asarray(rows.valid & (rows.block == t))
        assert np.abs(latents[at_t] - base[at_t]).max() > 1e-3
        other = np.where(np.asarray(rows.block >= t)[..., None], -vectors, vectors)
        out = np.asarray(decode(params, other, lengths))
        cut = t * NANO.block_frames
        assert (out[:, :cut] == pixels[:, :cut]).all()
        assert np.abs(out[:, cut:] - pixels[:, cut:]).max() > 1e-3


def test_gradient_of_early_pixels_by_late_frames_is_zero(made):
    """Causality by gradient, through both halves without the quantiser."""
    model, params, video, lengths = made

    def early(video):
        z = model.apply({"params": params}, video, lengths, SIZE, method="encode")
        out = model.apply({"params": params}, z, lengths, method="decode")
        return jnp.sum(out[:, : 2 * NANO.block_frames] ** 2)

    grad = np.asarray(jax.jit(jax.grad(early))(video))
    assert (grad[:, 2 * NANO.block_frames :] == 0).all()
    assert np.abs(grad[:, : 2 * NANO.block_frames]).max() > 0


def test_ragged_equals_each_clip_alone(made, passes):
    """A clip's latents and pixels do not depend on batch mates, nor on padding."""
    _, params, video, lengths = made
    encode, decode = passes
    together = np.asarray(encode(params, video, lengths, SIZE))
    vectors = code_vectors(3, SIZE)
    pixels = np.asarray(decode(params, vectors, lengths))
    for n, own in enumerate(lengths.sum(axis=1)):
        alone = encode(params, video[n : n + 1], lengths[n : n + 1], int(own))
        np.testing.assert_allclose(together[n, :own], alone[0], atol=1e-5, rtol=0)
        out = decode(params, vectors[n : n + 1, :own], lengths[n : n + 1])
        np.testing.assert_allclose(pixels[n], out[0], atol=1e-5, rtol=0)


def test_block_steps_equal_the_full_pass(made, passes):
    """Encoding and decoding block by block over a cache gives what the full pass gives."""
    model, params, video, lengths = made
    encode, decode = passes
    whole = np.asarray(encode(params, video, lengths, SIZE))
    vectors = code_vectors(3, SIZE)
    pixels = np.asarray(decode(params, vectors, lengths))
    rows = layout(lengths, SIZE)

    @jax.jit
    def encode_step(cache, frames, count, t):
        variables = {"params": params}
        return model.apply(variables, cache, frames, count, t, NANO.max_block, method="encode_step")

    @jax.jit
    def decode_step(cache, vectors, count, t):
        return model.apply({"params": params}, cache, vectors, count, t, method="decode_step")

    encoder = model.apply({"params": params}, 3, method="encoder_cache")
    decoder = model.apply({"params": params}, 3, method="decoder_cache")
    for t in range(NANO.blocks):
        frames = slice(t * NANO.block_frames, (t + 1) * NANO.block_frames)
        encoder, z = encode_step(encoder, video[:, frames], lengths[:, t], t)
        own = np.zeros((3, NANO.max_block, 8), np.float32)
        for n in range(3):
            begin, count = int(rows.starts[n, t]), int(lengths[n, t])
            np.testing.assert_allclose(z[n, :count], whole[n, begin : begin + count], atol=1e-5)
            own[n, :count] = vectors[n, begin : begin + count]
        decoder, out = decode_step(decoder, own, lengths[:, t], t)
        np.testing.assert_allclose(out, pixels[:, frames], atol=1e-5)


def test_remat_changes_nothing(made):
    """Gradients with and without rematerialisation agree."""
    model, params, video, lengths = made
    again = build_tokenizer(
        {
            "geometry": "nano",
            "size": "tiny",
            "codebook_size": 64,
            "qk_norm": True,
            "remat": "dots",
            "unroll": 2,
        }
    )

    def loss(model):
        def of(params):
            out, q = model.apply({"params": params}, video, lengths, SIZE)
            return jnp.mean(jnp.abs(out - video)) + q.losses["codebook"] + q.losses["entropy"]

        return jax.jit(jax.grad(of))(params)

    a, b = loss(model), loss(again)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_pyramid_against_plain_loops():
    """Each query is the mean of its cell, coarse to fine, width split first."""
    features = np.random.default_rng(0).normal(size=(1, 1, 4, 4, 2)).astype(np.float32)
    grids = [(1, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4)]
    expected = []
    for rows, columns in grids:
        for i in range(rows):
            for j in range(columns):
                cell = features[
                    0,
                    0,
                    i * 4 // rows : (i + 1) * 4 // rows,
                    j * 4 // columns : (j + 1) * 4 // columns,
                ]
                expected.append(cell.reshape(-1, 2).mean(axis=0))
    np.testing.assert_allclose(pyramid(jnp.asarray(features))[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "size", "low", "high"),
    [(build_tokenizer, "S-B", 143.8e6, 144.8e6), (build_router, "S", 19.5e6, 20.3e6)],
)
def test_paper_sizes(build, size, low, high):
    """Full-size models build abstractly and have the paper's parameter counts."""
    model = build({"geometry": "paper128", "size": size})
    g = geometry("paper128")
    video = jax.ShapeDtypeStruct((1, *g.clip_shape), jnp.float32)
    lengths = jax.ShapeDtypeStruct((1, g.blocks), jnp.int32)
    extra = (lengths, 1024) if build is build_tokenizer else ()

    def init(key, video, *rest):
        return model.init(key, video, *rest, *extra[1:])

    shapes = jax.eval_shape(init, jax.random.key(0), video, *extra[:1])
    assert low < sum(x.size for x in jax.tree.leaves(shapes)) < high
