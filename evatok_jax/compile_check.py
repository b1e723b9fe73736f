"""What a config's step costs on a slice of TPUs, found by compiling it where there is none.

The step is the one that `train` compiles, with its shardings, from shapes alone: no weight, no clip
and no TPU is needed. What the compiler says of memory is what a chip will hold; its times are
estimates, and docs/compile_check.md tells what they leave out.
"""

import importlib.metadata
import importlib.util
import math
import re
from collections import Counter, defaultdict

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from evatok_jax import engine, sharding, tpu
from evatok_jax.describe import abstract_params
from evatok_jax.flops import count_flops, scope_path
from evatok_jax.hlo import Program, Work
from evatok_jax.stages.generator import GeneratorStage
from evatok_jax.stages.stage import Stage, load_stage
from evatok_jax.train import OPTIMISER, abstract_step

GUIDANCE = 1.75  # of the paper's samples on UCF-101 (EVATok Table 3)
KERNEL_SHARE = 0.5  # of the peak that a kernel's products are taken to reach
NOTEWORTHY = 0.01  # share of a step from which unpriced operations are named


class DoesNotFit(Exception):
    """The program needs more memory than a chip has."""


def check(config: ConfigDict, topology: str, *, sample=False, step=0, size=None) -> dict:
    """Compiles the step of a config for a slice, and reports.

    Args:
      topology: as in "v5e:8x8".
      sample: the sampling step of a generator, guided, in place of the training step.
      step: which step, counted from 1; by default one in which every group learns.
      size: the static size of its batch; by default the largest.

    Returns the report as plain values; its units are in the names. Raises DoesNotFit, and
    ValueError for a job without a step, an unknown slice or size, or a mesh that does not fit it.
    """
    if config.job != "train":
        raise ValueError(f"config {config.name!r} is a job of kind {config.job!r}: it has no step")
    devices, chip = tpu.describe(topology)
    mesh = sharding.make_mesh(config.run.mesh.data, config.run.mesh.fsdp, devices)
    if config.batch_size % len(devices):
        raise ValueError(
            f"batch_size {config.batch_size} is no multiple of the {len(devices)} chips of "
            f"{topology}: choose another slice, or batch=N"
        )
    stage = load_stage(config)
    static = None if sample else _size(stage, size)
    names = (*stage.SCOPES, *stage.INNER, OPTIMISER)
    with jax.set_mesh(mesh):
        if sample:
            groups, traced = (), trace_sampling(stage, mesh)
        else:
            function, arguments, groups = abstract_step(stage, mesh, step, static)
            traced = function.trace(*arguments)
        compiled = _compile(traced, config, topology, chip)
    text = compiled.as_text()
    memory = _memory(compiled.memory_analysis())
    if memory["total"] > chip.memory:
        raise DoesNotFit(_advice(config, topology, memory["total"], chip.memory))
    flops = None if sample else _flops(traced.jaxpr.jaxpr, names, len(devices))
    return {
        "config": config.name,
        "topology": topology,
        "chips": len(devices),
        "mesh": dict(mesh.shape),
        "global_batch": config.batch_size,
        "step": "sampling" if sample else "training",
        "learning": list(groups),
        "static_size": static,
        "fits": True,
        "memory_bytes": memory | {"usable": int(chip.memory)},
        **_times(Program(text), chip, names, flops),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("evatok_jax", "jax", "libtpu")
            if importlib.util.find_spec(name)
        },
    }


def trace_sampling(stage: Stage, mesh):
    """The guided sampling of one batch by a generator, as `engine.sample` runs it."""
    if not isinstance(stage, GeneratorStage):
        raise ValueError(f"config {stage.config.name!r} trains no generator: it samples nothing")
    config, rows = stage.model.config, stage.config.batch_size
    split = sharding.batch_sharding(mesh)

    def spec(kind, *shape):
        return jax.ShapeDtypeStruct((rows, *shape), kind, sharding=split)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    params = abstract_params(stage)["generator"]
    return engine.sample_ids.trace(
        stage.model,
        sharding.placed(params, sharding.param_shardings(params, mesh)),
        spec(jnp.int32),
        sharding.placed(keys, split),
        engine.options(guidance=GUIDANCE),
        None,
        engine.growing(config.grammar.longest),
        spec(jnp.int32, config.given) if config.given else None,
    )


def price(work: Work, chip: tpu.Chip) -> float:
    """Seconds of one run; 0 for what nobody estimates."""
    if work.kind == "kernel":
        return max(work.flops / (KERNEL_SHARE * chip.flops), work.bytes / chip.bandwidth)
    if work.kind == "collective":
        return work.sent / chip.axis
    return work.cycles / chip.clock


def _size(stage: Stage, size: int | None):
    sizes = stage.static_sizes()
    if size is None:
        return sizes[-1]
    if size not in sizes:
        raise ValueError(f"size {size}: batches of {stage.config.name} have {sizes}")
    return size


def _compile(traced, config, topology, chip):
    try:
        return traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT])", str(error))
        if not found:
            raise DoesNotFit(f"{config.name} does not fit {topology}: {error}") from error
        units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
        used, limit = (float(found[i]) * units[found[i + 1]] for i in (1, 3))
        raise DoesNotFit(_advice(config, topology, used, limit)) from error


def _advice(config, topology: str, used: int | float, limit: float) -> str:
    mesh, found = config.run.mesh, [f"a larger slice than {topology}", "a smaller batch"]
    if mesh.fsdp == 1:
        found.insert(0, "--set run.mesh.fsdp=16, which splits parameters and optimisers")
    if config.get("model", {}).get("remat", "layer") != "layer":
        found.insert(0, "--set model.remat=layer")
    if "accumulate" in config:
        found.append(f"--set accumulate={2 * config.accumulate}")
    return (
        f"{config.name} at batch {config.batch_size} does not fit {topology}: it needs "
        f"{used / tpu.GIB:.2f} GiB of a chip's {limit / tpu.GIB:.2f}. Try {'; '.join(found)}."
    )


def _memory(stats) -> dict[str, int]:
    found = {
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
    }
    return found | {"total": sum(found.values()) - 2 * found["aliased"]}


def _flops(jaxpr, names, chips: int) -> dict[str, Counter]:
    """Operations of one chip by part, with what is recomputed ("counted") and without ("model")."""

    def shared(counts):
        return Counter({part: flops / chips for part, flops in counts.items()})

    return {
        "model": shared(count_flops(jaxpr, names, recomputed=False)),
        "counted": shared(count_flops(jaxpr, names)),
    }


def _times(program: Program, chip: tpu.Chip, names, flops) -> dict:
    """The estimated time of a step in ms: in all, by collective, and by part of the model."""
    work = program.work(lambda one: price(one, chip))
    parts = defaultdict(lambda: dict.fromkeys(("compiled", "kernel", "collective"), 0.0))
    collectives = defaultdict(lambda: {"count": 0, "bytes": 0, "ms": 0.0})
    unpriced = Counter()
    for one in work:
        ms = 1e3 * one.times * price(one, chip)
        for part in _upwards(scope_path(one.scope, names)):
            row = parts[part]
            if one.kind in row:
                row[one.kind] += ms
        if one.kind == "unpriced":
            unpriced[one.name] += one.times * one.bytes
        if one.kind == "collective":
            row = collectives[one.name]
            row["count"] += one.times
            row["bytes"] += one.times * one.bytes
            row["ms"] += ms
    whole = parts.pop("", dict(compiled=0.0, kernel=0.0, collective=0.0))
    total = sum(whole.values())
    result = {
        "collectives": dict(collectives),
        "time_ms": whole | {"total": total},
        "flops": None,
        "roofline": None,
        "parts": {},
        "notes": sorted(program.notes) + _unpriced(unpriced, chip, total),
    }
    by_part = {}
    if flops:
        by_part = {kind: _summed(counts) for kind, counts in flops.items()}
        result["flops"] = {kind: counts[""] for kind, counts in by_part.items()}
        ideal = 1e3 * result["flops"]["model"] / chip.flops
        result["roofline"] = {"ideal_ms": ideal, "share": ideal / total if total else 0.0}
    for part in sorted(parts, key=lambda part: _order(part, parts)):
        row = parts[part] | {"total": sum(parts[part].values())}
        if by_part:
            row["model_flops"] = by_part["model"][part]
        result["parts"][part] = row
    return result


def _upwards(path: str) -> list[str]:
    """A path, the paths above it, and "" for the whole."""
    names = path.split("/")
    return ["/".join(names[:count]) for count in range(len(names) + 1)]


def _summed(counts: Counter) -> Counter:
    found = Counter()
    for path, value in counts.items():
        for part in _upwards(path):
            found[part] += value
    return found


def _order(path: str, parts) -> list:
    """Parts below the part that they belong to, the dearest first."""
    return [(-sum(parts[part].values()), part) for part in _upwards(path)[1:]]


def _unpriced(moved: Counter, chip: tpu.Chip, total: float) -> list[str]:
    """A line for each kind of operation that would take noteworthy time to write its result."""
    lines = []
    for name, size in moved.most_common():
        ms = 1e3 * size / chip.bandwidth
        if ms > NOTEWORTHY * total:
            lines.append(
                f"{name} without an estimate writes {size / tpu.GIB:.2f} GiB, {ms:.1f} ms at full "
                "bandwidth, which are not counted"
            )
    return lines


# ---- the page ----------------------------------------------------------------------------------


def render(report: dict) -> str:
    """The report as a page of plain text."""
    memory, times = report["memory_bytes"], report["time_ms"]
    mesh = " x ".join(f"{name} {count}" for name, count in report["mesh"].items())
    rows = report["global_batch"]
    lines = [
        f"{report['config']}, {report['step']} step on {report['topology']}: "
        f"{report['chips']} chips as {mesh}",
        f"global batch {rows}, {rows / report['chips']:g} a chip"
        + (f"; static size {report['static_size']}" if report["static_size"] else "")
        + (f"; learning: {', '.join(report['learning'])}" if report["learning"] else ""),
        "",
        "memory of a chip, GiB",
        *_table([list(memory), [f"{size / tpu.GIB:.2f}" for size in memory.values()]]),
        "",
        "collectives of a chip",
        *_table(
            [["", "count", "MiB", "ms"]]
            + [
                [name, row["count"], f"{row['bytes'] / 2**20:.1f}", f"{row['ms']:.2f}"]
                for name, row in report["collectives"].items()
            ]
        ),
        "",
        f"estimated step: {times['total']:.1f} ms = {times['compiled']:.1f} compiled + "
        f"{times['kernel']:.1f} kernels + {times['collective']:.1f} collectives",
    ]
    if report["flops"]:
        flops, roof = report["flops"], report["roofline"]
        lines.append(
            f"operations of a chip: {flops['model'] / 1e12:.2f} TFLOP of the model, "
            f"{flops['counted'] / 1e12:.2f} with recomputation; at peak {roof['ideal_ms']:.1f} ms, "
            f"{100 * roof['share']:.1f} % of the estimate"
        )
    lines += ["", *_table([_HEAD, *(_row(p, r, times) for p, r in report["parts"].items())])]
    lines += ["", *(f"note: {note}" for note in report["notes"])] if report["notes"] else []
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return "\n".join([*lines, "", versions])


_HEAD = ["part, ms", "compiled", "kernels", "collectives", "total", "share", "model TFLOP"]


def _row(path: str, row: dict, times: dict) -> list[str]:
    *above, name = path.split("/")
    share = row["total"] / times["total"] if times["total"] else math.nan
    return [
        "  " * len(above) + name,
        *(f"{row[kind]:.2f}" for kind in ("compiled", "kernel", "collective", "total")),
        f"{100 * share:.1f} %",
        f"{row['model_flops'] / 1e12:.3f}" if "model_flops" in row else "",
    ]


def _table(rows: list[list]) -> list[str]:
    """Rows of cells in columns; the first column to the left, numbers to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
