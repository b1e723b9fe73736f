"""Decoding with PyAV: windows of a video, and what probing needs for the whole of it.

FFmpeg runs on one thread a stream, so that the cores are shared by clips and not within one. A
window is reached by seeking only to key frames that the probe has found to give the very same
pictures as decoding from the start.
"""

from io import IOBase
from itertools import islice

import av
import av.filter
import numpy as np
from jaxtyping import Int64, UInt8

from evatok_jax.data.container import BadVideo, open_video, reason, turns

# Antialiased (the triangle widens when it shrinks), the same bits on every processor, and chroma
# kept at full resolution while converting: without that RGB comes out 1 to 2 levels too dark.
_SCALING = "bilinear+accurate_rnd+bitexact+full_chroma_int"


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
    container, stream = open_decoder(data)
    with container:
        clip, fit = np.empty((count, height, width, 3), np.uint8), None
        done = 0
        try:
            for frame in islice(frames_from(container, stream, index, time), start - index, None):
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


def open_decoder(source: bytes | IOBase):
    """An opened container and its track of pictures, decoding on one thread."""
    container, stream = open_video(source)
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return container, stream


def frames_from(container, stream, index: int, time: int):
    """Decoded frames from the key frame (index, time) on, index 0 being the start of the file."""
    if index:
        container.seek(time, stream=stream, backward=True)
    reached = not index
    for frame in container.decode(stream):
        reached = reached or frame.pts == time  # seeking may land before what was asked for
        if reached:
            yield frame
