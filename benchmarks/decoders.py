"""Other ways to decode the windows that the pipeline delivers, for `benchmarks/data.py`.

Each makes a function of a record (`records.features`) and a first frame, whose clips are uint8
[frames, size, size, 3]. A library is imported when its decoder is made.
"""

import io
from argparse import Namespace
from collections.abc import Callable

import numpy as np


def bare(args: Namespace) -> Callable:
    """PyAV with nothing around it."""
    import av
    import av.filter

    def open_graph(frame):
        side = min(frame.height, frame.width)
        source = (
            f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1"
            f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
        )
        flags = "bilinear+accurate_rnd+bitexact+full_chroma_int"
        graph = av.filter.Graph()
        graph.threads = 1
        graph.link_nodes(
            graph.add("buffer", source),
            graph.add("crop", f"{side}:{side}"),
            graph.add("scale", f"{args.size}:{args.size}:flags={flags}"),
            graph.add("format", "rgb24"),
            graph.add("buffersink"),
        ).configure()
        return graph

    def decode(row: dict, start: int) -> np.ndarray:
        keyframes = row["keyframes"]
        number, stamp = keyframes[keyframes[:, 0] <= start][-1].tolist()
        clip = np.empty((args.frames, args.size, args.size, 3), np.uint8)
        done, graph = 0, None
        with av.open(io.BytesIO(row["video"])) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            if number:
                container.seek(stamp, stream=stream)
            reached = not number
            for frame in container.decode(stream):
                reached = reached or frame.pts == stamp
                if reached and number >= start:
                    graph = graph or open_graph(frame)
                    graph.vpush(frame)
                    clip[done] = graph.vpull().to_ndarray()
                    done += 1
                    if done == args.frames:
                        return clip
                number += reached
        raise ValueError(f"{done} of {args.frames} frames from {start}")

    return decode


def torchcodec(args: Namespace) -> Callable:
    """torchcodec, which scales and crops while it decodes."""
    import torch
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import CenterCrop, Resize

    torch.set_num_threads(1)  # or its threads spin through the time of all others

    def decode(row, start):
        decoder = VideoDecoder(
            row["video"],
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            transforms=[Resize(scaled(row, args.size)), CenterCrop((args.size, args.size))],
        )
        return decoder.get_frames_in_range(start, start + args.frames).data.numpy()

    return decode


def decord(args: Namespace) -> Callable:
    """decord, which scales while it decodes; what lies outside the crop is scaled as well."""
    from decord import VideoReader, cpu

    def decode(row, start):
        height, width = scaled(row, args.size)
        reader = VideoReader(io.BytesIO(row["video"]), cpu(0), width, height, num_threads=1)
        frames = reader.get_batch(range(start, start + args.frames)).asnumpy()
        top, left = (height - args.size) // 2, (width - args.size) // 2
        return frames[:, top : top + args.size, left : left + args.size]

    return decode


def scaled(row: dict, size: int) -> tuple[int, int]:
    """Height and width of the whole picture when its short side is `size`."""
    height, width = int(row["height"]), int(row["width"])
    short = min(height, width)
    return round(height * size / short), round(width * size / short)


DECODERS = {"bare": bare, "torchcodec": torchcodec, "decord": decord}
