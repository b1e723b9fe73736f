"""What takes time in a compiled program, and how long each of it is taken to take.

Operations that the compiler priced carry `estimated_cycles`; collectives and Pallas kernels carry
none, so those come with their bytes and operations instead.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evatok_jax.hlo import Module, Operation, size_of
from evatok_jax.tpu import Chip

KERNEL_SHARE = 0.5  # of the peak that a kernel's products are taken to reach
LATENCY = 1e-6  # seconds that a collective takes, however little it sends

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Names, views and control, which take no time, and transfers that run beside the computation.
FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("partition-id", "replica-id", "add-dependency", "opt-barrier", "domain"),
    *("copy-start", "slice-start", "dynamic-slice-start", "dynamic-update-slice-start"),
)


@dataclass(frozen=True)
class Work:
    """Something that takes time on every chip.

    Attributes:
      kind: "compiled" (the compiler priced it), "kernel" (Pallas), "collective", or "unpriced".
      name: of the operation, the kernel or the collective.
      scope: the names that the Python code gave it.
      times: how often it runs in the program.
      cycles: the compiler's estimate of one run.
      flops, bytes: of one run; a kernel's own count, the size of what a collective makes or takes.
      sent: bytes that each chip sends in one run of a collective, in a ring.
      axes: of the torus, along which the chips of a collective differ.
      channel: of a collective; spread: whether it is a piece of one.
    """

    kind: str
    name: str
    scope: str
    times: int
    cycles: int = 0
    flops: int = 0
    bytes: int = 0
    sent: float = 0.0
    axes: int = 1
    channel: str = ""
    spread: bool = False


def price(work: Work, chip: Chip) -> float:
    """Seconds of one run; 0 for what nobody estimates."""
    if work.kind == "kernel":
        return max(work.flops / (KERNEL_SHARE * chip.flops), work.bytes / chip.bandwidth)
    if work.kind == "collective":
        links = 1 if work.name == "collective-permute" else chip.links
        return LATENCY + work.sent / (links * work.axes * chip.link)
    return work.cycles / chip.clock


class Program:
    """A scheduled program as a list of what takes time.

    `places` are where its devices stand in the torus, in their order; without them all stand along
    one axis. `notes` hold what the list leaves open: branches that do not count, loops of unknown
    length, kernels without a count of their own.
    """

    def __init__(self, text: str, places: Sequence[tuple[int, ...]] = ()):
        self.module, self.places = Module(text), places
        self.notes: set[str] = set()

    def work(self, seconds: Callable[[Work], float]) -> list[Work]:
        """All that takes time, loops multiplied by their turns.

        Of the branches of a conditional it takes the dearest, by the `seconds` of one run.
        """
        self.notes = set()
        return _once(self._all(self.module.entry, "", seconds))

    def _all(self, computation: str, scope: str, seconds) -> list[Work]:
        found = []
        for operation in self.module.computations[computation].values():
            # What the compiler inserted, copies say, belongs to the loop that it stands in.
            found += self._of(computation, operation, operation.scope or scope, seconds)
        return found

    def _of(self, computation: str, operation: Operation, scope: str, seconds) -> list[Work]:
        """What one operation stands for, the end of an asynchronous one for nothing."""
        kind = operation.kind
        if kind in FREE or kind.endswith(("-done", "-update")):
            return []
        kind = kind.removesuffix("-start")
        if kind == "while":
            return self._loop(computation, operation, scope, seconds)
        if kind == "conditional":
            return self._dearest(operation, scope, seconds)
        if kind == "fusion":
            return self._fusion(computation, operation, scope, seconds)
        if kind in ("call", "async"):
            called = operation.called("to_apply", "calls", "called_computations")
            return [work for name in called for work in self._all(name, scope, seconds)]
        if kind in COLLECTIVES:
            return [self._collective(computation, operation, kind, scope)]
        if kind == "custom-call" and '"AllocateBuffer"' in operation.attributes:
            return []
        if kind == "custom-call" and "tpu_custom_call" in operation.attributes:
            return [self._kernel(computation, operation, scope)]
        return [self._plain(computation, operation, kind, scope)]

    def _loop(self, computation: str, loop: Operation, scope: str, seconds) -> list[Work]:
        turns, guesses = self.module.turns(computation, loop)
        self.notes |= guesses
        found = []
        for part, times in (("body", turns), ("condition", turns + 1)):
            (name,) = loop.called(part)
            work = self._all(name, scope, seconds)
            found += [replace(one, times=times * one.times) for one in work]
        return found

    def _dearest(self, conditional: Operation, scope: str, seconds) -> list[Work]:
        names = conditional.called("branch_computations", "true_computation", "false_computation")
        sides = [self._all(name, scope, seconds) for name in names]
        costs = [sum(one.times * seconds(one) for one in side) for side in sides]
        if max(costs) > 0:
            self.notes.add("of a conditional's branches only the dearest counts")
        return sides[costs.index(max(costs))]

    def _fusion(self, computation: str, fusion: Operation, scope: str, seconds) -> list[Work]:
        """The fusion as it is priced, with the collectives and kernels that it holds."""
        own, held = self._plain(computation, fusion, "fusion", scope), []
        for name in fusion.called("calls"):
            for one in self._all(name, scope, seconds):
                # What libtpu calls so is an all-reduce of which each chip keeps only its slice.
                if name.startswith("all-reduce-scatter") and one.name == "all-reduce":
                    one = replace(one, name="reduce-scatter", sent=one.sent / 2)
                held += [one] if one.kind in ("collective", "kernel") else []
        return held if held and own.kind == "unpriced" else [own, *held]

    def _plain(self, computation: str, operation: Operation, kind: str, scope: str) -> Work:
        if operation.cycles is None:
            return Work("unpriced", kind, scope, 1, bytes=self._made(computation, operation))
        return Work("compiled", kind, scope, 1, cycles=operation.cycles)

    def _collective(self, computation, operation: Operation, kind: str, scope: str) -> Work:
        taken, made = self._taken(computation, operation), self._made(computation, operation)
        whole = max(taken, made)
        chips = group(operation.attributes, self.module.partitions)
        if kind == "collective-permute":
            whole = sent = taken
        else:
            sent = (2 if kind == "all-reduce" else 1) * whole * (len(chips) - 1) / len(chips)
        axes = 1
        if self.places and kind != "collective-permute":
            sides = zip(*(self.places[chip] for chip in chips), strict=True)
            axes = max(1, sum(len(set(side)) > 1 for side in sides))
        channel = re.search(r"channel_id=(\d+)", operation.attributes)
        return Work(
            *("collective", kind, scope, 1),
            bytes=whole,
            sent=float(sent),
            axes=axes,
            channel=channel[1] if channel else "",
            spread=computation.startswith("async_collective_fusion"),
        )

    def _kernel(self, computation, operation: Operation, scope: str) -> Work:
        given = re.search(r'"cost_estimate": ?\{([^}]*)\}', operation.attributes)
        counts = dict(re.findall(r'"(\w+)": ?"?(\d+)', given[1])) if given else {}
        moved = self._taken(computation, operation) + self._made(computation, operation)
        if not given:
            self.notes.add("a kernel without a cost estimate counts by its bytes alone")
        return Work(
            "kernel",
            operation.name.partition(".")[0],  # behind it stands which of its copies this is
            scope,
            1,
            flops=int(counts.get("flops", 0)),
            bytes=int(counts.get("bytes_accessed", 0)) or moved,
        )

    def _taken(self, computation: str, operation: Operation) -> int:
        """Bytes of the operands."""
        known = self.module.computations[computation]
        return sum(size_of(known[name].shape) for name in operation.operands if name in known)

    def _made(self, computation: str, operation: Operation) -> int:
        """Bytes of the result, which that of an asynchronous start holds beside the operands."""
        started = operation.kind.endswith("-start") and operation.shape.startswith("(")
        also = self._taken(computation, operation) if started else 0
        return size_of(operation.shape) - also


def group(text: str, partitions: int) -> list[int]:
    """Chips that take part in a collective together: its first group, from its attributes."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", text)
    if mesh:
        taken = dict(re.findall(r"'(\w+)'(?::\((\d+\)\d+))?", mesh[3]))
        view, chosen = [], []
        for axis, size in re.findall(r"'(\w+)'=(\d+)", mesh[1]):
            if taken.get(axis):  # a part of the axis, that goes round once for each step before it
                before, part = map(int, taken[axis].split(")"))
                view += [before, part, int(size) // before // part]
                chosen += [0, slice(None), 0]
            else:
                view += [int(size)]
                chosen += [slice(None) if axis in taken else 0]
        chips = _numbers(mesh[2] or f"[{partitions}]").reshape(view)
        return chips[tuple(chosen)].ravel().tolist()
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text)
    if counted:
        return _numbers(counted[2])[: int(counted[1])].tolist()
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", text)
    return [int(chip) for chip in listed[1].split(",")] if listed else list(range(partitions))


def _numbers(text: str) -> np.ndarray:
    """Numbers as a program lists them: "[4,2]T(1,0)" are 0 to 7, as columns of a 4 x 2 matrix."""
    shape, order = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
    shape = [int(size) for size in shape.split(",")]
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return numbers.transpose([int(i) for i in order.split(",")] if order else None).ravel()


def _once(work: list[Work]) -> list[Work]:
    """Collectives in pieces as one each.

    libtpu spreads one that runs beside a computation over several of its fusions, the first and the
    last perhaps outside a loop; it runs as often as the rarest of them.
    """

    def key(one: Work):
        return one.name, one.channel, one.bytes, one.scope

    pieces = {key(one): [] for one in work if one.spread}
    for one in work:
        pieces.get(key(one), []).append(one)
    whole = {name: min(found, key=lambda one: one.times) for name, found in pieces.items()}
    return [one for one in work if key(one) not in pieces] + list(whole.values())
