"""Decoding with PyAV: windows of a video, and what probing needs for the whole of it.

FFmpeg runs on one thread a stream, so that the cores are shared by clips and not within one. A
window is reached by seeking only to key frames that the probe has found to give the very same
pictures as decoding from the start.
"""

import math
from io import IOBase

import av
import av.filter
import numpy as np
from jaxtyping import Int64, UInt8

from evatok_jax.data.container import BadVideo, open_video, reason, turns
from evatok_jax.data.deadline import Deadline, TimedFile

NEVER = Deadline(math.inf)
_KINDS = 16  # of pictures that are met again and again
WORTH_A_SEEK = 8  # frames: to decode fewer is as fast as to look for a key frame

# Antialiased (the triangle widens when it shrinks), the same bits on every processor, and chroma
# kept at full resolution while converting: without that RGB comes out 1 to 2 levels too dark.
_SCALING = "bilinear+accurate_rnd+bitexact+full_chroma_int"


def window(
    data: bytes,
    numbers: Int64[np.ndarray, " count"],
    height: int,
    width: int,
    keyframes: Int64[np.ndarray, "n 2"],
    max_pixels: int | None = None,
    deadline: Deadline = NEVER,
    flip: bool = False,
) -> UInt8[np.ndarray, "count {height} {width} 3"]:
    """Frames of these numbers, which never fall, as the full decode has them.

    In RGB, cropped and scaled (see `Fit`), with `flip` as a mirror shows them. Only they are
    converted, and frames between them are decoded only where no key frame lies nearer. `keyframes`
    is the probe's.

    Raises BadVideo where the frames cannot be decoded by the deadline, or pictures are larger than
    `max_pixels`.
    """
    try:
        return _window(data, numbers, height, width, keyframes, max_pixels, deadline, flip)
    except BadVideo:
        deadline.check()  # what ended for lack of time is not what it looks like
        raise


def _window(data, numbers, height, width, keyframes, max_pixels, deadline, flip):
    wanted = np.unique(numbers)
    near = keyframes[np.searchsorted(keyframes[:, 0], wanted, "right") - 1].tolist()
    pictures = np.empty((len(wanted), height, width, 3), np.uint8)
    container, stream = open_decoder(TimedFile(data, deadline), max_pixels)
    with container:
        done, fit, kind, shape = 0, None, None, None
        try:
            while done < len(wanted):
                index, stamp = near[done]
                frames = frames_from(container, stream, index, stamp)
                for number, frame in enumerate(frames, index):
                    deadline.check()
                    if number < wanted[done]:
                        continue
                    if frame.is_corrupt:
                        raise BadVideo(f"frame {number} is damaged")
                    if fit is None:
                        shape = _shape(frame)
                        look = turns(frame), int(frame.colorspace), int(frame.color_range)
                        kind = (*shape, *look, height, width, flip)
                        fit = _idle.pop(kind, None) or Fit(frame, height, width, flip)
                    if _shape(frame) != shape:
                        raise BadVideo(f"frame {number} has another size or format", "changing")
                    pictures[done] = fit(frame)
                    done += 1
                    if done == len(wanted) or near[done][0] > number + WORTH_A_SEEK:
                        break
                else:
                    there = f"{done} of the frames {numbers[0]} to {numbers[-1]}"
                    raise BadVideo(f"only {there} can be decoded", "cut off")
        except av.FFmpegError as error:
            raise BadVideo(
                f"decoding fails before frame {wanted[done]}: {reason(error)}"
            ) from error
    if len(_idle) >= _KINDS:
        _idle.clear()
    _idle[kind] = fit
    return pictures if len(wanted) == len(numbers) else pictures[np.searchsorted(wanted, numbers)]


def _shape(frame: av.VideoFrame) -> tuple:
    return frame.height, frame.width, frame.format.name


class Fit:
    """Upright pictures of one kind, the short side scaled to the target's, the centre kept.

    The largest centred box of the target's aspect is cut out and scaled by an antialiased bilinear
    filter, which is "resize the short side, crop the centre" without scaling what is cropped away.
    Pixels count as square. Colours are converted by the matrix and range that the picture states
    (BT.601, limited, where it is silent). With `flip` left and right change places.
    """

    def __init__(self, like: av.VideoFrame, height: int, width: int, flip: bool = False):
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
        # Left and right of the upright picture, before it is turned. FFmpeg does it ten times as
        # fast as NumPy.
        mirror = [graph.add("vflip" if self._turns.swapped else "hflip")] if flip else []
        graph.link_nodes(
            graph.add("buffer", source),
            graph.add("crop", f"{max(box_width, 2)}:{max(box_height, 2)}"),
            graph.add("scale", f"{width}:{height}:flags={_SCALING}"),
            graph.add("format", "rgb24"),
            *mirror,
            graph.add("buffersink"),
        ).configure()

    def __call__(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
        """One picture in RGB."""
        self._graph.vpush(frame)
        return self._turns(self._graph.vpull().to_ndarray())


# By kind of picture: to make one takes as long as to use it for three frames. Whoever uses one has
# taken it out, and puts it back when all went well.
_idle: dict[tuple, Fit] = {}


def open_decoder(source: bytes | IOBase, max_pixels: int | None = None):
    """An opened container and its track of pictures, decoding on one thread."""
    container, stream = open_video(source, max_pixels)
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
