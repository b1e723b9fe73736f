"""Floating-point operations of a traced function, counted by the scopes that its code names.

XLA's own count takes the body of a loop once, however often it runs, and layers are loops here.
This walks the jaxpr instead: a loop counts as often as it turns, a branch as its dearest side, a
kernel as what it says it costs.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def flops_by_scope(function: Callable, *args, scopes: Sequence[str]) -> Counter:
    """Operations of matrix products and convolutions, two for a multiply-add.

    Args:
      function: traced on `args`, which may be shapes.
      scopes: names given by `jax.named_scope`; what lies in several belongs to the outermost, what
        lies in none to "other". A scope's backward pass is its own.
    """
    counts = Counter()
    _count(jax.make_jaxpr(function)(*args).jaxpr, "", 1, scopes, counts)
    return counts


def _count(jaxpr: Jaxpr, stack: str, times: int, scopes, counts: Counter) -> None:
    for eqn in jaxpr.eqns:
        own = f"{stack}/{eqn.source_info.name_stack}"
        name = eqn.primitive.name
        if name == "dot_general":
            counts[_scope(own, scopes)] += times * _dot(eqn)
        elif name == "conv_general_dilated":
            counts[_scope(own, scopes)] += times * _convolution(eqn)
        elif name == "cond":
            sides = []
            for branch in eqn.params["branches"]:
                sides.append(Counter())
                _count(branch.jaxpr, own, times, scopes, sides[-1])
            counts.update(max(sides, key=lambda side: side.total()))
        elif name == "pallas_call" and eqn.params["cost_estimate"] is not None:
            counts[_scope(own, scopes)] += times * eqn.params["cost_estimate"].flops
        else:
            turns = 1
            if name == "scan":
                turns = eqn.params["length"]
            elif name == "shard_map":  # shapes inside are those of one device
                turns = eqn.params["mesh"].size
            for inner in _inner(eqn):
                _count(inner, own, times * turns, scopes, counts)


def _inner(eqn) -> list[Jaxpr]:
    """The jaxprs that an equation runs."""
    found = []
    for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(part, ClosedJaxpr):
                found.append(part.jaxpr)
            elif isinstance(part, Jaxpr):
                found.append(part)
    return found


def _scope(stack: str, scopes) -> str:
    found = re.search(rf"(?<![\w.])({'|'.join(scopes)})(?![\w.])", stack)
    return found[1] if found else "other"


def _dot(eqn) -> int:
    ((contracted, _), _), left = eqn.params["dimension_numbers"], eqn.invars[0].aval
    return 2 * eqn.outvars[0].aval.size * math.prod(left.shape[i] for i in contracted)


def _convolution(eqn) -> int:
    numbers, kernel = eqn.params["dimension_numbers"], eqn.invars[1].aval
    # Each output value sums over the kernel's window and its input channels.
    window = kernel.size // kernel.shape[numbers.rhs_spec[0]]
    return 2 * eqn.outvars[0].aval.size * window
