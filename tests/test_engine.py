"""Sampling: announced lengths, independence from the batch, and a cache that changes nothing."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evatok_jax import engine
from evatok_jax.models import sequence
from evatok_jax.models.generator import Generator, GeneratorConfig

CONFIG = GeneratorConfig(64, (8, 16, 32), 4, 5, width=32, layers=2, heads=2, ffn_multiple=32)
SHORT = replace(CONFIG, codebook_size=11, levels=(1, 2, 5), blocks=2, layers=1)
CLASSES = np.arange(6) % 5


def randomised(config, given=None):
    ids = jnp.zeros((1, 2), jnp.int32)
    init, label = Generator(config).init, jnp.zeros(1, jnp.int32)
    tree = jax.eval_shape(init, jax.random.key(0), label, ids, None, given)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), tree)


@pytest.fixture(scope="module")
def long_params():
    return randomised(CONFIG)


@pytest.fixture(scope="module")
def params():
    return randomised(SHORT)


def draw(params, classes=CLASSES, seed=0, config=SHORT, **given):
    return engine.sample(Generator(config), params, classes, jax.random.key(seed), **given)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def read(ids, config):
    """Lengths and codes of one written sequence, by the definition; checks every id."""
    lengths, codes, at = [], [], 0
    for _ in range(config.blocks):
        level = ids[at] - config.codebook_size
        assert 0 <= level < len(config.levels), "a block starts with a length token"
        length = config.levels[level]
        block = ids[at + 1 : at + 1 + length]
        assert len(block) == length
        assert (block < config.codebook_size).all(), "a block holds visual tokens only"
        lengths.append(length)
        codes.extend(block)
        at += 1 + length
    assert not ids[at:].any(), "nothing follows the last block"
    return lengths, codes


def test_a_thousand_samples_have_exactly_the_announced_lengths(long_params):
    """On the nano geometry, with guidance, while the caches grow."""
    model, keys = Generator(CONFIG), jax.random.split(jax.random.key(0), 1000)
    classes = jnp.arange(1000, dtype=jnp.int32) % 5
    how = engine.options(guidance=1.5)
    ids = engine.sample_ids(model, long_params, classes, keys, how, None, (64, 132))
    tokens = engine.read_sequences(ids, CONFIG.grammar)
    seen = set()
    for b, row in enumerate(np.asarray(ids)):
        lengths, codes = read(row, CONFIG)
        np.testing.assert_array_equal(tokens.lengths[b], lengths)
        np.testing.assert_array_equal(tokens.codes[b, : len(codes)], codes)
        assert (tokens.slot[b] >= 0).sum() == len(codes)
        seen.add(tuple(lengths))
    assert len(seen) > 40, "the lengths are the model's choice"


@pytest.mark.parametrize("guidance_on_lengths", [True, False])
def test_greedy_samples_equal_recomputing_every_step(params, guidance_on_lengths):
    """Guided, against full passes over what is written so far, in a plain loop."""
    model, grammar, scale = Generator(SHORT), SHORT.grammar, 2.0
    given = {"guidance": scale, "temperature": 0, "guidance_on_lengths": guidance_on_lengths}
    tokens = draw(params, **given)
    full = jax.jit(model.apply)
    for b, label in enumerate(CLASSES):
        written = []
        for block in range(SHORT.blocks):
            length = None
            while length is None or length > 0:
                ids = np.zeros((2, grammar.longest), np.int32)
                ids[:, : len(written)] = written
                pair = jnp.asarray([label, SHORT.num_classes], jnp.int32)
                cond, uncond = full({"params": params}, pair, jnp.asarray(ids))[:, len(written)]
                logits = np.asarray(uncond + scale * (cond - uncond))
                if length is None:
                    logits = logits if guidance_on_lengths else np.asarray(cond)
                    level = int(np.argmax(logits[SHORT.codebook_size :]))
                    length = SHORT.levels[level]
                    assert tokens.lengths[b, block] == length
                    written.append(SHORT.codebook_size + level)
                else:
                    written.append(int(np.argmax(logits[: SHORT.codebook_size])))
                    length -= 1
        codes = [i for i in written if i < SHORT.codebook_size]
        np.testing.assert_array_equal(tokens.codes[b, : len(codes)], codes)


def test_frame_prediction_equals_recomputing_every_step():
    """Greedy and guided, after given tokens that the caches take in at once."""
    config = replace(SHORT, condition=(5, 2), condition_frames=3)
    rng = np.random.default_rng(2)
    given = jnp.asarray(rng.integers(0, 11, (2, 7)), jnp.int32)
    model, params = Generator(config), randomised(config, given[:1])
    how = {"guidance": 1.5, "temperature": 0, "condition": given}
    tokens = draw(params, [0, 3], config=config, **how)
    ids, _ = sequence.to_sequence(
        tokens.codes, tokens.lengths, config.grammar, config.grammar.longest
    )
    full = jax.jit(model.apply)
    cond, uncond = (
        full({"params": params}, jnp.asarray(labels), ids, None, given)
        for labels in ([0, 3], [5, 5])
    )
    logits = uncond + 1.5 * (cond - uncond)
    for b, row in enumerate(np.asarray(ids)):
        at = 0
        for length in np.asarray(tokens.lengths)[b]:
            visual = slice(at + 1, at + 1 + length)
            assert row[at] == 11 + np.argmax(logits[b, at, 11:])
            np.testing.assert_array_equal(row[visual], np.argmax(logits[b, visual, :11], axis=-1))
            at += 1 + length
    with pytest.raises(ValueError, match="0 given tokens: this generator is for 7"):
        draw(params, [0, 3], config=config)
    with pytest.raises(ValueError, match="whole numbers from 0 to 10"):
        draw(params, [0, 3], config=config, condition=given + 11)


def test_a_sample_depends_on_its_index_not_on_its_place_or_mates(params):
    drawn = draw(params, guidance=1.5)
    assert same(drawn, draw(params, guidance=1.5))
    assert not same(drawn, draw(params, guidance=1.5, seed=1))
    turned = np.asarray([3, 5, 0, 4, 1, 2])
    again = draw(params, CLASSES[turned], indices=turned, guidance=1.5)
    assert same(jax.tree.map(lambda x: x[turned], drawn), again)
    # Other batch sizes round differently; these draws have no near ties.
    part = draw(params, CLASSES[2:5], indices=np.arange(2, 5), guidance=1.5)
    assert same(jax.tree.map(lambda x: x[2:5], drawn), part)
    alike = draw(params, np.zeros(6, int), guidance=1.5)
    assert len({tuple(row) for row in np.asarray(alike.codes)}) > 1


def test_growing_caches_change_nothing(params):
    assert engine.growing(132) == (132,)
    assert engine.growing(2052) == (256, 512, 1024, 2052)
    keys = jax.random.split(jax.random.key(0), 6)
    given = Generator(SHORT), params, jnp.asarray(CLASSES), keys, engine.options(), None
    assert same(engine.sample_ids(*given, (12,)), engine.sample_ids(*given, (5, 10, 12)))


def test_forced_lengths_are_kept(params):
    lengths = np.random.default_rng(0).choice(SHORT.levels, (6, 2))
    tokens = draw(params, lengths=lengths)
    np.testing.assert_array_equal(tokens.lengths, lengths)
    np.testing.assert_array_equal((tokens.slot >= 0).sum(1), lengths.sum(1))


def test_no_guidance_is_scale_one_and_the_null_class_scale_zero(params):
    def greedy(classes, **given):
        return draw(params, classes, temperature=0, **given)

    assert same(greedy(CLASSES), greedy(CLASSES, guidance=1 + 1e-6))
    assert same(greedy(CLASSES, guidance=0), greedy(np.full(6, 5)))


def test_choices_stay_in_the_mask_the_top_k_and_the_nucleus():
    """Against a plain loop over what may be drawn."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 12)).astype(np.float32) * 2
    mask = np.arange(12) < 9
    keys = jax.random.split(jax.random.key(0), 2000)
    order = [i for i in np.argsort(-logits[0]) if mask[i]]
    p = np.exp(logits[0, order] / 0.7) / np.exp(logits[0, order] / 0.7).sum()

    @partial(jax.jit, static_argnums=0)
    def drawn(how):
        many = jnp.broadcast_to(logits, (2000, 12))
        return engine.choose(many, jnp.broadcast_to(mask, many.shape), keys, how)

    for given in ({"top_k": 50}, {"top_k": 5}, {"top_p": 0.6}, {"top_k": 3, "top_p": 0.5}):
        how = engine.options(temperature=0.7, **given)
        kept = order[: given.get("top_k", 12)]
        share = p[: len(kept)] / p[: len(kept)].sum()
        before = np.cumsum(share) - share
        kept = [i for i, b in zip(kept, before, strict=True) if b <= given.get("top_p", 1)]
        share = share[: len(kept)] / share[: len(kept)].sum()
        counts = np.bincount(drawn(how), minlength=12)
        assert counts.sum() == counts[kept].sum(), given
        np.testing.assert_allclose(counts[kept] / 2000, share, atol=0.05)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"classes": [6]}, "class 6 is unknown: this generator has classes 0 to 4, and 5 for none"),
        ({"classes": [-1]}, "class -1 is unknown"),
        ({"classes": [0.5]}, "classes must be a non-empty vector of whole numbers"),
        ({"classes": []}, "non-empty"),
        ({"indices": [0, 1]}, "2 indices do not fit 1 classes"),
        ({"lengths": [[1, 3]]}, r"lengths\[0, 1\] is 3"),
        ({"lengths": [[1, 2], [1, 2]]}, "2 rows of lengths do not fit 1 classes"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
    ],
)
def test_wrong_requests_say_what_is_wrong(params, given, message):
    with pytest.raises(ValueError, match=message):
        draw(params, **{"classes": [0], **given})
