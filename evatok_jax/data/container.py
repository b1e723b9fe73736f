"""Opening video files and turning their pictures upright: one set of rules for all readers.

Training data and videos that are encoded come through here, so that both mean the same by "a video
that can be read", and a tokenizer meets pictures the way it has learned them.
"""

from io import SEEK_END, BytesIO, IOBase
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.stream import Disposition
from jaxtyping import UInt8

MAX_PIXELS = 2**26  # of one picture: a damaged header must not ask for gigabytes
PRESENT = 0.9  # share of its announced length that a file must have, or it counts as cut off


class BadVideo(ValueError):
    """A video that cannot be used; the message says why.

    Attributes:
      cause: the same in a word or two, to be counted by.
    """

    def __init__(self, message: str, cause: str = "damaged"):
        super().__init__(message)
        self.cause = cause


def open_video(source: Path | bytes | IOBase, max_pixels: int | None = None):
    """An opened container, which the caller closes, and the track of pictures in it.

    `source` is a path, the bytes of a file, or an opened file, which is read from its start.

    Raises BadVideo for what is empty, is no video, has no track of pictures (cover art is none),
    needs a decoder that is not there, or has pictures above `max_pixels`
    (`MAX_PIXELS` by default).
    """
    # What looks like a video may be a playlist: it must not reach beyond local files, and from what
    # becomes a record of a data set, which holds all that there is of it, nowhere.
    if isinstance(source, Path):
        file, reach, size = str(source.absolute()), "file", source.stat().st_size
    else:
        file, reach = BytesIO(source) if isinstance(source, bytes) else source, "none"
        size = file.seek(0, SEEK_END)
        file.seek(0)
    if not size:
        raise BadVideo("the file is empty", "empty")
    max_pixels = max_pixels or MAX_PIXELS
    options = {"protocol_whitelist": reach, "max_pixels": str(max_pixels)}
    try:
        container = av.open(file, options=options, metadata_errors="ignore")
    except (av.FFmpegError, ValueError) as error:
        raise BadVideo(f"not a video that can be read: {reason(error)}", "no video") from error
    try:
        return container, _track(container.streams, max_pixels)
    except BaseException:
        container.close()
        raise


def _track(streams, max_pixels: int):
    """The first track of pictures, if it can be decoded."""
    tracks = [t for t in streams.video if not t.disposition & Disposition.attached_pic]
    if not tracks:
        has = "only sound" if streams.audio else "no video track"
        raise BadVideo(f"it has {has}, nothing to look at", "no pictures")
    track = tracks[0]
    if track.codec_context is None:
        raise BadVideo("there is no decoder for its codec", "no decoder")
    if track.width * track.height > max_pixels:
        size = f"{track.width}x{track.height}"
        raise BadVideo(f"pictures of {size} pixels, above {max_pixels}", "too large")
    track.codec_context.options = {"max_pixels": str(max_pixels)}  # they may grow on the way
    return track


class Turns(NamedTuple):
    """How a stored picture becomes an upright one: axes swapped first, then mirrored."""

    swapped: bool = False
    upside_down: bool = False
    mirrored: bool = False

    def __call__(self, picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
        """The picture as it is meant to be seen; a view."""
        if self.swapped:
            picture = picture.transpose(1, 0, 2)
        return picture[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1]


# By degrees counterclockwise.
_ROTATED = {
    0: Turns(),
    90: Turns(True, upside_down=True),
    -90: Turns(True, mirrored=True),
    180: Turns(False, True, True),
    -180: Turns(False, True, True),
}


def turns(frame: av.VideoFrame) -> Turns:
    """How a frame is to be turned, by its rotation tag.

    Of a picture with EXIF it is the rotation alone: PyAV has no name for that kind of data and then
    gives none of the others, so a mirroring cannot be seen.

    Raises BadVideo on a display matrix that turns by less than a quarter.
    """
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError as error:
        if frame.rotation not in _ROTATED:
            turn = f"a rotation by {frame.rotation} degrees"
            raise BadVideo(f"{turn} is no quarter turn", "turned") from error
        return _ROTATED[frame.rotation]
    if matrix is None:
        return Turns()
    # x' = a x + c y and y' = b x + d y, in 16.16 fixed point (ISO/IEC 14496-12, 8.3.2).
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if a and d and not b and not c:
        return Turns(False, d < 0, a < 0)
    if b and c and not a and not d:
        return Turns(True, b < 0, c < 0)
    raise BadVideo(f"the display matrix {(a, b, c, d)} is no quarter turn", "turned")


class LastingTurns:
    """`turns` of frames that follow each other, asked for anew where the rotation changes.

    A frame whose side data was asked for is in a cycle with them, so that hundreds would stay in
    memory until Python looks for cycles.
    """

    def __init__(self):
        self._rotation = self._turns = None

    def __call__(self, frame: av.VideoFrame) -> Turns:
        if frame.rotation != self._rotation:
            self._turns, self._rotation = turns(frame), frame.rotation
        return self._turns


def reason(error: Exception) -> str:
    """The reason without error numbers and names of C functions."""
    return getattr(error, "strerror", None) or str(error)
