"""What becomes of one video: the records that it gives, or the reason why it gives none."""

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import av
import numpy as np

from evatok_jax.data.builders.listing import Section, VideoFile
from evatok_jax.data.builders.remux import Cut, parts, plan_cuts, record_bytes
from evatok_jax.data.container import BadVideo, open_video, reason
from evatok_jax.data.probe import Probe, Scan, scan, trusted

LARGEST = 3  # limits: a record that cannot be made smaller; writing holds it a few times over


@dataclass(frozen=True)
class Piece:
    """A video, or a part of a long one, that becomes a record.

    Attributes:
      probe: what was found in it.
      first, last: the frames of it that belong to the split.
      offset: seconds into the original video at which it begins.
      size: its bytes.
      cut: how it is cut out of its video, None for a whole one.
    """

    probe: Probe
    first: int
    last: int
    offset: float
    size: int
    cut: Cut | None = None


def examine(
    video: VideoFile, progress: Callable[[], None], min_frames: int, limit: int
) -> list[Piece]:
    """Decodes a video and finds what is to be stored of it: itself, or its parts if it is long.

    A long one is cut into records of at most `limit` bytes. `progress` is called again and again,
    so that somebody can see whether it goes on.

    Raises BadVideo where the video is absent, cannot be used (`probe.scan`), has another SHA-256
    than its source states, fewer frames for its split than `min_frames`, or cannot be cut into
    records of at most `LARGEST` times the limit.
    """
    if video.problem:
        raise video.problem
    if not video.path.is_file():
        raise BadVideo("the file is absent", "absent")
    with video.open() as file:
        if video.sha256 and hashlib.file_digest(file, "sha256").hexdigest() != video.sha256:
            raise BadVideo("its SHA-256 is not the one that the source states", "altered")
        found = scan(file, progress)
        frames = len(found.sums)
        first, last = (round(share * frames) for share in video.share)
        if last - first < min_frames:
            short = f"{last - first} frames, {min_frames} are needed"
            raise BadVideo(f"too short: {short}", "too short")
        if record_bytes(file.size, frames) <= limit:
            pieces = [_whole(file, found, progress)]
        else:
            pieces = _pieces_of_long(file, found, limit, progress)
    return [
        replace(piece, first=max(first - start, 0), last=min(last - start, piece.last))
        for start, piece in zip(_starts(pieces), pieces, strict=True)
        if first < start + piece.last and start < last
    ]


def records(video: VideoFile, pieces: list[Piece]) -> Iterator[dict]:
    """What is stored of a video (`records.features`), and the motion for the index.

    Its bytes are read now. Raises ValueError where they are no longer what was examined.
    """
    with video.open() as file:
        cuts = [piece.cut for piece in pieces if piece.cut]
        for piece, data in zip(pieces, parts(file, cuts) if cuts else [file.read()], strict=True):
            if len(data) != piece.size:
                raise ValueError(f"{video.path} ({video.key}) has changed meanwhile: build again")
            found, (first, last) = piece.probe, (piece.first, piece.last)
            yield {
                "video": data,
                "key": video.key,
                "label": video.label,
                "caption": video.caption,
                "first": first,
                "last": last,
                "frames": found.frames,
                "height": found.height,
                "width": found.width,
                "fps": found.fps,
                "times": found.times[:-1],
                "duration": found.times[last] - found.times[first],
                "offset": piece.offset,
                "keyframes": found.keyframes,
                "motion": float(found.motion[first + 1 : last].mean()) if last - first > 1 else 0.0,
            }


def _whole(file: Section, found: Scan, progress: Callable[[], None]) -> Piece:
    """A video as it is."""
    probe = found.probe(trusted(file, found, progress))
    return Piece(probe, 0, probe.frames, 0.0, file.size)


def _pieces_of_long(
    file: Section, found: Scan, limit: int, progress: Callable[[], None]
) -> list[Piece]:
    """The parts of a video whose record would be too large, or itself if it cannot be cut."""
    container, _ = open_video(file)
    with container:
        family = "mp4" if "mp4" in container.format.name else "matroska"
    why = []
    for name in (family, "matroska" if family == "mp4" else "mp4"):
        try:
            cuts = plan_cuts(file, name, limit, progress)
            if len(cuts) > 1:
                return list(_pieces(file, found, cuts, LARGEST * limit, progress))
            why.append("it is one group of pictures")
        except (av.FFmpegError, ValueError) as error:
            why.append(f"as {name}: {reason(error)}")
    if file.size > LARGEST * limit:
        raise BadVideo(
            f"{file.size} bytes, and it cannot be cut at key frames: {', '.join(why)}", "too large"
        )
    return [_whole(file, found, progress)]


def _pieces(
    file: Section, found: Scan, cuts: list[Cut], largest: int, progress: Callable[[], None]
) -> Iterator[Piece]:
    """The parts of a video, each decoded and compared with the whole.

    Raises BadVideo where one shows other pictures or has more than `largest` bytes, and as `parts`
    does.
    """
    stamps = found.stamps
    if None in stamps or any(a >= b for a, b in pairwise(stamps)):
        raise BadVideo("its time stamps do not increase", "no times")
    starts = [0, *(bisect_left(stamps, cut.begin) for cut in cuts[1:]), len(stamps)]
    for cut, start, end, data in zip(cuts, starts, starts[1:], parts(file, cuts), strict=False):
        if len(data) > largest:
            raise BadVideo(f"one of its groups of pictures has {len(data)} bytes", "too large")
        part = scan(data, progress)
        stop = start + len(part.sums)
        shown = (part.height, part.width, part.look)
        if (
            part.sums != found.sums[start:stop]
            or not end <= stop
            or shown != (found.height, found.width, found.look)
        ):
            raise BadVideo(f"the part from frame {start} on shows other pictures")
        # The times of the whole are exact, those of the part need not be.
        probe = found.probe(trusted(data, part, progress), start, stop)
        yield Piece(probe, 0, end - start, float(found.times[start]), len(data), cut)


def _starts(pieces: list[Piece]) -> list[int]:
    """The frame of the whole video at which each piece begins."""
    ends = np.cumsum([piece.last for piece in pieces])
    return [0, *ends[:-1].tolist()]
