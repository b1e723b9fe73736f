"""The full recipe, tiny: tokenizer, discriminator and aligner keep out of each other's updates."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evatok_jax import train as training
from evatok_jax.config import load_config
from evatok_jax.flops import flops_by_scope
from evatok_jax.geometry import geometry
from evatok_jax.presets import add_adversary, add_alignment
from evatok_jax.pretrained import lpips
from evatok_jax.stages.aligner import Aligner
from evatok_jax.stages.stage import load_stage

G = geometry("nano")
GROUPS = ("tokenizer", "discriminator", "alignment")
WEIGHTS = ("weight", "own_weight", "lecam")
LEVEL, KEY = 4, jax.random.key(0)


def make_stage(kind="videomae"):
    """A stage with an adversary of that kind and an aligner."""
    config = load_config(f"configs/final.py:geometry=nano,size=tiny,batch=2,level={LEVEL}")
    with config.unlocked():
        add_adversary(config, kind)
        add_alignment(config)
    for settings in config.optim.values():
        settings.warmup = 0
    return load_stage(config)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "video": jnp.asarray(rng.integers(0, 256, (2, *G.clip_shape)), jnp.uint8),
        "lengths": jnp.full((2, G.blocks), LEVEL, jnp.int32),
        "mean_tokens": jnp.full(2, G.blocks * LEVEL, jnp.float32),
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

    def __init__(self, batch, frozen, kind):
        self.stage = stage = make_stage(kind)
        self.frozen = {name: frozen[name] for name in stage.frozen_spec()}
        self.batch, optimizers = batch, stage.optimizers(10)
        init = jax.jit(lambda batch: training.init_state(stage, optimizers, KEY, batch))
        self.state = init(batch)
        self.weights = {name: float(stage.config.adversary[name]) for name in WEIGHTS}

        @jax.jit
        def step(state, frozen, weights):
            with stage.config.adversary.ignore_type():  # weights as arguments: compiled once
                stage.config.adversary.update(weights)
                one = training.make_step(stage, optimizers, GROUPS, G.blocks * LEVEL)
                return one(state, frozen, batch, jax.random.key(1))

        self._step = step

    def __call__(self, state=None, frozen=None, **weights):
        given = self.state if state is None else state
        return self._step(given, frozen or self.frozen, self.weights | weights)


@pytest.fixture(scope="module")
def runs(batch, frozen):
    """One of each kind of adversary."""
    return {kind: Run(batch, frozen, kind) for kind in ("videomae", "transformer")}


@pytest.fixture(scope="module")
def run(runs):
    return runs["videomae"]


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
def test_weights_of_one_side_leave_the_other_alone(runs, kind):
    run = runs[kind]
    before, stronger = run()[0], run(weight=2 * run.weights["weight"])[0]
    assert same(before.params["discriminator"], stronger.params["discriminator"])
    assert not same(before.params["tokenizer"], stronger.params["tokenizer"])
    stricter = run(own_weight=2 * run.weights["own_weight"], lecam=0.1)[0]
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


@pytest.mark.parametrize("name", ["webvid_uniform_videomae", "webvid_proxy"])
def test_no_step_holds_a_large_constant(name):
    """At full size, position tables included: weights and tables are arguments or computed."""
    stage = load_stage(load_config(f"configs/{name}.py:batch=1"))
    optimizers, rng = stage.optimizers(10), jax.random.key(0)
    batch = stage.batch_spec()
    state = jax.eval_shape(lambda b: training.init_state(stage, optimizers, rng, b), batch)
    step = training.make_step(stage, optimizers, GROUPS, 1024)
    text = jax.jit(step).lower(state, stage.frozen_spec(), batch, rng).as_text()
    constants = re.findall(r'stablehlo.constant dense<"0x([0-9A-F]*)">', text)
    assert constants, "the small resizing matrices are found, so a large table would be"
    assert max(map(len, constants)) / 2 < 2**20


@pytest.mark.parametrize("kind", ["svq", "fsq", "lfq", "kl"])
def test_every_quantizer_has_its_place_in_the_step(kind, batch):
    """A tokenizer with it builds, steps (abstractly) and says what it loses."""
    config = load_config(f"configs/final.py:geometry=nano,size=tiny,batch=2,level={LEVEL}")
    config.model.quantizer = kind
    config.model.codebook_size = {"svq": 64, "fsq": 60, "lfq": 256, "kl": 1}[kind]
    config.model.quantizer_levels = (3, 4, 5) if kind == "fsq" else ()
    stage = load_stage(config)
    optimizers, key = stage.optimizers(10), jax.random.key(0)
    state = jax.eval_shape(lambda b: training.init_state(stage, optimizers, key, b), batch)
    step = training.make_step(stage, optimizers, ("tokenizer",), G.blocks * LEVEL)
    after, metrics = jax.eval_shape(step, state, stage.frozen_spec(), batch, key)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    losses = {"svq": "entropy", "fsq": "l1", "lfq": "entropy", "kl": "kl"}
    assert losses[kind] in metrics and "loss/tokenizer" in metrics


def test_before_its_start_nobody_asks_the_adversary(runs):
    """Not even its forward pass is in those steps; from then on it is in every one."""
    run, stage = runs["transformer"], make_stage("transformer")
    stage.config.adversary.update(start=3, every=2)
    stage = load_stage(stage.config)
    steps = training.Steps(stage, stage.optimizers(10), None)
    arguments = run.state, run.frozen, run.batch, KEY
    judged = []
    for number in (3, 4, 5):
        step = steps(number, G.blocks * LEVEL)
        flops = flops_by_scope(step, *arguments, scopes=stage.SCOPES)
        judged.append([flops[part] > 0 for part in ("fooling", "judging")])
        _, metrics = jax.eval_shape(step, *arguments)
        assert "adversarial" in metrics
    assert judged == [[False, False], [True, True], [True, False]]
    assert len(steps) == 3


def test_phi_may_stand_on_the_teacher(run):
    config = make_stage().config.alignment
    config.side = "teacher"
    aligner = Aligner(config, G, run.stage.model.config.decoder)
    params = aligner.init(jax.random.key(0))
    seen = run.stage.aligner.look(run.frozen, jnp.zeros((2, *G.clip_shape)))
    own = aligner._phi.apply({"params": params}, seen)
    assert own.shape == (2, G.blocks * G.block_patches, run.stage.model.config.decoder.width)
    np.testing.assert_allclose(aligner.loss(params, 3.0 * own, seen), -1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alignment.layer": 4}, "layers are 1 to 3"),
        ({"alignment.side": "both"}, "decoder or teacher"),
        (
            {"adversary.kind": "none"},
            "this tokenizer learns alignment, tokenizer, config.optim has",
        ),
        ({"adversary.kind": "transfomer"}, "did you mean 'transformer'"),
        ({"batch_size": 12}, "groups of 8 clips do not divide a batch of 12"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    config = make_stage().config
    config.update_from_flattened_dict(settings)
    with pytest.raises(ValueError, match=message):
        load_stage(config)
