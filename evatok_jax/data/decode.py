"""Decoding with PyAV: whole videos when they are probed, single windows when they are used.

FFmpeg runs on one thread a stream, so that the cores are shared by clips and not within one. A
window is reached by seeking only to key frames that the probe has found to give the very same
pictures as decoding from the start.
"""

import zlib
from collections import Counter
from dataclasses import dataclass
from itertools import islice

import av
import av.filter
import numpy as np
from jaxtyping import Int64, UInt8

from evatok_jax.data.container import PRESENT, BadVideo, open_video, reason, turns

_SEEK_APART = 8  # key frames nearer than this many frames to the last one are not worth a row
# Antialiased (the triangle widens when it shrinks), the same bits on every processor, and chroma
# kept at full resolution while converting: without that RGB comes out 1 to 2 levels too dark.
_SCALING = "bilinear+accurate_rnd+bitexact+full_chroma_int"


@dataclass(frozen=True)
class Probe:
    """What a full decode of a video found.

    Attributes:
      frames, height, width: of the decoded pictures, upright (rotation tags are applied).
      fps: average frame rate, 0 where the file does not say.
      keyframes: int64 [n, 2] of (frame number, time stamp in ticks of the stream) from which a
        window can be reached by seeking; the first row is always (0, 0) and means: from the start.
    """

    frames: int
    height: int
    width: int
    fps: float
    keyframes: Int64[np.ndarray, "n 2"]


def probe(data: bytes) -> Probe:
    """Decodes a whole video, and again from its key frames to see which of them can be trusted.

    Raises BadVideo as `open_video` does, and for one that has no pictures, is cut off (less than
    90 % of the frames or the duration that it announces), is damaged, or changes its picture's
    size, format or rotation.
    """
    container, stream = _open(data)
    with container:
        times, keys, sums, shapes = [], [], [], set()
        try:
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise BadVideo(f"frame {len(times)} is damaged")
                times.append(frame.pts)
                keys.append(frame.key_frame)
                sums.append(_checksum(frame))
                shapes.add((frame.height, frame.width, frame.format.name, turns(frame)))
        except av.FFmpegError as error:
            raise BadVideo(f"decoding fails after {len(times)} frames: {reason(error)}") from error
        if not times:
            raise BadVideo("no picture in its video stream")
        if len(shapes) > 1:
            raise BadVideo(f"the picture changes its size, format or rotation: {sorted(shapes)}")
        _check_length(container, stream, times)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
    height, width, _, turned = shapes.pop()
    if turned.swapped:
        height, width = width, height
    return Probe(len(times), height, width, rate, _trusted(data, times, keys, sums))


def window(
    data: bytes,
    start: int,
    count: int,
    height: int,
    width: int,
    keyframes: Int64[np.ndarray, "n 2"],
) -> UInt8[np.ndarray, "{count} {height} {width} 3"]:
    """Frames start .. start + count of the full decode, in RGB, cropped and scaled (see `Fit`).

    `keyframes` is the probe's. Raises BadVideo where the frames cannot be decoded.
    """
    index, time = (int(v) for v in keyframes[keyframes[:, 0] <= start][-1])
    container, stream = _open(data)
    with container:
        clip, fit = np.empty((count, height, width, 3), np.uint8), None
        done = 0
        try:
            for frame in islice(_from(container, stream, index, time), start - index, None):
                fit = fit or Fit(frame, height, width)
                clip[done] = fit(frame)
                done += 1
                if done == count:
                    return clip
        except av.FFmpegError as error:
            raise BadVideo(f"decoding fails at frame {start + done}: {reason(error)}") from error
    raise BadVideo(f"only {done} of the frames {start} to {start + count - 1} can be decoded")


class Fit:
    """Upright pictures of one kind, the short side scaled to the target's, the centre kept.

    The largest centred box of the target's aspect is cut out and scaled by an antialiased bilinear
    filter, which is "resize the short side, crop the centre" without scaling what is cropped away.
    Pixels count as square. Colours are converted by the matrix and range that the picture states
    (BT.601, limited, where it is silent).
    """

    def __init__(self, like: av.VideoFrame, height: int, width: int):
        self._turns = turns(like)
        if self._turns.swapped:  # what is scaled down is cheaper to turn
            height, width = width, height
        box_height = min(like.height, round(like.width * height / width))
        box_width = min(like.width, round(like.height * width / height))
        self._graph = graph = av.filter.Graph()
        graph.threads = 1
        source = (
            f"video_size={like.width}x{like.height}:pix_fmt={like.format.name}:time_base=1/1"
            f":pixel_aspect=1/1:colorspace={int(like.colorspace)}:range={int(like.color_range)}"
        )
        graph.link_nodes(
            graph.add("buffer", source),
            graph.add("crop", f"{max(box_width, 2)}:{max(box_height, 2)}"),
            graph.add("scale", f"{width}:{height}:flags={_SCALING}"),
            graph.add("format", "rgb24"),
            graph.add("buffersink"),
        ).configure()

    def __call__(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
        """One picture in RGB."""
        self._graph.vpush(frame)
        return self._turns(self._graph.vpull().to_ndarray())


def _open(data: bytes):
    """An opened container and its track of pictures, decoding on one thread."""
    container, stream = open_video(data)
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return container, stream


def _from(container, stream, index: int, time: int):
    """Decoded frames from the key frame (index, time) on, index 0 being the start of the file."""
    if index:
        container.seek(time, stream=stream, backward=True)
    reached = not index
    for frame in container.decode(stream):
        reached = reached or frame.pts == time  # seeking may land before what was asked for
        if reached:
            yield frame


def _checksum(frame: av.VideoFrame) -> int:
    """A checksum of the first plane (luma, of most formats), without the padding of its lines."""
    plane, sample = frame.planes[0], -(-frame.format.components[0].bits // 8)
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return zlib.crc32(np.ascontiguousarray(rows[: plane.height, : plane.width * sample]))


def _check_length(container, stream, times: list) -> None:
    """Raises BadVideo where clearly less was decoded than the file announces."""
    if stream.frames:
        if len(times) < PRESENT * stream.frames:
            raise BadVideo(f"cut off: {len(times)} of {stream.frames} frames can be decoded")
    elif container.duration and not container.streams.audio and None not in times:
        # Matroska and the like announce seconds only, and count the sound in.
        seconds = float((max(times) - min(times)) * stream.time_base)
        if len(times) > 1 and seconds * len(times) / (len(times) - 1) < PRESENT * (
            announced := container.duration / av.time_base
        ):
            raise BadVideo(f"cut off: {seconds:.2f} of {announced:.2f} seconds can be decoded")


def _trusted(data: bytes, times: list, keys: list, sums: list) -> Int64[np.ndarray, "n 2"]:
    """The key frames from which seeking gives the same pictures as decoding from the start.

    Each is tried up to the next one. Streams with open groups of pictures or with time stamps that
    repeat (old AVI files) lose some or all of theirs and are decoded from the start.
    """
    rows, uses = [(0, 0)], Counter(times)
    candidates = [
        n for n, key in enumerate(keys) if key and times[n] is not None and uses[times[n]] == 1
    ]
    ends = [*candidates[1:], len(times) - 1]
    container, stream = _open(data)
    with container:
        for first, end in zip(candidates, ends, strict=False):
            if first - rows[-1][0] < _SEEK_APART:
                continue
            frames = islice(_from(container, stream, first, times[first]), end - first + 1)
            try:
                same = [_checksum(frame) for frame in frames] == sums[first : end + 1]
            except av.FFmpegError:
                same = False  # this key frame is not used; the full decode has shown the video good
            if same:
                rows.append((first, times[first]))
    return np.array(rows, np.int64)
