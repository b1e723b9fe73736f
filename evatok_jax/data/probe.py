"""Probing: a full decode of a video, which finds all that must be known of it without decoding.

A video is decoded frame by frame; what is kept of a frame is a few numbers. So a probe needs no
more memory for an hour than for a second.
"""

import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from io import IOBase
from itertools import islice

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import Float32, Float64, Int64, UInt8

from evatok_jax.data.container import PRESENT, BadVideo, LastingTurns, reason
from evatok_jax.data.decode import frames_from, open_decoder
from evatok_jax.data.timestamps import frame_times

_SEEK_APART = 8  # key frames nearer than this many frames to the last one are not worth a row
_MOTION_ROWS = 128  # of the smaller picture on which motion is measured
_POINTS = Interpolation.POINT | Interpolation.BITEXACT  # a mean over points is as good as over all


def _silent() -> None:
    """The progress of somebody who does not want to know."""


@dataclass(frozen=True)
class Scan:
    """What one full decode has seen; lists have an entry for each frame.

    Attributes:
      stamps: time stamps as they are, in ticks of the track, None where there is none.
      keys: whether it is a key frame.
      sums: checksums of the pictures' first planes (luma, of most formats).
      motion: mean absolute difference of luma to the frame before, in levels of 0 to 255.
      times: seconds, from the first frame on, at which the frames start, and the end of the last.
      height, width: of the pictures, upright.
      fps: average frame rate, 0 where the file does not say.
      look: how stored pictures become shown ones: format, turns, colour matrix and range.
    """

    stamps: list[int | None]
    keys: list[bool]
    sums: list[int]
    motion: Float32[np.ndarray, " frames"]
    times: Float64[np.ndarray, " edges"]
    height: int
    width: int
    fps: float
    look: tuple

    def probe(
        self, keyframes: Int64[np.ndarray, "n 2"], start: int = 0, stop: int | None = None
    ) -> "Probe":
        """What is to be known of frames start to stop, or of all, as a video of their own."""
        times = self.times[start : None if stop is None else stop + 1]
        return Probe(
            len(times) - 1,
            *(self.height, self.width, self.fps),
            *(times - times[0], self.motion[start:stop], keyframes),
        )


@dataclass(frozen=True)
class Probe:
    """What must be known of a video to take clips from it.

    Attributes:
      frames, height, width: of the decoded pictures, upright (rotation tags are applied).
      fps: average frame rate, 0 where the file does not say.
      times, motion: as in `Scan`.
      keyframes: int64 [n, 2] of (frame number, time stamp in ticks of the stream) from which a
        window can be reached by seeking; the first row is always (0, 0) and means: from the start.
    """

    frames: int
    height: int
    width: int
    fps: float
    times: Float64[np.ndarray, " edges"]
    motion: Float32[np.ndarray, " frames"]
    keyframes: Int64[np.ndarray, "n 2"]


def probe(source: bytes | IOBase, progress: Callable[[], None] = _silent) -> Probe:
    """Decodes a whole video, and again from its key frames to see which of them can be trusted.

    `progress` is called after each frame. Raises BadVideo as `scan` does.
    """
    found = scan(source, progress)
    return found.probe(trusted(source, found, progress))


def scan(source: bytes | IOBase, progress: Callable[[], None] = _silent) -> Scan:
    """Decodes a whole video once.

    Raises BadVideo as `open_video` does, and for one that has no pictures, is cut off (less than
    90 % of the frames or the duration that it announces), is damaged, changes its picture's size,
    format or rotation, or has neither usable time stamps nor a frame rate.
    """
    container, stream = open_decoder(source)
    with container:
        stamps, decoded, keys, sums, shapes = [], [], [], [], set()
        motion, turned = _Motion(), LastingTurns()
        try:
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise BadVideo(f"frame {len(stamps)} is damaged")
                stamps.append(frame.pts)
                decoded.append(frame.dts)
                keys.append(frame.key_frame)
                sums.append(_checksum(frame))
                shapes.add((frame.height, frame.width, frame.format.name, turned(frame)))
                if len(shapes) > 1:
                    raise BadVideo(
                        f"the picture changes its size, format or rotation: {sorted(shapes)}",
                        "changing",
                    )
                motion.see(frame)
                progress()
        except av.FFmpegError as error:
            raise BadVideo(f"decoding fails after {len(stamps)} frames: {reason(error)}") from error
        if not stamps:
            raise BadVideo("no picture in its video stream", "no pictures")
        _check_length(container, stream, stamps)
        rate = stream.average_rate or stream.guessed_rate
        ticks, tick = frame_times(stamps, decoded, frame.duration, rate, stream.time_base)
    height, width, name, turns = shapes.pop()
    if turns.swapped:
        height, width = width, height
    look = (name, turns, int(frame.colorspace), int(frame.color_range))
    times = (ticks - ticks[0]) * float(tick)
    steps = np.array(motion.steps, np.float32)
    return Scan(stamps, keys, sums, steps, times, height, width, float(rate or 0), look)


def trusted(
    source: bytes | IOBase, found: Scan, progress: Callable[[], None] = _silent
) -> Int64[np.ndarray, "n 2"]:
    """The key frames from which seeking gives the same pictures as decoding from the start.

    Each is tried up to the next one. Streams with open groups of pictures or with time stamps that
    repeat (old AVI files) lose some or all of theirs and are decoded from the start.
    """
    rows, uses = [(0, 0)], Counter(found.stamps)
    candidates = [
        number
        for number, (key, stamp) in enumerate(zip(found.keys, found.stamps, strict=True))
        if key and stamp is not None and uses[stamp] == 1
    ]
    ends = [*candidates[1:], len(found.stamps) - 1]
    container, stream = open_decoder(source)
    with container:
        for first, end in zip(candidates, ends, strict=False):
            if first - rows[-1][0] < _SEEK_APART:
                continue
            sums = []
            try:
                for frame in islice(
                    frames_from(container, stream, first, found.stamps[first]), end - first + 1
                ):
                    sums.append(_checksum(frame))
                    progress()
            except av.FFmpegError:
                continue  # this key frame is not used; the full decode has shown the video good
            if sums == found.sums[first : end + 1]:
                rows.append((first, found.stamps[first]))
    return np.array(rows, np.int64)


class _Motion:
    """Mean absolute differences of luma between frames that follow each other.

    They are taken at points of the picture, on the same few thousand of every format.
    """

    def __init__(self):
        self.steps = []
        self._scale = VideoReformatter()
        self._last = None

    def see(self, frame: av.VideoFrame) -> None:
        """Adds the step to this frame; that to the first one is 0."""
        rows = min(frame.height, _MOTION_ROWS)
        columns = max(1, round(frame.width * rows / frame.height))
        small = self._scale.reformat(frame, columns, rows, "gray", interpolation=_POINTS)
        luma = _first_plane(small).astype(np.int16)
        last = luma if self._last is None else self._last
        self.steps.append(int(np.abs(luma - last).sum()) / luma.size)
        self._last = luma


def _first_plane(frame: av.VideoFrame) -> UInt8[np.ndarray, "h bytes"]:
    """The bytes of the first plane (luma, of most formats), without the padding of its lines."""
    plane, sample = frame.planes[0], -(-frame.format.components[0].bits // 8)
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return rows[: plane.height, : plane.width * sample]


def _checksum(frame: av.VideoFrame) -> int:
    """A checksum of the first plane."""
    return zlib.crc32(np.ascontiguousarray(_first_plane(frame)))


def _check_length(container, stream, stamps: list[int | None]) -> None:
    """Raises BadVideo where clearly less was decoded than the file announces."""
    count = len(stamps)
    if stream.frames:
        if count < PRESENT * stream.frames:
            there = f"{count} of {stream.frames} frames"
            raise BadVideo(f"cut off: {there} can be decoded", "cut off")
    elif container.duration and not container.streams.audio and None not in stamps:
        # Matroska and the like announce only the second at which all ends, the sound's end too.
        span = max(stamps) - min(stamps)
        end = max(stamps) - min(0, min(stamps)) + Fraction(span, max(1, count - 1))
        seconds, announced = float(end * stream.time_base), container.duration / av.time_base
        if count > 1 and seconds < PRESENT * announced:
            there = f"{seconds:.2f} of {announced:.2f} seconds"
            raise BadVideo(f"cut off: {there} can be decoded", "cut off")
