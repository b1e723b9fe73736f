"""The generator: sizes, causality, dropout by sample, and cached decoding."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evatok_jax.geometry import geometry
from evatok_jax.models.generator import (
    Generator,
    GeneratorConfig,
    empty_caches,
    grow_caches,
    unstack_layers,
)

TINY = GeneratorConfig(64, (8, 16, 32), 4, 5, width=32, layers=2, heads=2, ffn_multiple=32)
LENGTH = 24


def abstract(config, given=None):
    ids = jnp.zeros((1, 2), jnp.int32)
    init, label = Generator(config).init, jnp.zeros(1, jnp.int32)
    return jax.eval_shape(init, jax.random.key(0), label, ids, None, given)["params"]


@pytest.fixture(scope="module")
def params():
    """Weights large enough that every input matters."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32), abstract(TINY)
    )


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, TINY.grammar.vocab, (3, LENGTH)).astype(np.int32)
    return jnp.asarray([0, 4, 5], jnp.int32), jnp.asarray(ids)


def forward(params, classes, ids, keys=None, config=TINY):
    return jax.jit(Generator(config).apply)({"params": params}, classes, ids, keys)


@pytest.mark.parametrize(
    ("layers", "width", "heads", "millions"),
    [(12, 768, 12, 99.2), (24, 1024, 16, 327.3), (30, 1280, 20, 633.3)],
)
def test_sizes_of_the_paper(layers, width, heads, millions):
    paper = geometry("paper128")
    config = GeneratorConfig(8192, paper.levels, paper.blocks, 101, width, layers, heads)
    assert config.positions == 2053
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract(config)))
    assert count / 1e6 == pytest.approx(millions, rel=5e-4)


def test_the_output_head_starts_at_zero():
    small = replace(TINY, layers=1)
    key = jax.random.key(0, impl="rbg")
    ids = jnp.zeros((1, 2), jnp.int32)
    start = jax.jit(Generator(small).init)(key, jnp.zeros(1, jnp.int32), ids)["params"]
    assert not start["head"].any()
    assert start["token_embedding"].std() == pytest.approx(0.02, rel=0.1)


def test_a_position_sees_the_class_and_earlier_ids_only(params, batch):
    classes, ids = batch
    before = forward(params, classes, ids)
    after = forward(params, classes, ids.at[:, 10].set((ids[:, 10] + 1) % 64))
    np.testing.assert_array_equal(before[:, :11], after[:, :11])
    assert (before[:, 11:] != after[:, 11:]).any(-1).all()
    other = forward(params, (classes + 1) % 6, ids)
    assert (before != other).any(-1).all()


def test_cached_decoding_equals_the_full_pass(params, batch):
    """Every position to 1e-5, while caches grow and one sample pauses for three steps."""
    classes, ids = batch
    want = forward(params, classes, ids)
    inputs = jnp.concatenate([TINY.class_token(classes)[:, None], ids[:, :-1]], axis=1)

    @jax.jit
    def step(params, caches, cursor, alive):
        feed = jnp.take_along_axis(inputs, jnp.minimum(cursor, LENGTH - 1)[:, None], axis=1)
        return Generator(TINY).apply(
            {"params": unstack_layers(params)},
            caches,
            feed,
            cursor[:, None],
            alive,
            method=Generator.decode_step,
        )

    caches, cursor = empty_caches(TINY, 3, 12), np.zeros(3, np.int32)
    for number in range(LENGTH + 3):
        alive = cursor < LENGTH
        alive[1] &= number not in (4, 5, 11)
        if cursor.max() == 12:
            caches = grow_caches(caches, LENGTH + 1)
        logits, caches = step(params, caches, jnp.asarray(cursor), jnp.asarray(alive))
        for b in np.flatnonzero(alive):
            np.testing.assert_allclose(logits[b], want[b, cursor[b]], atol=1e-5)
        cursor = cursor + alive
    assert (cursor == LENGTH).all()


def test_given_tokens_are_seen_and_a_wrong_number_is_refused(batch):
    classes, ids = batch
    config = replace(TINY, condition=(4, 2), condition_frames=5)
    given = jnp.arange(18, dtype=jnp.int32).reshape(3, 6)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32), abstract(config, given[:1])
    )
    full = jax.jit(Generator(config).apply)
    logits = full({"params": params}, classes, ids, None, given)
    assert logits.shape == (3, LENGTH, config.grammar.vocab)
    other = full({"params": params}, classes, ids, None, given.at[1, 0].add(1))
    assert (logits[1] != other[1]).any(-1).all() and (logits[0] == other[0]).all()
    for wrong in (None, given[:, 1:]):
        with pytest.raises(ValueError, match=r"this generator is for 6 \(5 frames\)"):
            Generator(config).apply({"params": params}, classes, ids, None, wrong)


def test_unrolled_and_rematerialised_layers_change_nothing(params, batch):
    def loss(params, config):
        return jnp.square(Generator(config).apply({"params": params}, *batch)).mean()

    value = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    want, gradient = value(params, TINY)
    for remat in ("layer", "dots"):
        got, other = value(params, replace(TINY, unroll=2, remat=remat))
        np.testing.assert_allclose(got, want, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max())


def test_dropout_belongs_to_a_sample_not_to_its_place(params, batch):
    classes, ids = batch
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(3))
    trained = forward(params, classes, ids, keys)
    turned = jnp.asarray([2, 0, 1])
    again = forward(params, classes[turned], ids[turned], keys[turned])
    np.testing.assert_allclose(trained[turned], again, atol=1e-5)
    assert np.abs(trained - forward(params, classes, ids)).max() > 0.1


def test_class_dropout_is_the_null_class(params, batch):
    classes, ids = batch
    never = replace(TINY, token_dropout=0.0, residual_dropout=0.0, ffn_dropout=0.0)
    keys = jax.random.split(jax.random.key(0), 3)
    always = forward(params, classes, ids, keys, replace(never, class_dropout=1.0))
    null = forward(params, jnp.full(3, TINY.num_classes, jnp.int32), ids)
    np.testing.assert_allclose(always, null, atol=1e-5)


def test_low_precision_keeps_fp32_parameters_and_logits(params, batch):
    config = replace(TINY, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract(config))} == {jnp.dtype("float32")}
    logits = forward(params, *batch, config=config)
    assert logits.dtype == jnp.float32
    want = forward(params, *batch)
    assert np.abs(logits - want).mean() < 0.05 * np.abs(want).mean()


def test_configs_that_cannot_be():
    with pytest.raises(ValueError, match="3 heads do not divide the width 32"):
        replace(TINY, heads=3)
    with pytest.raises(ValueError, match="strictly increasing"):
        replace(TINY, levels=(8, 8))
    with pytest.raises(ValueError, match="133 positions"):
        ids = jnp.zeros((1, 134), jnp.int32)
        jax.eval_shape(Generator(TINY).init, jax.random.key(0), jnp.zeros(1, jnp.int32), ids)
