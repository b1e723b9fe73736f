"""A small video in tokens, and moving pictures to write into files."""

from fractions import Fraction

import numpy as np
import pytest

from evatok_jax.geometry import GEOMETRIES
from evatok_jax.storage.evt import EvtFile
from evatok_jax.storage.framing import SourceInfo, box_for


def make_evt(
    frames=40, codebook=1000, name="nano", seed=0, times=None, lengths=None, **source
) -> EvtFile:
    """An `EvtFile` of random tokens; keyword arguments reach its `SourceInfo`."""
    rng = np.random.default_rng(seed)
    geometry = GEOMETRIES[name]
    width, height = source.pop("width", 320), source.pop("height", 240)
    mode = source.pop("mode", "letterbox")
    if times is None:
        times = np.arange(frames + 1)
    if lengths is None:
        clips = -(-(len(times) - 1) // geometry.frames)
        lengths = rng.choice(geometry.levels, (clips, geometry.blocks))
    info = SourceInfo(
        width=width,
        height=height,
        mode=mode,
        box=box_for((height, width), geometry.height, geometry.width, mode),
        time_base=source.pop("time_base", Fraction(1, 25)),
        timestamps=np.asarray(times, np.int64),
        **source,
    )
    codes = rng.integers(0, codebook, int(np.sum(lengths)))
    return EvtFile(codebook, geometry, "0123456789abcdef", info, np.asarray(lengths), codes)


def moving(frames: int, height: int, width: int) -> np.ndarray:
    """Smooth moving colours, uint8 [frames, height, width, 3], which survive a codec."""
    t, y, x = np.mgrid[:frames, :height, :width]
    waves = [np.sin(x / 17 + t / 5), np.cos(y / 13 + t / 7), np.sin((x + y) / 23)]
    return (127.5 + 100 * np.stack(waves, -1)).astype(np.uint8)


@pytest.fixture(name="make_evt")
def _make_evt():
    return make_evt


@pytest.fixture(name="moving")
def _moving():
    return moving
