"""TPU chips, as data sheets have them, and slices of them that the compiler can build for.

Nothing here needs a TPU: libtpu, the compiler that `pip install 'evatok_jax[tpu]'` brings,
describes slices on any Linux machine.
"""

import difflib
import importlib.util
import itertools
import math
import os
import re
from dataclasses import dataclass, replace

import jax
from jax.experimental import topologies

from evatok_jax.names import nearest

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One chip (cloud.google.com/tpu/docs, "system architecture" of each).

    Attributes:
      clock: of the matrix units, 1/s: what a cycle in the compiler's estimates is.
      flops: peak of bf16 products, 1/s.
      memory: HBM that a program may use, bytes, as the compiler states it.
      bandwidth: of the HBM, bytes/s.
      link: bytes/s that a chip sends over one link to a neighbour; it has two an axis.
      dimensions: of the torus.
      chips: of the largest slice.
      links: over which a ring along an axis sends: 2, or 1 where its ends are not joined.
    """

    clock: float
    flops: float
    memory: float
    bandwidth: float
    link: float
    dimensions: int
    chips: int
    links: int = 2


CHIPS = {
    "v4": Chip(1.05e9, 275e12, 31.25 * GIB, 1228e9, 50e9, 3, 4096),
    "v5e": Chip(1.503e9, 197e12, 15.75 * GIB, 819e9, 50e9, 2, 256),
    "v5p": Chip(1.75e9, 459e12, 95.74 * GIB, 2765e9, 100e9, 3, 6144),
    "v6e": Chip(1.75e9, 918e12, 31.25 * GIB, 1638e9, 100e9, 2, 256),
}
# What libtpu, as it starts, would ask a cloud service, and complain of where there is none.
NOWHERE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it uses no TPU that another process could want
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
# Sides of slices: of v5e and v6e these shapes exist, of v4 and v5p all blocks of these sides.
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SIDES = (4, 8, 12, 16, 20, 24)
# By dimensions of the torus, of what an axis must be a multiple for its ends to be joined: the side
# of a whole pod, and of the cubes that optical switches join.
JOINED = {2: 16, 3: 4}


def shapes(kind: str) -> list[str]:
    """The slices of a kind of chip, as "8x8" or "4x4x8"."""
    if CHIPS[kind].dimensions == 2:
        return list(FLAT)
    cubes = itertools.combinations_with_replacement(SIDES, 3)
    cubes = (sides for sides in cubes if math.prod(sides) <= CHIPS[kind].chips)
    return ["2x2x1", "2x2x2", "2x2x4", "2x4x4", *("x".join(map(str, sides)) for sides in cubes)]


def sides_of(shape: str) -> list[int]:
    """Chips along each axis of a slice."""
    return [int(side) for side in shape.split("x")]


def describe(name: str):
    """The devices of a slice, "v5e:8x8" say, and their chip as it is linked there.

    Raises ValueError for an unknown slice, naming the nearest, or where libtpu is not installed.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise ValueError(f"unknown topology {name!r}: {nearest(kind, CHIPS)}, as in v5e:8x8")
    if shape not in shapes(kind):
        known = sorted(shapes(kind), key=sides_of)
        close = difflib.get_close_matches(shape, known, n=1)
        raise ValueError(f"unknown topology {name!r}: {nearest(shape, {*known[:12], *close})}")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "the TPU compiler is not installed; it needs no TPU: pip install 'evatok_jax[tpu]', or "
            f"pip install 'jax[tpu]=={jax.__version__}'"
        )
    more = {}
    if CHIPS[kind].dimensions == 3:  # the two cores of a chip work as one device
        more["chip_config_name"] = "megacore"
    elif shape == "1x1":
        more["chips_per_host_bounds"] = (1, 1, 1)
    before = {variable: os.environ.get(variable) for variable in NOWHERE}
    os.environ.update(NOWHERE)
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **more)
    except Exception as error:  # of libtpu's own kinds
        said = re.sub(r"\s+", " ", str(error))
        raise ValueError(f"libtpu cannot describe {name}: {said}") from error
    finally:
        for variable, value in before.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value
    return found.devices, linked(kind, shape)


def linked(kind: str, shape: str) -> Chip:
    """A chip of a slice: rings send both ways only where all of its axes are joined."""
    chip = CHIPS[kind]
    joined = all(side % JOINED[chip.dimensions] == 0 for side in sides_of(shape))
    return chip if joined else replace(chip, links=1)
