"""What a config's step costs on a slice of TPUs, found by compiling it where there is none.

The step is the one that `train` compiles, with its shardings, from shapes alone: no weight, no clip
and no TPU is needed. What the compiler says of memory is what a chip will hold; its times are
estimates, and docs/compile_check.md tells what they leave out.
"""

import importlib.metadata
import importlib.util
import math
import re
from collections import Counter
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from evatok_jax import compile_report, engine, sharding, tpu
from evatok_jax.costs import Program
from evatok_jax.flops import count_flops
from evatok_jax.models.generator import Generator, empty_caches, unstack_layers
from evatok_jax.stages.generator import GeneratorStage
from evatok_jax.stages.stage import Stage, load_stage
from evatok_jax.train import OPTIMISER, abstract_step

GUIDANCE = 1.75  # of the paper's samples on UCF-101 (EVATok Table 3)
CLIPS = 16  # that a chip samples at once, as `api.Generator` does


@dataclass(frozen=True)
class Traced:
    """A step before it is compiled.

    Attributes:
      program: what `jax.jit` traced.
      batch: rows or clips of a chip.
      learning: the groups that learn; static: the static size, if the step has one.
      flops: operations of a chip by part: of the model, and with what checkpoints recompute.
      ideal_ms: what a chip needs at least, where it is not the model's operations at peak.
    """

    program: jax.stages.Traced
    batch: int
    learning: tuple[str, ...]
    static: int | None
    flops: dict[str, Counter]
    ideal_ms: float | None


class DoesNotFit(Exception):
    """The program needs more memory than a chip has.

    Attributes:
      topology: the slice.
      needed_bytes, usable_bytes: of a chip's memory; None where the compiler does not say.
    """

    def __init__(self, message: str, topology: str, needed_bytes=None, usable_bytes=None):
        super().__init__(message)
        self.topology, self.needed_bytes = topology, needed_bytes
        self.usable_bytes = usable_bytes


def check(
    config: ConfigDict,
    topology: str,
    *,
    step: int | None = None,
    size: int | None = None,
    sample: bool = False,
    batch: int | None = None,
) -> dict:
    """Compiles the step of a config for a slice, and reports.

    Args:
      topology: as in "v5e:8x8".
      step: which step, counted from 1; by default one in which every group learns.
      size: the static size of its batch; by default the largest.
      sample: the sampling step of a generator, in place of the training step.
      batch: clips that each chip samples at once (default 16).

    Returns the report as plain values; its units are in the names. Raises DoesNotFit, and
    ValueError for a job without a step, an unknown slice or size, a batch or mesh that does not fit
    the slice, and where the compiler refuses the program.
    """
    if config.job != "train":
        raise ValueError(f"config {config.name!r} is a job of kind {config.job!r}: it has no step")
    if sample and (step is not None or size is not None):
        raise ValueError("step and size are those of training: sampling has neither")
    if batch is not None and not sample:
        raise ValueError("batch is that of sampling: training has batch_size, of the config")
    for name, number in (("step", step), ("batch", batch)):
        if number is not None and number < 1:
            raise ValueError(f"{name} {number}: it must be 1 or more")
    devices, chip = tpu.describe(topology)
    split, stage = config.run.mesh, load_stage(config)
    names = (*stage.SCOPES, *stage.INNER, OPTIMISER)
    if sample:  # by each chip for itself: one stands for all
        mesh, shape = sharding.make_mesh(1, 1, devices[:1]), {"data": len(devices), "fsdp": 1}
    else:
        mesh = sharding.make_mesh(split.data, split.fsdp, devices)
        shape = dict(mesh.shape)
    with jax.set_mesh(mesh):  # the stage asks it among how many chips its batch is cut
        if sample:
            traced = trace_sampling(stage, mesh, batch or CLIPS, chip, names)
        else:
            traced = trace_training(stage, mesh, step, size, names)
        try:
            compiled = traced.program.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            raise _refused(str(error), config, topology, len(devices), sample) from error
    places = [tuple(getattr(d, "coords", ())) for d in mesh.devices.flat]  # CPUs have none
    program = Program(compiled.as_text(), places)
    memory = _memory(compiled.memory_analysis())
    if memory["total"] > chip.memory:
        hints = advice(config, len(devices), sample)
        raise _too_large(config, topology, memory["total"], chip.memory, hints)
    return {
        "config": config.name,
        "topology": topology,
        "chips": len(devices),
        "mesh": shape,
        "global_batch": traced.batch * len(devices),
        "step": "sampling" if sample else "training",
        "learning": list(traced.learning),
        "static_size": traced.static,
        "fits": True,
        "memory_bytes": memory | {"usable": int(chip.memory)},
        **compile_report.times(program, chip, names, traced.flops, traced.ideal_ms),
        "versions": _versions("evatok_jax", "jax", "libtpu"),
    }


def trace_training(stage: Stage, mesh, step: int | None, size: int | None, names) -> Traced:
    """A training step; under `jax.set_mesh`."""
    config, chips = stage.config, mesh.size
    if config.batch_size % (chips * config.accumulate):
        raise ValueError(
            f"batch_size {config.batch_size} is no multiple of the {chips} chips"
            + (f" times accumulate {config.accumulate}" if config.accumulate > 1 else "")
            + ": choose another slice, or batch=N"
        )
    sizes = stage.static_sizes()
    if size is not None and size not in sizes:
        has = "only one size" if len(sizes) == 1 and not sizes[0] else sizes
        raise ValueError(f"size {size}: batches of {config.name} have {has}")
    static = sizes[-1] if size is None else size
    function, arguments, learning = abstract_step(stage, mesh, step or 0, static)
    traced = function.trace(*arguments)
    jaxpr = traced.jaxpr.jaxpr
    flops = {
        "model": count_flops(jaxpr, names, recomputed=False),
        "counted": count_flops(jaxpr, names),
    }
    flops = {kind: _times(counts, 1 / chips) for kind, counts in flops.items()}
    return Traced(traced, config.batch_size // chips, learning, static or None, flops, None)


# ---- sampling ----------------------------------------------------------------------------------


def trace_sampling(stage: Stage, mesh, clips: int, chip: tpu.Chip, names) -> Traced:
    """The sampling of `clips` sequences by one chip, which holds all parameters.

    So `api.Generator` works: chips share nothing, and no collective makes one wait for another.
    With given frames nothing is guided; otherwise every sequence is written with its class and
    without.

    Args:
      mesh: of that chip.
    """
    if not isinstance(stage, GeneratorStage):
        raise ValueError(f"config {stage.config.name!r} trains no generator: it samples nothing")
    config, whole = stage.model.config, sharding.replicated(mesh)

    def spec(kind, *shape):
        return jax.ShapeDtypeStruct((clips, *shape), kind, sharding=whole)

    # Nothing may run here, not even the making of a key: there is no such device.
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), clips))
    groups, _ = jax.eval_shape(lambda x: stage.init(jax.random.key(0), x), stage.batch_spec())
    params = groups["generator"]
    how = engine.options(guidance=1.0 if config.given else GUIDANCE)
    capacities = engine.growing(config.grammar.longest)

    def sampled(params, classes, keys, given):
        return engine.sample_ids(
            stage.model, params, classes, keys, how, None, capacities, condition=given
        )

    traced = jax.jit(sampled).trace(
        sharding.placed(params, whole),
        spec(jnp.int32),
        sharding.placed(keys, whole),
        spec(jnp.int32, config.given) if config.given else None,
    )
    flops, seconds = _decoding(stage.model, params, clips * (1 + how.guided), chip, names)
    counts = {"model": flops, "counted": flops}
    return Traced(traced, clips, (), None, counts, 1e3 * seconds)


def _decoding(model: Generator, params, rows: int, chip: tpu.Chip, names) -> tuple[Counter, float]:
    """Operations by part, and the seconds that a chip needs at least, for the longest sequences.

    Each turn feeds one token; it takes its operations at peak, or, if that is longer, the reading
    of the layers, the head and what is in the caches, in the type of computation.
    """
    config = model.config
    read = {name: part for name, part in params.items() if not name.endswith("embedding")}
    weights = sum(leaf.size for leaf in jax.tree.leaves(read)) * jnp.dtype(config.dtype).itemsize
    passes, done = [(1, config.given, config.given)] if config.given else [], 0
    for capacity in engine.growing(config.grammar.longest):  # half of the new room is in use
        passes.append((capacity - done, 1, config.given + (done + capacity) // 2))
        done = capacity

    def step(params, tokens, seen):
        variables, ids = {"params": unstack_layers(params)}, jnp.zeros((rows, tokens), jnp.int32)
        caches, alive = empty_caches(config, rows, seen), jnp.ones(rows, bool)
        return model.apply(variables, caches, ids, ids, alive, method=Generator.decode_step)[0]

    flops, seconds = Counter(), 0.0
    for turns, tokens, seen in passes:
        jaxpr = jax.make_jaxpr(step, static_argnums=(1, 2))(params, tokens, seen).jaxpr
        counts = count_flops(jaxpr, names)
        caches = jax.eval_shape(lambda n=seen: jax.tree.leaves(empty_caches(config, rows, n)))
        moved = weights + sum(x.size * x.dtype.itemsize for x in caches)
        seconds += turns * max(counts.total() / chip.flops, moved / chip.bandwidth)
        flops.update(_times(counts, turns))
    return flops, seconds


# ---- what does not compile ---------------------------------------------------------------------


def _refused(said: str, config, topology: str, chips: int, sample: bool) -> Exception:
    """What to raise for an error of the compiler: DoesNotFit where the HBM is full."""
    first = first_line(said)
    if "RESOURCE_EXHAUSTED" not in first or "hbm" not in first.lower():
        return ValueError(f"the compiler refuses {config.name} for {topology}: {first}")
    hints = advice(config, chips, sample)
    size = r"([\d.]+)([KMGT])"
    found = re.search(rf"Used {size} of {size}|\({size}\) exceeds available HBM \({size}\)", first)
    if not found:
        return DoesNotFit(f"{config.name} does not fit {topology}: {first}. {hints}", topology)
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    parts = [part for part in found.groups() if part]
    needed, usable = (float(parts[i]) * units[parts[i + 1]] for i in (0, 2))
    return _too_large(config, topology, needed, usable, hints)


def first_line(said: str) -> str:
    """What the compiler says first; a line that ends in a colon is a heading and goes on."""
    first = ""
    for line in said.strip().splitlines():
        first = f"{first} {line.strip()}".strip()
        if not first.endswith(":"):
            break
    return first


def _too_large(config, topology: str, needed: int | float, usable: float, hints: str) -> DoesNotFit:
    return DoesNotFit(
        f"{config.name} does not fit {topology}: it needs {needed / tpu.GIB:.2f} GiB of a chip's "
        f"{usable / tpu.GIB:.2f}. {hints}",
        topology,
        int(needed),
        int(usable),
    )


def advice(config, chips: int, sample: bool) -> str:
    """What would make the program smaller."""
    if sample:  # every chip holds all parameters, and clips of its own
        return "Try a smaller --batch, or chips with more memory."
    found = []
    if config.get("model", {}).get("remat", "layer") != "layer":
        found.append("--set model.remat=layer")
    if config.run.mesh.fsdp == 1 and math.gcd(sharding.WAYS, chips) > 1:
        found.append("--set run.mesh.fsdp=0, which splits parameters and optimisers")
    found += ["a larger slice", f"a smaller batch than {config.batch_size}"]
    parts = 2 * config.accumulate
    if config.batch_size % (parts * chips) == 0:
        found.append(f"--set accumulate={parts}")
    return f"Try {'; '.join(found)}."


# ---- what is reported --------------------------------------------------------------------------


def _times(counts: Counter, factor: int | float) -> Counter:
    return Counter({part: factor * count for part, count in counts.items()})


def _memory(stats) -> dict[str, int]:
    found = {
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
    }
    return found | {"total": sum(found.values()) - 2 * found["aliased"]}


def _versions(*names: str) -> dict[str, str]:
    """Of the packages that are there; a checkout need not be installed."""
    found = {}
    for name in filter(importlib.util.find_spec, names):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found
