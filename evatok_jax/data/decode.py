"""Decoding with PyAV: whole videos when they are probed, single windows when they are used.

FFmpeg runs on one thread a stream, so that the cores are shared by clips and not within one.
"""

import io
from dataclasses import dataclass

import av
import numpy as np
from jaxtyping import Int64, UInt8


@dataclass(frozen=True)
class Probe:
    """What a full decode of a video found.

    Attributes:
      frames, height, width: of the decoded pictures.
      fps: average frame rate, 0 where the file does not say.
      keyframes: int64 [n, 2] of (frame number, time stamp), from which a window can be reached by
        seeking; only the row for frame 0 is there where time stamps cannot be trusted.
    """

    frames: int
    height: int
    width: int
    fps: float
    keyframes: Int64[np.ndarray, "n 2"]


class BadVideo(ValueError):
    """A video that cannot be used; the message says why."""


def _open(data: bytes):
    """An opened container and its first video stream, decoding on one thread."""
    if not data:
        raise BadVideo("the file is empty")
    try:
        container = av.open(io.BytesIO(data), metadata_errors="replace")
    except av.FFmpegError as error:
        raise BadVideo(f"not a video that FFmpeg can open: {error.strerror}") from error
    if not container.streams.video:
        container.close()
        raise BadVideo("no video stream in it")
    stream = container.streams.video[0]
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return container, stream


def probe(data: bytes) -> Probe:
    """Decodes a whole video. Raises BadVideo for one that is empty, truncated or has no pictures."""
    container, stream = _open(data)
    with container:
        times, keys, sizes = [], [], set()
        try:
            for frame in container.decode(stream):
                times.append(frame.pts)
                keys.append(frame.key_frame)
                sizes.add((frame.height, frame.width))
        except av.FFmpegError as error:
            raise BadVideo(f"decoding fails after {len(times)} frames: {error.strerror}") from error
        if not times:
            raise BadVideo("no picture in its video stream")
        # Containers that state their frame count are held to it: a cut file may still decode.
        if stream.frames and len(times) < 0.9 * stream.frames:
            raise BadVideo(f"truncated: {len(times)} of {stream.frames} frames decode")
        if len(sizes) > 1:
            raise BadVideo(f"the picture size changes: {sorted(sizes)}")
        increasing = None not in times and all(a < b for a, b in zip(times, times[1:], strict=False))
        rows = [(n, times[n]) for n, key in enumerate(keys) if key and n and increasing]
        height, width = sizes.pop()
        rate = stream.average_rate or stream.guessed_rate
    keyframes = np.array([(0, 0), *rows], np.int64)
    return Probe(len(times), height, width, float(rate or 0), keyframes)


def window(
    data: bytes, start: int, count: int, height: int, width: int, keyframes: Int64[np.ndarray, "n 2"]
) -> UInt8[np.ndarray, "f h w 3"]:
    """Frames start .. start + count of a full decode, resized and cropped.

    Seeks to the last usable key frame before the window and decodes from there. The picture is scaled
    so that it covers height x width (area averaging, so with antialias) and its centre is cut out.

    Raises BadVideo where the frames cannot be decoded.
    """
    container, stream = _open(data)
    with container:
        index, time = (int(v) for v in keyframes[keyframes[:, 0] <= start][-1])
        seeking = index > 0
        if seeking:
            container.seek(time, stream=stream, backward=True)
        frames = []
        try:
            for frame in container.decode(stream):
                if seeking and (frame.pts is None or frame.pts < time):
                    continue  # FFmpeg may land before the key frame that was asked for
                if seeking and frame.pts > time:
                    raise BadVideo(f"key frame {index} is not where the index says")
                seeking = False
                if index >= start:
                    frames.append(fit(frame, height, width))
                    if len(frames) == count:
                        return np.stack(frames)
                index += 1
        except av.FFmpegError as error:
            raise BadVideo(f"decoding fails at frame {index}: {error.strerror}") from error
    raise BadVideo(f"frames {start}..{start + count} were asked for, the video ends at {index}")


def fit(frame: av.VideoFrame, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """One picture as RGB: scaled to cover height x width, centre crop (LARP's rule)."""
    scale = max(height / frame.height, width / frame.width)
    tall = max(height, round(frame.height * scale))
    wide = max(width, round(frame.width * scale))
    picture = frame.reformat(width=wide, height=tall, format="rgb24", interpolation="AREA")
    top, left = (tall - height) // 2, (wide - width) // 2
    return picture.to_ndarray()[top : top + height, left : left + width]
