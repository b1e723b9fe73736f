"""Long videos, cut at key frames into videos that a record can hold; nothing is encoded again.

A part begins with a key frame and holds the packets of all pictures that are shown before the next
part's first. Where groups of pictures are open, the next key frame comes before some of these in
the file, and they need it: it is then in both parts. Sound is not copied.
"""

from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO, IOBase

import av
import numpy as np

from evatok_jax.data.container import BadVideo, open_video

LIMIT = 32_000_000  # bytes of a record
_A_PACKET, _A_FILE = 64, 16_384  # at most so many bytes do they cost beside the pictures


@dataclass(frozen=True)
class Cut:
    """One part of a video.

    Attributes:
      container: the format of the part, by FFmpeg's name.
      start, stop: its packets are among those numbered start to stop in the order of the file.
      key: the packet that begins the next part, at most `stop`.
      begin: time stamp (ticks) of the first picture that belongs to it.
      end: time stamp of the next part's first picture, None for the last part.
      zero: the time stamp that becomes 0.
    """

    container: str
    start: int
    stop: int
    key: int
    begin: int
    end: int | None
    zero: int

    def has(self, number: int, stamp: int) -> bool:
        """Whether a packet belongs to this part."""
        inside = self.start <= number < self.stop and stamp >= self.begin
        return inside and (number <= self.key or stamp < self.end)


def record_bytes(video: int, frames: int) -> int:
    """How many bytes the record of a video of so many bytes and frames has at most."""
    return video + frames * _A_PACKET + _A_FILE


def plan_cuts(
    source: bytes | IOBase, container: str, limit: int, progress: Callable[[], None]
) -> list[Cut]:
    """The fewest cuts at key frames with which the records of all parts are within a limit.

    A single group of pictures above the limit is a part of its own. `progress` is called after each
    packet. Raises BadVideo where a packet has no time stamp.
    """
    stamps, sizes, keys, hidden = array("q"), array("q"), array("b"), array("b")
    file, track = open_video(source)
    with file:
        for packet in file.demux(track):
            if packet.size:
                stamps.append(_stamp(packet))
                sizes.append(packet.size + _A_PACKET)
                keys.append(packet.is_keyframe)
                hidden.append(packet.is_discard)
            progress()
    stamps, count = np.array(stamps), len(stamps)
    latest = np.maximum.accumulate(stamps)
    earliest = np.minimum.accumulate(stamps[::-1])[::-1]
    # All that comes before a cut in the file is shown before it, or later parts would lack it.
    starts = np.flatnonzero(np.array(keys, bool))
    starts = starts[(starts > 0) & (latest[starts - 1] < stamps[starts])]
    # What comes after a cut in the file but is shown before it belongs to the part before.
    stops = np.maximum(np.searchsorted(earliest, stamps[starts]), starts)
    starts, stops = [0, *starts.tolist(), count], [0, *stops.tolist(), count]
    total = np.concatenate([[0], np.cumsum(np.array(sizes))])
    chosen = [0]
    for number in range(2, len(starts)):
        size = total[stops[number]] - total[starts[chosen[-1]]] + _A_FILE
        if size > limit and number - 1 > chosen[-1]:
            chosen.append(number - 1)
    cuts, zero = [], int(stamps[~np.array(hidden, bool)].min())
    begin = int(earliest[0])
    for this, following in zip(chosen, [*chosen[1:], len(starts) - 1], strict=True):
        key = starts[following]
        end = int(stamps[key]) if key < count else None
        cuts.append(Cut(container, starts[this], stops[following], key, begin, end, zero))
        begin = zero = end
    return cuts


def parts(source: bytes | IOBase, cuts: list[Cut]) -> Iterator[bytes]:
    """The files of some cuts of a video, in order; the same bytes each time.

    Raises ValueError or av.FFmpegError where their container cannot hold the video.
    """
    waiting, opened = deque(cuts), deque()
    file, track = open_video(source)
    with file:
        packets = (packet for packet in file.demux(track) if packet.size)
        for number, packet in enumerate(packets):
            while waiting and waiting[0].start <= number:
                opened.append(_Part(waiting.popleft(), track))
            stamp, times = _stamp(packet), (packet.pts, packet.dts, packet.duration)
            for part in opened:
                if part.cut.has(number, stamp):
                    part.write(packet, *times)
            while opened and opened[0].cut.stop <= number + 1:
                yield opened.popleft().close()


class _Part:
    """A part that is being written."""

    def __init__(self, cut: Cut, track):
        self.cut, self._time_base, self._file = cut, track.time_base, BytesIO()
        # Otherwise Matroska gives each file a random number.
        options = {"fflags": "+bitexact"}
        self._out = av.open(self._file, "w", format=cut.container, options=options)
        self._track = self._out.add_stream_from_template(track, opaque=True)

    def write(self, packet: av.Packet, pts: int | None, dts: int | None, duration: int) -> None:
        """Adds a packet, whose times in ticks of the source these are (writing changes them)."""
        packet.stream, packet.time_base = self._track, self._time_base
        packet.pts = None if pts is None else pts - self.cut.zero
        packet.dts = None if dts is None else dts - self.cut.zero
        packet.duration = duration
        self._out.mux(packet)

    def close(self) -> bytes:
        """The whole file."""
        self._out.close()
        return self._file.getvalue()


def _stamp(packet: av.Packet) -> int:
    """When a packet's picture is shown, in ticks."""
    stamp = packet.dts if packet.pts is None else packet.pts
    if stamp is None:
        raise BadVideo("a packet has no time stamp", "no times")
    return stamp
