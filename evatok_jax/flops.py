"""Floating-point operations of a traced function, counted by the scopes that its code names.

XLA's own count takes the body of a loop once, however often it runs, and layers are loops here.
This walks the jaxpr instead: a loop counts as often as it turns, a branch as its dearest side, a
Pallas kernel by its own cost estimate. What depends on the platform counts as on a TPU.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

# What JAX calls the operations that a checkpoint repeats in the backward pass.
RECOMPUTED = "rematted_computation"
# Of a kernel's products, how many (of how many) repeat those of a forward pass: all logits.
REPEATED = {"attention_backward": (1, 5)}


def flops_by_scope(function: Callable, *args, scopes: Sequence[str]) -> Counter:
    """Operations of matrix products and convolutions, two for a multiply-add.

    Args:
      function: traced on `args`, which may be shapes.
      scopes: names given by `jax.named_scope`; each part is called by its path of these names. A
        scope's backward pass is its own.
    """
    return count_flops(jax.make_jaxpr(function)(*args).jaxpr, scopes)


def count_flops(jaxpr: Jaxpr, scopes: Sequence[str], recomputed: bool = True) -> Counter:
    """The same of a jaxpr, with or without what is recomputed in a backward pass.

    Without, counts are the same whether attention keeps its logits, as plain XLA does, or not.
    """
    counts = Counter()
    _count(jaxpr, "", 1, scopes, recomputed, counts)
    return counts


def scope_path(stack: str, scopes: Sequence[str]) -> str:
    """The given names that a stack of names holds, each once, as "outer/inner"; "other" for none.

    A stack is that of a jaxpr or of a compiled operation: "jit(f)/transpose(jvp(outer))/inner/mul".
    """
    found = re.findall(rf"(?<![\w.])({'|'.join(scopes)})(?![\w.])", stack) if scopes else []
    return "/".join(dict.fromkeys(found)) or "other"


def _count(jaxpr: Jaxpr, stack: str, times: int, scopes, recomputed, counts: Counter) -> None:
    for eqn in jaxpr.eqns:
        own = f"{stack}/{eqn.source_info.name_stack}"
        if not recomputed and RECOMPUTED in own:
            continue
        name = eqn.primitive.name
        if name == "dot_general":
            counts[scope_path(own, scopes)] += times * _dot(eqn)
        elif name == "conv_general_dilated":
            counts[scope_path(own, scopes)] += times * _convolution(eqn)
        elif name == "pallas_call" and eqn.params["cost_estimate"]:
            counts[scope_path(own, scopes)] += times * _kernel(eqn, recomputed)
        elif name == "cond":
            sides = []
            for branch in _branches(eqn):
                sides.append(Counter())
                _count(branch.jaxpr, own, times, scopes, recomputed, sides[-1])
            counts.update(max(sides, key=lambda side: side.total()))
        else:
            turns = 1
            if name == "scan":
                turns = eqn.params["length"]
            elif name == "pallas_call":
                turns = math.prod(eqn.params["grid_mapping"].grid)
            elif name == "shard_map":  # shapes inside are those of one device
                turns = eqn.params["mesh"].size
            for inner in _inner(eqn):
                _count(inner, own, times * turns, scopes, recomputed, counts)


def _kernel(eqn, recomputed: bool) -> int:
    flops = eqn.params["cost_estimate"].flops
    repeated, of = (0, 1) if recomputed else REPEATED.get(eqn.params["name"], (0, 1))
    return flops * (of - repeated) // of


def _branches(eqn) -> list[ClosedJaxpr]:
    """The sides of a conditional that a TPU may take."""
    platforms, branches = eqn.params.get("branches_platforms"), eqn.params["branches"]
    if platforms is None:
        return list(branches)
    pairs = zip(platforms, branches, strict=True)
    return [next(side for names, side in pairs if names is None or "tpu" in names)]


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


def _dot(eqn) -> int:
    ((contracted, _), _), left = eqn.params["dimension_numbers"], eqn.invars[0].aval
    return 2 * eqn.outvars[0].aval.size * math.prod(left.shape[i] for i in contracted)


def _convolution(eqn) -> int:
    numbers, kernel = eqn.params["dimension_numbers"], eqn.invars[1].aval
    # Each output value sums over the kernel's window and its input channels.
    window = kernel.size // kernel.shape[numbers.rhs_spec[0]]
    return 2 * eqn.outvars[0].aval.size * window
