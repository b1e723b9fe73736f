"""The compile check: its step is the loop's, and its numbers are the compiler's.

What needs the TPU compiler is compiled small, for slices of a few chips.
"""

import json
from collections import Counter
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

from evatok_jax import cli, compile_check, compile_report, sharding, tpu
from evatok_jax import train as training
from evatok_jax.compile_check import DoesNotFit, advice, check, trace_sampling
from evatok_jax.compile_report import render
from evatok_jax.config import load_config
from evatok_jax.costs import Program, price
from evatok_jax.flops import count_flops
from evatok_jax.stages.stage import load_stage

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
    """A fixed rule has one, others have all multiples up to the longest; rows have one shape."""
    uniform = load_stage(load_config("configs/webvid_uniform.py:batch=1"))
    assert uniform.static_sizes() == (1024,)
    proxy = load_stage(load_config("configs/webvid_proxy.py:batch=1"))
    assert proxy.static_sizes() == tuple(range(256, 2049, 256))
    generator = load_stage(load_config("configs/gpt_b_ucf.py:batch=1"))
    assert generator.static_sizes() == ((),)


def test_static_sizes_are_those_of_the_slices_rows(monkeypatch):
    """Of 128 clips each of 64 chips has two, which share a row."""
    mesh = jax.sharding.AbstractMesh((64, 1), sharding.AXES)
    monkeypatch.setattr(tpu, "describe", lambda name: ([None] * 64, V5E))
    monkeypatch.setattr(sharding, "make_mesh", lambda *_: mesh)
    monkeypatch.setattr(jax, "set_mesh", jax.sharding.use_abstract_mesh)
    config = load_config("configs/webvid_proxy.py:batch=128")
    assert config.lengths.row == 8
    sizes = ", ".join(str(256 * n) for n in range(1, 17))
    with pytest.raises(ValueError, match=rf"have \({sizes}\)"):
        check(config, "v5e:8x8", size=1)


@pytest.fixture
def refuse(monkeypatch):
    """Lets the compiler say something in place of compiling."""

    def saying(said):
        def compile(self):
            raise jax.errors.JaxRuntimeError(said)

        monkeypatch.setattr(jax.stages.Lowered, "compile", compile)

    return saying


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
    flops = report["flops_per_chip"]
    assert 0 < flops["model"] < flops["counted"]
    top = [row for part, row in report["parts"].items() if "/" not in part]
    assert sum(row["model_flops_per_chip"] for row in top) == pytest.approx(flops["model"])
    ideal = sum(row.get("ideal_ms", 0.0) for row in top)
    assert ideal == pytest.approx(report["roofline"]["ideal_ms"])
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
    assert said.count("\n") == 1 and "does not fit v5e:1x1" in said and "smaller batch" in said
    failure = json.loads(path.read_text())
    assert failure["fits"] is False and failure["topology"] == "v5e:1x1"
    assert failure["needed_bytes"] > failure["usable_bytes"] == 100


def test_the_report_as_json_of_a_checkout(own_device, monkeypatch, capsys):
    """Printed where no file is named; a package that is not installed has no version."""

    def missing(name):
        raise compile_check.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(compile_check.importlib.metadata, "version", missing)
    cli.main(["compile-check", f"--config={TOY}", "--topology=v5e:1x1", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["fits"] and report["versions"]["evatok_jax"] == "unknown"
    assert report["static_size"] is None and report["learning"] == ["model", "critic"]


def test_kernels_and_parts_in_numbers():
    """A kernel's copies are one row; a part's share of its roofline is of its own operations."""
    kernel = (
        '  {}%attention_forward.{} = f32[8]{{0}} custom-call(%x), custom_call_target="tpu_custom_'
        'call", metadata={{op_name="jit(f)/layers/attend/custom"}}, backend_config={{"custom_call_'
        'config": {{"cost_estimate": {{"flops": 197000000, "bytes_accessed": 8}}}}}}\n'
    )
    text = (
        "HloModule test, num_partitions=1\nENTRY %main (x: f32[8]) -> f32[8] {\n"
        f"  %x = f32[8]{{0}} parameter(0)\n{kernel.format('', 1)}{kernel.format('ROOT ', 22)}}}\n"
    )
    flops = {"model": Counter({"layers": 1.97e8, "layers/attend": 1.97e8})}
    report = compile_report.times(Program(text), V5E, ("layers", "attend"), flops, None)
    ms = pytest.approx(4e-3)  # two times 0.197 GFLOP at half of 197 TFLOP/s
    assert report["kernels"] == {
        "attention_forward": {"count": 2, "flops": 394_000_000, "bytes": 16, "ms": ms}
    }
    assert report["roofline"] == {"ideal_ms": pytest.approx(2e-3), "share": pytest.approx(0.5)}
    attend = report["parts"]["layers/attend"]
    assert (attend["total"], attend["ideal_ms"]) == (ms, pytest.approx(1e-3))
    assert attend["roofline_share"] == pytest.approx(0.25)


def test_a_routers_step_has_parts():
    stage = load_stage(load_config("configs/webvid_router.py:runlocal"))
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        function, arguments, _ = training.abstract_step(stage, mesh)
        jaxpr = function.trace(*arguments).jaxpr.jaxpr
    counts = count_flops(jaxpr, (*stage.SCOPES, *stage.INNER))
    assert counts["router"] > counts["router/attend"] > 0 and not counts["other"]


@pytest.mark.parametrize(("name", "sides"), [("gpt_b_ucf", 2), ("gpt_b_k600", 1)])
def test_sampling_takes_the_operations_of_its_sequences(name, sides):
    """Of the layers, the head and all earlier positions, a token; with and without its class,
    unless frames are given, which are read at once.
    """
    stage, clips = load_stage(load_config(f"configs/{name}.py:runlocal")), 3
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        traced = trace_sampling(stage, mesh, clips, V5E, stage.SCOPES)
    assert traced.batch == clips
    c = stage.model.config
    matrices = 4 * c.width**2 + 3 * c.width * c.ffn_width
    longest, given = c.grammar.longest, c.given
    assert (given > 0) == (sides == 1)
    seen = longest * (given + longest / 2) + given**2
    products = (longest + given) * c.layers * matrices + (longest + bool(given)) * c.width * (
        c.grammar.vocab
    )
    total = clips * sides * 2 * (products + 2 * c.layers * c.width * seen)
    assert traced.flops["model"].total() == pytest.approx(total, rel=0.01)
    weights = 4 * (c.layers * matrices + c.width * c.grammar.vocab)
    assert traced.ideal_ms > 1e3 * longest * weights / V5E.bandwidth


PERMANENT = "XLA:TPU compile permanent error. Ran out of memory in memory space"
HBM = f"{PERMANENT} hbm. Used 20.93G of 15.48G"
MOSAIC = "INTERNAL: Mosaic failed to compile TPU kernel: Target does not support this comparison"


@pytest.mark.parametrize(
    ("said", "needed", "message"),
    [
        (
            f"RESOURCE_EXHAUSTED: {HBM} hbm. Exceeded hbm capacity by 5.45G.\n\nTotal hbm usage >= "
            "21.45G:\n    reserved        530.01M",
            20.93,
            r"toy does not fit v5e:1x1: it needs 20\.93 GiB of a chip's 15\.48\. Try ",
        ),
        (
            f"RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom:\n{HBM} hbm. Exceeded by 5.45G.",
            20.93,
            r"it needs 20\.93 GiB",
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (15.90T) exceeds available HBM (15.75G).",
            15.90 * 2**10,
            r"it needs 16281\.60 GiB of a chip's 15\.75\. Try ",
        ),
        (
            "RESOURCE_EXHAUSTED: TPU TensorCore Hbm usage: 34.82G, SparseCore Hbm usage 174.10G, "
            "exceeding available bytes: 95.74G",
            None,
            r"does not fit v5e:1x1: RESOURCE_EXHAUSTED: TPU TensorCore Hbm usage: 34\.82G",
        ),
    ],
)
def test_a_full_memory_as_the_compiler_tells_it(own_device, refuse, said, needed, message):
    refuse(said)
    with pytest.raises(DoesNotFit, match=message) as error:
        check(load_config(str(TOY)), "v5e:1x1")
    assert "\n" not in str(error.value)
    assert error.value.needed_bytes == (int(needed * 2**30) if needed else None)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            f"RESOURCE_EXHAUSTED: {PERMANENT} smem. Used 1.00M of 1.00M smem. Exceeded by 4.6K",
            "memory space smem",
        ),
        (
            "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:\nRan out of memory in memory "
            "space vmem while allocating on stack for %splash.\nScoped allocation: hbm",
            "E1001: CompileTimeScopedVmemOom: Ran out of memory in memory space vmem",
        ),
        (f"{MOSAIC}\n\nThe MLIR operation involved:\n  %1 = arith.cmpf: memory_space<hbm>", MOSAIC),
    ],
)
def test_what_else_the_compiler_refuses_is_one_line(own_device, refuse, capsys, said, message):
    refuse(said)
    with pytest.raises(SystemExit) as end:
        cli.main(["compile-check", f"--config={TOY}", "--topology=v5e:1x1"])
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


def test_advice_is_what_can_be_done():
    """Splitting needs chips to split over; a batch in more parts must still divide."""
    config = toy_config(accumulate=2)  # 8 clips
    assert "run.mesh.fsdp=0" in advice(config, 2, False)
    assert "accumulate=4" in advice(config, 2, False)
    assert "accumulate" not in advice(config, 4, False)
    assert "fsdp" not in advice(config, 1, False)
    assert "--batch" in advice(config, 2, True) and "fsdp" not in advice(config, 2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/tokens.py"], "it has no step"),
        ([f"--config={TINY}", "--size=100"], "size 100"),
        (["--config=configs/webvid_uniform.py:runlocal", "--sample"], "trains no generator"),
        ([f"--config={TINY}", "--set=run.mesh.fsdp=3"], "does not cover"),
        (
            [f"--config={TOY}", "--set=accumulate=3"],
            "no multiple of the 1 chips times accumulate 3",
        ),
        ([f"--config={TOY}", "--step=0"], "step 0: it must be 1 or more"),
        ([f"--config={TINY}", "--sample", "--step=1"], "sampling has neither"),
        ([f"--config={TINY}", "--sample", "--size=256"], "sampling has neither"),
        ([f"--config={TINY}", "--sample", "--batch=0"], "batch 0: it must be 1 or more"),
        ([f"--config={TINY}", "--batch=4"], "training has batch_size"),
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
@pytest.mark.parametrize(
    ("topology", "most"),
    [("v5e:2x2", 1.2), ("v5p:2x2x1", 1.2), ("v6e:2x2", 1.5), ("v4:2x2x1", 1.2)],
)
def test_large_products_are_estimated_near_the_peak(topology, most):
    """A product of 8192 x 8192 matrices on every chip: in multiples of its time at peak."""
    n, count = 8192, np.prod([int(side) for side in topology.partition(":")[2].split("x")])
    whole = compiled(
        lambda x, w: x @ w, (count * n, n), (n, n), specs=(P(sharding.AXES), P()), topology=topology
    )
    seconds = sum(seconds for one, seconds in whole if one.kind == "compiled")
    kind = topology.partition(":")[0]
    assert 1 <= seconds * tpu.CHIPS[kind].flops / (2 * n**3) < most


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
def test_the_recipes_step_compiles_for_a_slice():
    """Of a small config, on a mesh that splits parameters."""
    config = load_config("configs/webvid_uniform.py:runlocal,batch=8")
    config.run.mesh.fsdp = 2
    report = check(config, "v5e:2x4")
    assert report["mesh"] == {"data": 4, "fsdp": 2} and report["time_ms"]["total"] > 0
    top = {"autoencoder", "perceptual", "alignment", "fooling", "judging", "optimiser"}
    assert top <= set(report["parts"])
    assert {"autoencoder/encoder/attend", "autoencoder/decoder"} <= set(report["parts"])
    assert set(report["learning"]) == {"tokenizer", "discriminator", "alignment"}
    assert "all-reduce" in report["collectives"]


@pytest.mark.all
@needs_libtpu
def test_sampling_compiles_for_a_slice():
    """Every chip for itself; loops of loops turn as often as the longest sequence wants."""
    report = check(load_config(TINY), "v5e:2x4", sample=True, batch=2)
    assert report["notes"] == ["a loop that may end early counts to its bound"]
    assert report["global_batch"] == 16 and report["time_ms"]["compiled"] > 0
    assert not report["collectives"] and {"layers/attend", "layers/ffn", "logits"} <= set(
        report["parts"]
    )


@pytest.mark.all
@needs_libtpu
def test_the_compilers_own_word_on_memory():
    """A batch of two million sequences fits no slice of four chips."""
    config = load_config(f"{TINY},batch=2097152")
    with pytest.raises(DoesNotFit, match=r"it needs [\d.]+ GiB of a chip's 15\.75"):
        check(config, "v5e:2x2")
