"""Reads the scheduled program that XLA prints: what runs, how often, and at what estimated cost.

`compiled.as_text()` is the only full account of a program for a TPU: `cost_analysis()` takes the
body of a loop once, and times nothing reliably. In the text, operations that the compiler priced
carry `estimated_cycles`; collectives and Pallas kernels carry none, so those come with their bytes
and operations instead.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

BITS = {"pred": 8, "token": 0, "opaque": 0}  # others end in their number of bits
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
    *("partition-id", "replica-id", "add-dependency", "opt-barrier", "domain", "copy-start"),
    *("copy-done", "async-update", "async-done", "slice-start", "slice-done"),
    *(f"{kind}-done" for kind in COLLECTIVES),
)

# What only hands a value on.
FORWARDS = (
    *("parameter", "get-tuple-element", "fusion", "call"),
    *("copy", "convert", "bitcast", "reshape"),
)


@dataclass(frozen=True)
class Operation:
    """One line of a computation: `%name = shape kind(operands), attributes`."""

    name: str
    kind: str
    shape: str
    operands: tuple[str, ...]
    literal: str  # between the brackets: of a constant its value, of a parameter its number
    attributes: str

    @property
    def scope(self) -> str:
        """The names that the Python code gave it, and the primitive that it came from."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found and "/" in found[1] else ""

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate, where it made one."""
        found = re.search(r'"estimated_cycles":"?(\d+)', self.attributes)
        return int(found[1]) if found else None

    def called(self, *kinds: str) -> list[str]:
        """The computations named by these attributes."""
        pattern = rf"(?:{'|'.join(kinds)})=(?:\{{([^}}]*)\}}|%?([\w.\-]+))"
        names = (many or one for many, one in re.findall(pattern, self.attributes))
        return [name.strip().lstrip("%") for part in names for name in part.split(",")]


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
    """

    kind: str
    name: str
    scope: str
    times: int
    cycles: int = 0
    flops: int = 0
    bytes: int = 0
    sent: float = 0.0


def size_of(shape: str) -> int:
    """Bytes of a shape, or of all parts of a tuple, as `bf16[8,128]{1,0}` prints them."""
    total = 0
    for kind, dims in re.findall(r"\b([a-z]\w*)\[([\d,<=]*)\]", shape):
        bits = BITS.get(kind) if kind in BITS else int(re.search(r"\d+", kind)[0])
        total += bits * math.prod(int(d.lstrip("<=")) for d in dims.split(",") if d) // 8
    return total


class Program:
    """The computations of a scheduled module, by name."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Operation]] = {}
        self.roots: dict[str, str] = {}
        self.notes: set[str] = set()
        found = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
        self.partitions = int(found[1]) if found else 1
        current = None
        for line in text.splitlines():
            if current is None:
                head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
                if head:
                    current, self.computations[head[2]] = head[2], {}
                    self.entry = head[2] if head[1] else getattr(self, "entry", head[2])
            elif line.startswith("}"):
                current = None
            else:
                operation = _parse(line)
                if operation:
                    self.computations[current][operation.name] = operation
                    if line.lstrip().startswith("ROOT"):
                        self.roots[current] = operation.name

    def work(self, price: Callable[[Work], float]) -> list[Work]:
        """All that takes time, loops multiplied by their turns.

        Of the branches of a conditional it takes the dearest, by `price`, the time of one run. What
        that and unknown numbers of turns leave open is in `notes`.
        """
        self.notes = set()
        return self._work(self.entry, "", price)

    def _work(self, computation: str, scope: str, price) -> list[Work]:
        found = []
        for operation in self.computations[computation].values():
            # What the compiler inserted, copies say, belongs to the loop that it stands in.
            own = operation.scope or scope
            inner = []
            if operation.kind == "while":
                turns = self.turns(computation, operation)
                (body,) = operation.called("body")
                inner = [replace(w, times=w.times * turns) for w in self._work(body, own, price)]
            elif operation.kind == "conditional":
                names = operation.called(
                    "branch_computations", "true_computation", "false_computation"
                )
                sides = [self._work(name, own, price) for name in names]
                costs = [sum(w.times * price(w) for w in side) for side in sides]
                inner = sides[costs.index(max(costs))]
                if max(costs) > 0:
                    self.notes.add("of a conditional's branches only the dearest counts")
            elif operation.kind in ("call", "async-start"):
                for name in operation.called("to_apply", "calls", "called_computations"):
                    inner += self._work(name, own, price)
            elif operation.kind == "fusion":
                inner = [self._one(computation, operation, own)]
                for name in operation.called("calls"):
                    hidden = self._work(name, own, price)
                    inner += [w for w in hidden if w.kind in ("collective", "kernel")]
            elif operation.kind not in FREE and '"AllocateBuffer"' not in operation.attributes:
                inner = [self._one(computation, operation, own)]
            found += inner
        return found

    def _one(self, computation: str, operation: Operation, scope: str) -> Work:
        kind = operation.kind.removesuffix("-start")
        if kind in COLLECTIVES:
            return self._collective(computation, operation, kind, scope)
        if kind == "custom-call" and "tpu_custom_call" in operation.attributes:
            return self._kernel(computation, operation, scope)
        cycles = operation.cycles
        if cycles is None:
            return Work("unpriced", kind, scope, 1, bytes=size_of(operation.shape))
        return Work("compiled", kind, scope, 1, cycles=cycles)

    def _collective(self, computation, operation: Operation, kind: str, scope: str) -> Work:
        taken, made = self._operand_bytes(computation, operation), size_of(operation.shape)
        if operation.kind.endswith("-start"):  # its shape is that of what it takes and makes
            made -= taken
        whole, n = max(taken, made), self._group(operation)
        if kind == "collective-permute":
            whole = sent = taken
        else:
            sent = (2 if kind == "all-reduce" else 1) * whole * (n - 1) / n
        return Work("collective", kind, scope, 1, bytes=whole, sent=float(sent))

    def _kernel(self, computation, operation: Operation, scope: str) -> Work:
        given = re.search(r'"cost_estimate": ?\{([^}]*)\}', operation.attributes)
        counts = dict(re.findall(r'"(\w+)": ?"?(\d+)', given[1])) if given else {}
        moved = self._operand_bytes(computation, operation) + size_of(operation.shape)
        if not given:
            self.notes.add("a kernel without a cost estimate counts by its bytes alone")
        return Work(
            "kernel",
            operation.name,
            scope,
            1,
            flops=int(counts.get("flops", 0)),
            bytes=int(counts.get("bytes_accessed", 0)) or moved,
        )

    def _operand_bytes(self, computation: str, operation: Operation) -> int:
        known = self.computations[computation]
        return sum(size_of(known[name].shape) for name in operation.operands if name in known)

    def _group(self, operation: Operation) -> int:
        """How many chips take part together."""
        text = operation.attributes
        mesh = re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", text)
        if mesh:
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
            axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
            return math.prod(int(part or sizes[axis]) for axis, part in axes)
        counted = re.search(r"replica_groups=\[\d+,(\d+)\]<=", text)
        if counted:
            return int(counted[1])
        listed = re.search(r"replica_groups=\{\{([\d,]+)\}", text)
        return len(listed[1].split(",")) if listed else self.partitions

    # ---- how often a loop turns ----------------------------------------------------------------

    def turns(self, computation: str, loop: Operation) -> int:
        """Turns of a loop: as XLA knows them, or from the bound that its condition has.

        Where other conditions may end it early that is the most, and where no bound is found it is
        1; `notes` then says so.
        """
        known = re.search(r'known_trip_count":?\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        counter, bound = self._bound(loop)
        if bound is None:
            self.notes.add("a loop of unknown length counts once")
            return 1
        (body,) = loop.called("body")
        step = 1
        made = self.computations[body][self.roots[body]].operands
        added = self.computations[body].get(made[counter]) if counter < len(made) else None
        if added and added.kind == "add":
            values = [self._constant(body, name) for name in added.operands]
            step = next((v for v in values if v), 1)
        first = self._value(computation, loop.operands[0], counter) or 0
        return max(-(-(bound - first) // step), 0)

    def _bound(self, loop: Operation) -> tuple[int, int | None]:
        """Which entry of a loop's state counts, and the number that it stays below."""
        (condition,) = loop.called("condition")
        kinds = set(self._kinds(condition))
        if kinds - {"compare", "constant", *FORWARDS}:
            self.notes.add("a loop that may end early counts to its bound")
        found = self._comparisons(condition, None)
        return next(found, (0, None))

    def _kinds(self, computation: str):
        for operation in self.computations[computation].values():
            yield operation.kind
            for name in operation.called("calls", "to_apply"):
                yield from self._kinds(name)

    def _comparisons(self, computation: str, arguments):
        """(entry, bound) of all that compares an entry of the state with a constant."""
        operations = self.computations[computation]

        def origin(name):
            operation = operations[name]
            if operation.kind in ("copy", "convert", "bitcast", "reshape"):
                return origin(operation.operands[0])
            if operation.kind == "constant":
                value = self._constant(computation, name)
                return None if value is None else ("constant", value)
            if operation.kind == "get-tuple-element":
                return "entry", int(re.search(r"index=(\d+)", operation.attributes)[1])
            if operation.kind == "parameter" and arguments:
                return arguments[int(operation.literal)]
            return None

        for operation in operations.values():
            if operation.kind in ("fusion", "call"):
                given = [origin(name) for name in operation.operands]
                for name in operation.called("calls", "to_apply"):
                    yield from self._comparisons(name, given)
            elif operation.kind == "compare":
                sides = [origin(name) for name in operation.operands]
                way = re.search(r"direction=(\w+)", operation.attributes)[1]
                if way in ("GT", "GE"):
                    sides, way = sides[::-1], {"GT": "LT", "GE": "LE"}[way]
                if None in sides or [kind for kind, _ in sides] != ["entry", "constant"]:
                    continue
                if way in ("LT", "LE", "NE"):
                    yield sides[0][1], sides[1][1] + (way == "LE")

    def _constant(self, computation: str, name: str) -> int | None:
        operation = self.computations[computation].get(name)
        if operation and operation.kind in ("copy", "bitcast", "convert"):
            return self._constant(computation, operation.operands[0])
        if not operation or operation.kind != "constant":
            return None
        return int(operation.literal) if re.fullmatch(r"-?\d+", operation.literal) else None

    def _value(self, computation: str, name: str, entry: int) -> int | None:
        """What an entry of a tuple is, where that is known before the program runs."""
        operations = self.computations[computation]
        made = operations[name]
        if made.kind == "copy":
            return self._value(computation, made.operands[0], entry)
        if made.kind == "while":  # its counter ends at its bound
            counter, bound = self._bound(made)
            return bound if counter == entry else None
        if made.kind != "tuple":
            return None
        inner = operations[made.operands[entry]]
        while inner.kind in ("copy", "bitcast", "convert"):
            inner = operations[inner.operands[0]]
        if inner.kind == "get-tuple-element":
            index = int(re.search(r"index=(\d+)", inner.attributes)[1])
            return self._value(computation, inner.operands[0], index)
        return self._constant(computation, inner.name)


def _parse(line: str) -> Operation | None:
    named = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if not named:
        return None
    start = named.end()
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    kind = re.compile(r" *([\w\-]+)(?=\()").match(line, end)
    inside = _closing(line, kind.end())
    literal = line[kind.end() + 1 : inside - 1]
    return Operation(
        name=named[1],
        kind=kind[1],
        shape=line[start:end],
        operands=tuple(re.findall(r"%([\w.\-]+)", literal)),
        literal=literal,
        attributes=line[inside:],
    )


def _closing(line: str, start: int) -> int:
    """Behind the bracket that closes the one at `start`."""
    depth = 0
    for bracket in re.compile(r"[()]").finditer(line, start):
        depth += 1 if bracket[0] == "(" else -1
        if not depth:
            return bracket.end()
    raise ValueError(f"not a line of a scheduled program: {line[:200]}")
