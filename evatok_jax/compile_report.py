"""The numbers of a compile check, from what the program holds, and its page of plain text."""

import math
from collections import Counter, defaultdict

from evatok_jax import tpu
from evatok_jax.costs import Program, price
from evatok_jax.flops import scope_path

NOTEWORTHY = 0.01  # share of a step from which unpriced operations are named
KINDS = ("compiled", "kernel", "collective")


def times(
    program: Program, chip: tpu.Chip, names, flops: dict[str, Counter], ideal_ms: float | None
) -> dict:
    """The estimated time of a step in ms: in all, by collective and kernel, by part of the model.

    Args:
      names: the scopes that parts are told apart by.
      flops: operations of a chip by part, of the "model" and "counted", recomputed ones included.
      ideal_ms: of the step, where it is not that of the model's operations at peak; parts then
        have none.
    """
    work = program.work(lambda one: price(one, chip))
    parts = defaultdict(lambda: dict.fromkeys(KINDS, 0.0))
    collectives = defaultdict(lambda: {"count": 0, "bytes": 0, "ms": 0.0})
    kernels = defaultdict(lambda: {"count": 0, "flops": 0, "bytes": 0, "ms": 0.0})
    unpriced = Counter()
    for one in work:
        ms = 1e3 * one.times * price(one, chip)
        for part in _upwards(scope_path(one.scope, names)):
            row = parts[part]
            if one.kind in row:
                row[one.kind] += ms
        if one.kind == "unpriced":
            unpriced[one.name] += one.times * one.bytes
        elif one.kind != "compiled":
            row = (kernels if one.kind == "kernel" else collectives)[one.name]
            sizes = {"count": 1, "flops": one.flops, "bytes": one.bytes}
            row |= {name: row[name] + one.times * sizes[name] for name in row if name in sizes}
            row["ms"] += ms
    whole = parts.pop("", dict.fromkeys(KINDS, 0.0))
    total = sum(whole.values())
    by_part = {kind: _summed(counts) for kind, counts in flops.items()}
    own_ideal = ideal_ms is None
    if own_ideal:
        ideal_ms = 1e3 * by_part["model"][""] / chip.flops
    rows = {}
    for part in sorted(parts, key=lambda part: _order(part, parts)):
        rows[part] = row = parts[part] | {"total": sum(parts[part].values())}
        row["model_flops_per_chip"] = operations = by_part["model"][part]
        if own_ideal and operations:
            row |= _roofline(1e3 * operations / chip.flops, row["total"], "roofline_share")
    return {
        "collectives": dict(collectives),
        "kernels": dict(kernels),
        "time_ms": whole | {"total": total},
        "flops_per_chip": {kind: counts[""] for kind, counts in by_part.items()},
        "roofline": _roofline(ideal_ms, total, "share"),
        "parts": rows,
        "notes": sorted(program.notes) + _unpriced(unpriced, chip, total),
    }


def _roofline(ideal_ms: float, total_ms: float, share: str) -> dict[str, float]:
    return {"ideal_ms": ideal_ms, share: ideal_ms / total_ms if total_ms else 0.0}


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
    memory, took = report["memory_bytes"], report["time_ms"]
    flops, roof = report["flops_per_chip"], report["roofline"]
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
        *_listed("collectives of a chip", report["collectives"]),
        *_listed("kernels of a chip", report["kernels"]),
        "",
        f"estimated step: {took['total']:.1f} ms = {took['compiled']:.1f} compiled + "
        f"{took['kernel']:.1f} kernels + {took['collective']:.1f} collectives",
        f"operations of a chip: {flops['model'] / 1e12:.3f} TFLOP of the model, "
        f"{flops['counted'] / 1e12:.3f} with recomputation",
        f"ideally {roof['ideal_ms']:.1f} ms, {100 * roof['share']:.1f} % of the estimate",
        "",
        *_table([_HEAD, *(_row(path, row, took) for path, row in report["parts"].items())]),
    ]
    lines += ["", *(f"note: {note}" for note in report["notes"])] if report["notes"] else []
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return "\n".join([*lines, "", versions])


_HEAD = [
    *("part, ms", "compiled", "kernels", "collectives", "total", "share"),
    *("model TFLOP", "ideal", "roofline"),
]


def _row(path: str, row: dict, took: dict) -> list[str]:
    *above, name = path.split("/")
    share = row["total"] / took["total"] if took["total"] else math.nan
    ideal = [f"{row['ideal_ms']:.2f}", _percent(row["roofline_share"])] if "ideal_ms" in row else []
    return [
        "  " * len(above) + name,
        *(f"{row[kind]:.2f}" for kind in (*KINDS, "total")),
        _percent(share),
        f"{row['model_flops_per_chip'] / 1e12:.3f}",
        *(ideal or ["", ""]),
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _listed(title: str, rows: dict[str, dict]) -> list[str]:
    """A table of collectives or of kernels; nothing where there are none."""
    if not rows:
        return []
    columns = {
        "count": lambda row: row["count"],
        "GFLOP": lambda row: f"{row['flops'] / 1e9:.1f}",
        "MiB": lambda row: f"{row['bytes'] / 2**20:.1f}",
        "ms": lambda row: f"{row['ms']:.2f}",
    }
    if "flops" not in next(iter(rows.values())):
        del columns["GFLOP"]
    body = [[name, *(show(row) for show in columns.values())] for name, row in rows.items()]
    return ["", title, *_table([["", *columns], *body])]


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
