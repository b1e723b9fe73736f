"""Reads the scheduled program that XLA prints: its computations, and how often its loops turn.

`compiled.as_text()` is the only full account of a program for a TPU: `cost_analysis()` takes the
body of a loop once, and times nothing reliably. What of a program takes time is in costs.py.
"""

import math
import re
from dataclasses import dataclass

BITS = {"pred": 8, "token": 0, "opaque": 0}  # others end in their number of bits
# What hands a number on as it is.
COPIES = ("copy", "convert", "bitcast", "reshape")


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

    @property
    def index(self) -> int:
        """Which entry of a tuple it takes."""
        return int(re.search(r"index=(\d+)", self.attributes)[1])

    @property
    def number(self) -> int | None:
        """What a constant is, if a whole number."""
        whole = self.kind == "constant" and re.fullmatch(r"-?\d+", self.literal)
        return int(self.literal) if whole else None

    def called(self, *kinds: str) -> list[str]:
        """The computations named by these attributes."""
        pattern = rf"(?:{'|'.join(kinds)})=(?:\{{([^}}]*)\}}|%?([\w.\-]+))"
        names = (many or one for many, one in re.findall(pattern, self.attributes))
        return [name.strip().lstrip("%") for part in names for name in part.split(",")]


def size_of(shape: str) -> int:
    """Bytes of a shape, or of all parts of a tuple, as `bf16[8,128]{1,0}` prints them."""
    total = 0
    for kind, dims in re.findall(r"\b([a-z]\w*)\[([\d,<=]*)\]", shape):
        bits = BITS.get(kind) if kind in BITS else int(re.search(r"\d+", kind)[0])
        total += bits * math.prod(int(d.lstrip("<=")) for d in dims.split(",") if d) // 8
    return total


class Module:
    """A scheduled module.

    Attributes:
      computations: name -> its operations by name, in their order.
      roots: name -> its result; entry: which computation is the program; partitions: of how many.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Operation]] = {}
        self.roots: dict[str, str] = {}
        self.entry = ""
        found = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
        self.partitions = int(found[1]) if found else 1
        current = None
        for line in text.splitlines():
            if current is None:
                head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
                if head:
                    current, self.computations[head[2]] = head[2], {}
                    if head[1] or not self.entry:
                        self.entry = current
            elif line.startswith("}"):
                current = None
            else:
                operation = _parse(line)
                if operation:
                    self.computations[current][operation.name] = operation
                    if line.lstrip().startswith("ROOT"):
                        self.roots[current] = operation.name
        self._loops = {
            body: (computation, operation)
            for computation, operations in self.computations.items()
            for operation in operations.values()
            if operation.kind == "while"
            for body in operation.called("body")
        }

    # ---- how often a loop turns ----------------------------------------------------------------

    def turns(self, computation: str, loop: Operation) -> tuple[int, set[str]]:
        """Turns of a loop, and what of that is a guess.

        XLA knows them, or they follow from a counter: an entry of the state that the condition
        compares with a number and the body adds a number to. Where other conditions may end the
        loop early that is the most; without a counter it is 1.
        """
        known = re.search(r'known_trip_count":?\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1]), set()
        counter = self._counter(loop)
        if counter is None:
            return 1, {"a loop of unknown length counts once"}
        entry, step, bound = counter
        guesses = set()
        first = self._entry(computation, loop.operands[0], entry)
        if first is None:
            first = 0
            guesses.add("a loop that begins at an unknown number counts from 0")
        counting = {"compare", "constant", "parameter", "get-tuple-element", "fusion", "call"}
        (condition,) = loop.called("condition")
        if set(self._kinds(condition)) - counting.union(COPIES):
            guesses.add("a loop that may end early counts to its bound")
        return max(-(-(bound - first) // step), 0), guesses

    def _counter(self, loop: Operation) -> tuple[int, int, int] | None:
        """Which entry of a loop's state counts, by which steps, and what it stays below."""
        (condition,), (body,) = loop.called("condition"), loop.called("body")
        for entry, bound in self._comparisons(condition, None):
            kind, found = self._after(body, entry)
            if kind == "sum" and found[0] == entry and found[1] > 0:
                return entry, found[1], bound
        return None

    def _kinds(self, computation: str):
        for operation in self.computations[computation].values():
            yield operation.kind
            for name in operation.called("calls", "to_apply"):
                yield from self._kinds(name)

    def _comparisons(self, computation: str, given):
        """(entry, bound) of all that compares an entry of the state with a constant."""
        for operation in self.computations[computation].values():
            if operation.kind in ("fusion", "call"):
                arguments = [self._origin(computation, name, given) for name in operation.operands]
                for name in operation.called("calls", "to_apply"):
                    yield from self._comparisons(name, arguments)
            elif operation.kind == "compare":
                sides = [self._origin(computation, name, given) for name in operation.operands]
                way = re.search(r"direction=(\w+)", operation.attributes)[1]
                if way in ("GT", "GE"):
                    sides, way = sides[::-1], {"GT": "LT", "GE": "LE"}[way]
                (left, entry), (right, bound) = sides
                if (left, right) == ("entry", "number") and way in ("LT", "LE", "NE"):
                    yield entry, bound + (way == "LE")

    def _origin(self, computation: str, name: str, given) -> tuple:
        """Where a whole number comes from, in the condition or the body of a loop.

        ("number", value), ("entry", which of the state), ("sum", (entry, number added to it)) or
        ("unknown", None). `given` are the origins of what a fusion is called with.
        """
        operation = self.computations[computation][name]
        if not re.match(r"[su]\d+\[\]", operation.shape):
            return "unknown", None
        if operation.kind in COPIES:
            return self._origin(computation, operation.operands[0], given)
        if operation.number is not None:
            return "number", operation.number
        if operation.kind == "parameter" and given is not None:
            return given[int(operation.literal)]
        if operation.kind in ("fusion", "call"):
            return self._inside(computation, operation, given)
        if operation.kind == "get-tuple-element":
            made = self.computations[computation][operation.operands[0]]
            if made.kind == "fusion":
                return self._inside(computation, made, given, operation.index)
            if made.kind == "parameter" and given is None:
                return "entry", operation.index
        if operation.kind == "add":
            sides = dict(self._origin(computation, name, given) for name in operation.operands)
            if set(sides) == {"entry", "number"}:
                return "sum", (sides["entry"], sides["number"])
        return "unknown", None

    def _inside(self, computation: str, fusion: Operation, given, index=None) -> tuple:
        """The same of a fusion's result, or of one entry of it."""
        arguments = [self._origin(computation, name, given) for name in fusion.operands]
        (name,) = fusion.called("calls", "to_apply")
        result = self.roots[name]
        if index is not None:
            result = self.computations[name][result].operands[index]
        return self._origin(name, result, arguments)

    def _after(self, body: str, entry: int) -> tuple:
        """The origin of an entry of the state after a turn."""
        made = self.computations[body][self.roots[body]]
        if made.kind != "tuple":
            return "unknown", None
        return self._origin(body, made.operands[entry], None)

    def _entry(self, computation: str, name: str, entry: int) -> int | None:
        """What an entry of a tuple is, where that is known before the program runs."""
        made = self.computations[computation][name]
        if made.kind == "copy":
            return self._entry(computation, made.operands[0], entry)
        if made.kind == "tuple":
            return self._number(computation, made.operands[entry])
        if made.kind == "while":
            if self._after(*made.called("body"), entry) == ("entry", entry):
                return self._entry(computation, made.operands[0], entry)
            counter = self._counter(made)  # it ends at its bound, if that is reached by ones
            return counter[2] if counter and counter[:2] == (entry, 1) else None
        if made.kind != "parameter" or computation not in self._loops:
            return None
        if self._after(computation, entry) != ("entry", entry):
            return None
        outer, loop = self._loops[computation]  # whose state this is, and leaves that entry alone
        return self._entry(outer, loop.operands[0], entry)

    def _number(self, computation: str, name: str) -> int | None:
        operation = self.computations[computation][name]
        if operation.kind in (*COPIES, "copy-start", "copy-done"):
            return self._number(computation, operation.operands[0])
        if operation.kind == "get-tuple-element":
            return self._entry(computation, operation.operands[0], operation.index)
        return operation.number


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
