"""Clips that share a row cost and teach what each does alone; parts of a batch, what it does whole.

Left out are the terms that are of a batch by design: the entropy of its mean assignment (weight 0
here), LeCam and virtual batch norm (no adversary here).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from evatok_jax import train as training
from evatok_jax.config import load_config
from evatok_jax.data.plans import Packing
from evatok_jax.geometry import geometry
from evatok_jax.losses.next_token import next_token_loss
from evatok_jax.models.packed import pack, packed_lengths
from evatok_jax.models.sequence import to_sequence
from evatok_jax.pretrained import lpips
from evatok_jax.stages.stage import load_stage

G, KEY = geometry("nano"), jax.random.key(0)


def stepped(stage, batch, frozen=None, state=None):
    """A state, the gradient that a step from it finds, and the step's metrics."""
    optimizers = {group: optax.trace(0.0) for group in stage.periods}  # keeps what it is given
    if state is None:
        state = training.init_state(stage, optimizers, KEY, batch)
    batch, static = stage.prepare(frozen, batch, KEY)
    step = training.make_step(
        stage, optimizers, tuple(stage.periods), static(), stage.config.accumulate
    )
    after, metrics = jax.jit(step)(state, frozen, batch, KEY)
    return state, {group: after.opt[group].trace for group in after.opt}, metrics


def assert_close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * max(np.abs(y).max(), 1e-3))


# ---- the tokenizer -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(0)
    names = ("record", "label", "window")
    more = {name: np.zeros(8, np.int32) for name in names}
    video = rng.integers(0, 256, (8, *G.clip_shape)).astype(np.uint8)
    return {"video": video, "key": np.arange(8, dtype=np.uint32), **more}


@pytest.fixture(scope="module")
def frozen():
    """LPIPS with random weights: no asset is needed."""
    rng = np.random.default_rng(1)

    def draw(spec):
        fan = np.prod(spec.shape[:-1]) if len(spec.shape) > 1 else 1.0
        return jnp.asarray(np.abs(rng.standard_normal(spec.shape)) / fan, jnp.float32)

    return {"lpips": jax.tree.map(draw, lpips.lpips_spec("alex"))}


def tokenizer_step(clips, frozen, state=None, **settings):
    config = load_config("configs/proxy.py:geometry=nano,size=tiny,batch=8")
    config.loss.update(lpips_net="alex", lpips_clips=0, entropy=0.0)
    config.model.update(unroll=1, position_init="normal", position_std=0.5)
    config.codebook.start = "uniform"
    config.lengths.row = settings.pop("row", 1)
    config.update(settings)
    return stepped(load_stage(config), clips, frozen, state)


@pytest.fixture(scope="module")
def alone(clips, frozen):
    """A step in which every clip has a row of its own, padded to the longest."""
    return tokenizer_step(clips, frozen)


@pytest.mark.parametrize(
    "settings",
    [dict(row=2, accumulate=2), pytest.param(dict(row=8), marks=pytest.mark.all)],
    ids=str,
)
def test_tokenizer(clips, frozen, alone, settings):
    state, gradient, metrics = alone
    _, other, found = tokenizer_step(clips, frozen, state, **settings)
    assert_close(other, gradient)
    names = ("loss/tokenizer", "l1", "lpips", "codebook", "commitment", "psnr", "tokens")
    for name in names:
        np.testing.assert_allclose(found[name], metrics[name], rtol=1e-5)
    assert found["padding"] < metrics["padding"]


# ---- the generator -----------------------------------------------------------------------------


def generator_stage(rows, accumulate=1):
    config = load_config(f"configs/generator.py:size=tiny,classes=5,batch={rows}")
    rates = ("token_dropout", "residual_dropout", "ffn_dropout", "class_dropout")
    with config.model.unlocked():
        config.model.update(dict.fromkeys(rates, 0.0))
    config.accumulate = accumulate
    return load_stage(config)


@pytest.fixture(scope="module")
def table():
    """17 clips of the generator's grammar."""
    rng = np.random.default_rng(3)
    lengths = rng.choice(G.levels, (17, G.blocks)).astype(np.int32)
    codes = rng.integers(1, 8192, (17, G.max_length)).astype(np.uint16)
    codes[np.arange(G.max_length) >= lengths.sum(axis=1, keepdims=True)] = 0
    return {"codes": codes, "lengths": lengths, "label": rng.integers(0, 5, 17)}


@pytest.fixture(scope="module")
def packed(table):
    """All clips in rows, the number of rows, and parameters in which every input matters."""
    stage = generator_stage(1)
    plan = Packing(packed_lengths(table), stage.capacity, seed=0)
    rows = 2 * -(-plan.rows // 2)
    batch = pack(table, plan.take(np.arange(plan.rows)), stage.model.config.grammar)
    spare = [(0, rows - plan.rows), (0, 0)]
    empty = {"kind": -1, "segment": -1}
    batch = {k: np.pad(v, spare, constant_values=empty.get(k, 0)) for k, v in batch.items()}
    batch |= {"key": np.arange(rows, dtype=np.uint32), "window": np.zeros(rows, np.int32)}
    state = training.init_state(stage, {"generator": optax.trace(0.0)}, KEY, batch)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape), jnp.float32), state.params
    )
    return batch, rows, state.replace(params=params)


def test_generator(table, packed):
    batch, rows, state = packed
    stage = generator_stage(rows)
    _, gradient, metrics = stepped(stage, batch, state=state)
    grammar = stage.model.config.grammar
    codes, lengths, label = (
        jnp.asarray(table[name], jnp.int32) for name in ("codes", "lengths", "label")
    )

    def alone(params):
        ids, kind = to_sequence(codes, lengths, grammar, grammar.longest)
        logits = stage.model.apply({"params": params["generator"]}, label, ids)
        return next_token_loss(logits, ids, kind)[0]

    loss, wanted = jax.jit(jax.value_and_grad(alone))(state.params)
    np.testing.assert_allclose(metrics["loss/generator"], loss, rtol=1e-5)
    assert_close(gradient, wanted)
    assert metrics["clips"] == 17
    assert metrics["tokens"] == pytest.approx(table["lengths"].sum(axis=1).mean())
    _, parts, again = stepped(generator_stage(rows, accumulate=2), batch, state=state)
    np.testing.assert_allclose(again["loss/generator"], loss, rtol=1e-5)
    assert_close(parts, wanted)
    assert again["clips"] == 17
