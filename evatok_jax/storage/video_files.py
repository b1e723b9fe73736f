"""Video files in and out (PyAV): one frame at a time, exact time stamps, errors in words.

Reading turns every picture upright and into 8-bit RGB. Writing gives H.264 in mp4 whose time stamps
are, in seconds, exactly those asked for: the track counts in parts of a second as fine as the time
base, and no frame is reordered.
"""

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation
from jaxtyping import Int64, UInt8

from evatok_jax.data.container import (
    PRESENT,
    BadVideo,
    LastingTurns,
    Turns,
    open_video,
    reason,
    turns,
)
from evatok_jax.data.timestamps import frame_times
from evatok_jax.storage.framing import SourceInfo, box_for, fit_frame, unfit

SUFFIXES = (".mp4", ".m4v", ".mov")  # containers that keep any time stamp exactly
# As training data are converted: the same bits everywhere, and no shift of 1 to 2 levels in RGB.
_CONVERSION = (
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INT
)
_BT709, _LIMITED = 1, 1  # the colour matrix and range that are written, in H.264's numbers


def clips_of(
    path: str | os.PathLike, frames: int, height: int, width: int, mode: str = "letterbox"
) -> tuple[Iterator[UInt8[np.ndarray, "t h w 3"]], SourceInfo]:
    """A video as clips of `frames` x `height` x `width`, and what decoding must know of it.

    The last clip is filled with its last frame. One clip is in memory at a time. The second result
    is complete (`timestamps`, `frames`) once the iterator is exhausted.

    Raises ValueError as `Video` does, at once or while iterating.
    """
    video = Video(path)
    size = (video.height, video.width)
    source = SourceInfo(
        width=video.width,
        height=video.height,
        mode=mode,
        box=box_for(size, height, width, mode),
        time_base=video.time_base,
        pixel_aspect=video.pixel_aspect,
        had_audio=video.had_audio,
    )

    def clips():
        fitted = (fit_frame(frame, height, width, mode) for frame in video)
        while clip := list(islice(fitted, frames)):
            yield np.stack(clip + clip[-1:] * (frames - len(clip)))
        source.timestamps, source.time_base = video.timestamps, video.time_base

    return clips(), source


def write_back(
    path: str | os.PathLike, clips: Iterable[UInt8[np.ndarray, "t h w 3"]], source: SourceInfo
) -> None:
    """Writes decoded clips as the video they came from: its length, size, rate and time stamps.

    In crop mode the size is that of the region that the clips show. Raises ValueError where the
    clips are fewer or more than the source's frames fill, and as `write_video` does.
    """
    frames = unfit(clips, source)
    write_video(path, frames, source.timestamps, source.time_base, source.pixel_aspect)


class Video:
    """A video file, to be iterated once for its frames: uint8 [height, width, 3].

    Attributes:
      width, height: of the upright picture, in stored pixels.
      pixel_aspect: width of a pixel over its height.
      had_audio: whether the file has a sound track.
      time_base: seconds of one tick.
      timestamps: int64 [frames + 1] once all frames were read: the ticks at which each frame
        starts, then the end of the last one. A start before zero is moved to zero.

    Raises ValueError, on opening or on the way, where the file is absent, empty, no video, damaged
    or cut off.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        if not self._path.is_file():
            raise ValueError(f"{path}: there is no such file")
        try:
            self._container, self._track = open_video(self._path)
        except BadVideo as error:
            raise ValueError(f"{path}: {error}") from error
        try:
            self._start()
        except BaseException:
            self._container.close()
            raise

    def _start(self) -> None:
        """Decodes the first frame, which alone tells how the video is to be shown."""
        self.had_audio = bool(self._container.streams.audio)
        self.time_base = self._track.time_base
        self.timestamps = np.zeros(0, np.int64)
        decoded = self._decode()
        first = next(decoded, None)
        if first is None:
            raise ValueError(f"{self._path}: not one frame could be decoded")
        self._frames = chain([first], decoded)
        frame, picture = first
        self.height, self.width = picture.shape[:2]
        aspect = self._track.sample_aspect_ratio or Fraction(1)
        self.pixel_aspect = 1 / aspect if turns(frame).swapped else aspect

    def _decode(self) -> Iterator[tuple[av.VideoFrame, np.ndarray]]:
        """The frames in the order of showing, each with its upright picture."""
        packets, frames, turned = 0, 0, LastingTurns()
        try:
            for packet in self._container.demux(self._track):
                packets += packet.size > 0
                damaged = packet.is_corrupt
                for frame in packet.decode():
                    damaged |= frame.is_corrupt
                    yield frame, _upright(frame, turned(frame))
                    frames += 1
                if damaged:
                    raise ValueError("data are missing")
        except (av.FFmpegError, ValueError) as error:
            raise ValueError(
                f"{self._path}: unreadable after {frames} frames: {reason(error)}"
            ) from error
        # Edit lists of the mov family hide packets on purpose; elsewhere the count is a promise.
        promised = 0 if "mov" in self._container.format.name else self._track.frames
        if packets < PRESENT * promised:
            raise ValueError(f"{self._path}: cut off, it has {packets} of {promised} frames")

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """The frames; `timestamps` are there when it is exhausted."""
        presented, decoded, frame = [], [], None
        try:
            for frame, picture in self._frames:
                presented.append(frame.pts)
                decoded.append(frame.dts)
                if picture.shape[:2] != (self.height, self.width):
                    raise ValueError(f"{self._path}: the size changes at frame {len(presented)}")
                yield picture
            if frame is None:
                raise ValueError(f"{self._path}: its frames were read before, open it again")
            self._settle_times(presented, decoded, frame.duration)
        finally:
            self._container.close()

    def _settle_times(self, presented: list, decoded: list, duration: int) -> None:
        """Chooses the time stamps: presentation times, else decoding times, else the frame rate."""
        rate = self._track.average_rate or self._track.guessed_rate
        try:
            times, self.time_base = frame_times(presented, decoded, duration, rate, self.time_base)
        except BadVideo as error:
            raise ValueError(f"{self._path}: {error}") from error
        self.timestamps = times - min(0, int(times[0]))
        container = self._container
        start, promised = times[0], (self._track.duration or 0) * self._track.time_base
        if not promised and len(container.streams) == 1:
            # Such containers announce when the video ends, not how long it takes.
            start, promised = min(0, start), Fraction(container.duration or 0, av.time_base)
        seconds = int(times[-1] - start) * self.time_base
        if seconds < PRESENT * promised:
            there = f"{float(seconds):.2f} s of {float(promised):.2f} s are there"
            raise ValueError(f"{self._path}: cut off, {there}")


def write_video(
    path: str | os.PathLike,
    frames: Iterable[UInt8[np.ndarray, "h w 3"]],
    timestamps: Int64[np.ndarray, " n"],
    time_base: Fraction,
    pixel_aspect: Fraction = Fraction(1),
) -> None:
    """Writes frames as H.264, beside `path` first and renamed when complete.

    `timestamps` are the starts of the frames and the end of the last one, in ticks of `time_base`
    seconds, increasing from zero or later. Pictures of even sides are stored with halved colour
    (4:2:0, which every player shows), others with full colour (4:4:4) because H.264 has no odd
    4:2:0 pictures; the BT.709 matrix is written and tagged.

    Raises ValueError where frames and time stamps disagree or the encoder refuses them, OSError
    where the disk does.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: videos are written as {', '.join(SUFFIXES)}")
    if len(timestamps) < 2 or timestamps[0] < 0 or (np.diff(timestamps) <= 0).any():
        raise ValueError(f"{path}: time stamps must increase, from zero or later")
    beside = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        _encode(beside, iter(frames), timestamps * time_base.numerator, time_base, pixel_aspect)
        os.replace(beside, path)
    except OSError:
        raise
    except (av.FFmpegError, ValueError) as error:
        raise ValueError(f"{path}: cannot be written: {reason(error)}") from error
    finally:
        beside.unlink(missing_ok=True)


def _encode(
    path: Path,
    frames: Iterator[np.ndarray],
    ticks: Int64[np.ndarray, " n"],
    time_base: Fraction,
    pixel_aspect: Fraction,
) -> None:
    """Writes the file: `ticks` of 1 / time_base.denominator seconds."""
    first = next(frames, None)
    if first is None:
        raise ValueError("there is no frame")
    height, width = first.shape[:2]
    colours = {"dst_colorspace": "ITU709", "dst_color_range": "MPEG"}
    layout = "yuv444p" if height % 2 or width % 2 else "yuv420p"
    tick = Fraction(1, time_base.denominator)
    starts, durations = ticks[:-1].tolist(), np.diff(ticks).tolist()
    duration_of = dict(zip(starts, durations, strict=True))
    # Without these the muxer rounds: the track to ticks of its own, a late start to milliseconds.
    scales = {name: str(tick.denominator) for name in ("video_track_timescale", "movie_timescale")}
    with av.open(str(path), "w", options={"movflags": "faststart", **scales}) as container:
        options = {"crf": "12", "preset": "veryfast", "x264-params": "bframes=0"}
        track = container.add_stream("libx264", options=options)
        track.width, track.height, track.pix_fmt = width, height, layout
        track.time_base = track.codec_context.time_base = tick
        track.codec_context.framerate = len(starts) / (int(ticks[-1] - ticks[0]) * tick)
        track.codec_context.sample_aspect_ratio = pixel_aspect
        track.codec_context.colorspace = _BT709
        track.codec_context.color_range = _LIMITED

        def encode(frame):
            for packet in track.encode(frame):
                packet.duration = duration_of[packet.pts]
                container.mux(packet)

        count = 0
        for count, picture in enumerate(chain([first], frames), start=1):
            if picture.shape != first.shape or count > len(starts):
                raise ValueError(f"frame {count} of {len(starts)} has shape {picture.shape}")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format=layout, interpolation=_CONVERSION, **colours)
            frame.pts, frame.time_base = starts[count - 1], tick
            encode(frame)
        if count < len(starts):
            raise ValueError(f"{count} frames came for {len(starts)} time stamps")
        encode(None)


def _upright(frame: av.VideoFrame, turned: Turns) -> UInt8[np.ndarray, "h w 3"]:
    """A frame as it is meant to be seen, 8-bit RGB."""
    picture = frame.to_ndarray(format="rgb24", interpolation=_CONVERSION)
    return turned(picture)
