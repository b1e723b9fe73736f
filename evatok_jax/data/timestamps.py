"""When the frames of a video are shown: what its time stamps say, where they can be believed."""

from fractions import Fraction

import numpy as np
from jaxtyping import Int64

from evatok_jax.data.container import BadVideo


def frame_times(
    presented: list[int | None],
    decoded: list[int | None],
    duration: int,
    rate: Fraction | None,
    time_base: Fraction,
) -> tuple[Int64[np.ndarray, " edges"], Fraction]:
    """Chooses the time stamps: presentation times, else decoding times, else the frame rate.

    `presented` and `decoded` are those of the frames in the order of showing, in ticks of
    `time_base` seconds, None where the file has none; `duration` is the last frame's, 0 if unknown;
    `rate` is the video's frame rate, None or 0 if unknown.

    Returns the ticks at which the frames start and the last one ends, strictly increasing, and the
    seconds of one tick. Raises BadVideo where there are neither usable time stamps nor a rate.
    """
    if not duration and rate:
        duration = max(1, round(1 / (rate * time_base)))
    # Old AVI files state the former wrongly where frames are packed, and frames come in order.
    for stamps in (presented, decoded):
        ticks = _increasing(stamps, duration)
        if ticks is not None:
            return ticks, time_base
    if not rate:
        raise BadVideo("no usable time stamps, and no frame rate", "no times")
    return np.arange(len(presented) + 1), 1 / rate


def _increasing(stamps: list[int | None], duration: int) -> Int64[np.ndarray, " edges"] | None:
    """Starts of the frames and the end of the last one, or None where they do not increase.

    Frames that the decoder held back at the end of a file may lack their time: they follow at the
    duration that most frames have.
    """
    known = [stamp for stamp in stamps if stamp is not None]
    if not known or stamps[: len(known)] != known:
        return None
    steps = np.diff(np.array(known, np.int64))
    if (steps <= 0).any():
        return None
    values, counts = np.unique(steps, return_counts=True)
    usual = int(values[counts.argmax()]) if steps.size else max(1, duration)
    missing = len(stamps) - len(known)
    late = known[-1] + usual * np.arange(1, missing + 1)
    ticks = np.concatenate([known, late]).astype(np.int64)
    return np.append(ticks, ticks[-1] + (duration or usual))
