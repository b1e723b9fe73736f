"""The compile check: its step is the loop's, and its numbers are the compiler's.

What needs the TPU compiler is compiled small, for slices of a few chips.
"""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from needs import needs_libtpu
from toy_stage import ToyStage, toy_config

from evatok_jax import cli, sharding, tpu
from evatok_jax import train as training
from evatok_jax.compile_check import DoesNotFit, check, price, render
from evatok_jax.config import load_config
from evatok_jax.hlo import Program

V5E = tpu.CHIPS["v5e"]
TINY = "configs/gpt_b_ucf.py:runlocal"
TOY = Path(__file__).parent / "toy_stage.py"


@pytest.mark.parametrize("step", [1, 2])
def test_the_step_is_the_one_that_trains(step):
    """From shapes, and from what a run begins with: the same program, where all learn and not."""
    config, mesh, rng = toy_config(), sharding.make_mesh(), jax.random.key(0)
    stage = ToyStage(config)
    optimizers = stage.optimizers(config.run.steps)
    batch = sharding.put_batch(next(stage.batches(0)), mesh)
    with jax.set_mesh(mesh):
        state = training.init_state(stage, optimizers, rng, batch)
        shardings = sharding.param_shardings(state, mesh)
        state = jax.device_put(state, shardings)
        steps = training.Steps(stage, optimizers, shardings)
        real = steps(step, False).lower(state, {}, batch, rng)
        function, arguments, learning = training.abstract_step(stage, mesh, step)
        abstract = function.lower(*arguments)
    assert abstract.as_text() == real.as_text()
    assert learning == (("model", "critic") if step == 2 else ("model",))


def test_by_default_every_group_learns():
    stage = ToyStage(toy_config())
    stage.periods, stage.starts = {"model": 1, "critic": 5}, {"critic": 20_000}
    _, _, learning = training.abstract_step(stage, sharding.make_mesh())
    assert learning == ("model", "critic")


def test_static_sizes_are_those_of_the_rule():
    """A fixed rule has one, others have all multiples up to the longest."""
    from evatok_jax.stages.stage import load_stage

    uniform = load_stage(load_config("configs/webvid_uniform.py:batch=1"))
    assert uniform.static_sizes() == (1024,)
    proxy = load_stage(load_config("configs/webvid_proxy.py:batch=1"))
    assert proxy.static_sizes() == tuple(range(256, 2049, 256))
    generator = load_stage(load_config("configs/gpt_b_ucf.py:batch=1"))
    assert generator.static_sizes()[::15] == (256, 2052)


@pytest.fixture
def own_device(monkeypatch):
    """This machine's CPU for a slice: it prices nothing, but everything else is there."""
    monkeypatch.setattr(tpu, "describe", lambda name: (jax.devices()[:1], V5E))


def test_a_report_on_this_machine(own_device):
    """Memory adds up, parts are found, and operations are told from those done again."""
    config = load_config(TINY)
    config.model.remat = "layer"
    report = check(config, "v5e:1x1")
    memory = report["memory_bytes"]
    together = memory["arguments"] + memory["temporaries"] + memory["outputs"] - memory["aliased"]
    assert memory["total"] == together and memory["aliased"] > 0
    assert {"layers", "layers/attend", "layers/ffn", "logits", "optimiser"} <= set(report["parts"])
    assert 0 < report["flops"]["model"] < report["flops"]["counted"]
    whole = sum(r["model_flops"] for part, r in report["parts"].items() if "/" not in part)
    assert whole == pytest.approx(report["flops"]["model"])
    page = render(report)
    assert "layers" in page and "estimated step" in page


def test_what_does_not_fit_is_one_message_and_exit_code_1(monkeypatch, capsys, tmp_path):
    small = replace(V5E, memory=100.0)
    monkeypatch.setattr(tpu, "describe", lambda name: (jax.devices()[:1], small))
    path = tmp_path / "report.json"
    with pytest.raises(SystemExit) as end:
        cli.main(["compile-check", f"--config={TOY}", f"--json={path}", "--topology=v5e:1x1"])
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "does not fit v5e:1x1" in said and "run.mesh.fsdp" in said
    assert json.loads(path.read_text())["fits"] is False


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5:8x8", "did you mean 'v5p'|did you mean 'v5e'"),
        ("v5e:8x9", "did you mean '8x8'"),
        ("v5e", "unknown topology"),
        ("v4:8x8", "unknown topology"),
    ],
)
def test_an_unknown_topology_names_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        tpu.describe(name)


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(tpu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'evatok_jax\[tpu\]'"):
        tpu.describe("v5e:2x2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/tokens.py"], "it has no step"),
        ([f"--config={TINY}", "--size=100"], "size 100"),
        (["--config=configs/webvid_uniform.py:runlocal", "--sample"], "trains no generator"),
        ([f"--config={TINY}", "--set=run.mesh.fsdp=3"], "does not cover"),
    ],
)
def test_wrong_requests_end_in_one_message(own_device, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        cli.main(["compile-check", *arguments])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


# ---- with the TPU compiler ---------------------------------------------------------------------


def compiled(function, *shapes, specs, topology="v5e:2x2", fsdp=2):
    """The program of a function for a slice, its arguments in bf16."""
    devices, chip = tpu.describe(topology)
    mesh = sharding.make_mesh(-1, fsdp, devices)
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    with jax.set_mesh(mesh):
        program = Program(jax.jit(function).lower(*arguments).compile().as_text())
    return [(one, price(one, chip)) for one in program.work(lambda one: price(one, chip))]


@pytest.mark.all
@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "v4:2x2x1"])
def test_large_products_are_estimated_near_the_peak(topology):
    """A product of 8192 x 8192 matrices on every chip: within 10 % of the data sheet's peak."""
    n, count = 8192, np.prod([int(side) for side in topology.partition(":")[2].split("x")])
    whole = compiled(
        lambda x, w: x @ w, (count * n, n), (n, n), specs=(P(sharding.AXES), P()), topology=topology
    )
    seconds = sum(seconds for one, seconds in whole if one.kind == "compiled")
    kind = topology.partition(":")[0]
    assert seconds == pytest.approx(2 * n**3 / tpu.CHIPS[kind].flops, rel=0.1)


@pytest.mark.all
@needs_libtpu
def test_a_scan_costs_its_turns_and_gathers_in_each():
    """Eight layers whose weights lie on two chips: each is gathered, and priced, eight times."""

    def layers(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    specs = P(sharding.AXES), P(None, "fsdp")
    work = compiled(layers, (4096, 2048), (8, 2048, 2048), specs=specs)
    gathered = sum(one.times * one.bytes for one, _ in work if one.name == "all-gather")
    assert gathered == 8 * 2 * 2048**2
    seconds = sum(one.times * s for one, s in work if one.kind == "compiled")
    assert seconds > 8 * 2 * 1024 * 2048**2 / V5E.flops


@pytest.mark.all
@needs_libtpu
def test_steps_of_small_configs_compile_for_a_slice():
    """The recipe on a mesh that splits parameters, and a generator's sampling."""
    config = load_config("configs/webvid_uniform.py:runlocal,batch=8")
    config.run.mesh.fsdp = 2
    report = check(config, "v5e:2x4")
    assert report["mesh"] == {"data": 4, "fsdp": 2} and report["time_ms"]["total"] > 0
    top = {"autoencoder", "perceptual", "alignment", "fooling", "judging", "optimiser"}
    assert top <= set(report["parts"])
    assert {"autoencoder/encoder/attend", "autoencoder/decoder"} <= set(report["parts"])
    assert report["learning"] == ["tokenizer", "discriminator", "alignment"]
    assert "all-reduce" in report["collectives"]
    report = check(load_config(f"{TINY},batch=8"), "v5e:2x4", sample=True)
    assert report["time_ms"]["compiled"] > 0 and "layers" in render(report)


@pytest.mark.all
@needs_libtpu
def test_the_compilers_own_word_on_memory():
    """A batch of two million sequences fits no slice of four chips."""
    config = load_config(f"{TINY},batch=2097152")
    with pytest.raises(DoesNotFit, match=r"it needs [\d.]+ GiB of a chip's 15\.75"):
        check(config, "v5e:2x2")
