"""The full recipe, tiny: tokenizer, discriminator and aligner keep out of each other's updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evatok_jax import train as training
from evatok_jax.config import load_config
from evatok_jax.geometry import geometry
from evatok_jax.presets import add_adversary, add_alignment
from evatok_jax.pretrained import lpips
from evatok_jax.stages.stage import load_stage

G = geometry("nano")
GROUPS = ("tokenizer", "discriminator", "alignment")
LEVEL = 4


def make_stage(kind="videomae", **changes):
    """A stage with an adversary of that kind and an aligner; `changes` are of `adversary`."""
    config = load_config(f"configs/final.py:geometry=nano,size=tiny,batch=2,level={LEVEL}")
    with config.unlocked():
        add_adversary(config, kind)
        add_alignment(config)
    config.adversary.update(changes)
    for settings in config.optim.values():
        settings.warmup = 0
    return load_stage(config)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "video": jnp.asarray(rng.integers(0, 256, (2, *G.clip_shape)), jnp.uint8),
        "lengths": jnp.full((2, G.blocks), LEVEL, jnp.int32),
        "key": jnp.arange(2),
        "window": jnp.zeros(2, jnp.int32),
    }


@pytest.fixture(scope="module")
def frozen():
    """The teachers, and LPIPS with random weights: no asset is needed."""
    rng = np.random.default_rng(1)

    def draw(spec):
        fan = np.prod(spec.shape[:-1]) if len(spec.shape) > 1 else 1.0
        return jnp.asarray(np.abs(rng.standard_normal(spec.shape)) / fan, jnp.float32)

    stage = make_stage()
    teachers = stage.adversary.load_frozen() | stage.aligner.load_frozen()
    return teachers | {"lpips": jax.tree.map(draw, lpips.lpips_spec("vgg"))}


class Run:
    """A stage, a fresh state of it, and one compiled step of all groups."""

    def __init__(self, batch, frozen, kind="videomae", **changes):
        self.stage = make_stage(kind, **changes)
        self.frozen = {name: frozen[name] for name in self.stage.frozen_spec()}
        self.batch, optimizers = batch, self.stage.optimizers(10)
        key = jax.random.key(0)
        self.state = training.init_state(self.stage, optimizers, key, batch)
        self.step = jax.jit(training.make_step(self.stage, optimizers, GROUPS, G.blocks * LEVEL))

    def __call__(self, state=None, frozen=None):
        given = self.state if state is None else state
        return self.step(given, frozen or self.frozen, self.batch, jax.random.key(1))


@pytest.fixture(scope="module")
def run(batch, frozen):
    return Run(batch, frozen)


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


def finite(tree):
    return jax.tree.all(jax.tree.map(lambda x: bool(jnp.isfinite(x).all()), tree))


def test_every_group_learns_and_every_metric_is_there(run):
    after, metrics = run()
    assert not any(same(after.params[g], run.state.params[g]) for g in GROUPS)
    names = {"adversarial", "alignment", "adversary/real", "adversary/fake", "adversary/accuracy"}
    names |= {"adversary/lecam", "l1", "lpips", "codebook", "entropy"}
    names |= {f"grad_norm/{g}" for g in GROUPS}
    assert names <= set(metrics) and finite(metrics)


@pytest.mark.parametrize("kind", ["videomae", "transformer"])
def test_weights_of_one_side_leave_the_other_alone(run, batch, frozen, kind):
    before = run()[0] if kind == "videomae" else Run(batch, frozen, kind)()[0]
    stronger = Run(batch, frozen, kind, weight=0.6)()[0]
    assert same(before.params["discriminator"], stronger.params["discriminator"])
    assert not same(before.params["tokenizer"], stronger.params["tokenizer"])
    weight = 2 * make_stage(kind).config.adversary.own_weight
    stricter = Run(batch, frozen, kind, own_weight=weight, lecam=0.1)()[0]
    for group in ("tokenizer", "alignment"):
        assert same(before.params[group], stricter.params[group])
    assert not same(before.params["discriminator"], stricter.params["discriminator"])


def test_no_number_in_one_loss_stays_in_its_group(run):
    lecam = jax.tree.map(lambda x: x + jnp.nan, run.state.state["adversary"]["lecam"])
    ill = run.state.replace(
        state={**run.state.state, "adversary": {**run.state.state["adversary"], "lecam": lecam}}
    )
    after, metrics = run(ill)
    assert np.isnan(metrics["loss/discriminator"])
    assert finite(after.params["tokenizer"]) and finite(after.params["alignment"])
    blind = {**run.frozen, "lpips": jax.tree.map(lambda x: x + jnp.nan, run.frozen["lpips"])}
    after, metrics = run(frozen=blind)
    assert np.isnan(metrics["loss/tokenizer"]) and finite(after.params["discriminator"])
