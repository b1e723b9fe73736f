"""`.evt` files: a video as tokens (docs/formats.md has the layout, byte by byte).

A reader trusts nothing: the checksum over all bytes comes first, every size is bounded by the bytes
that are there before anything is allocated for it, and each content has exactly one valid spelling.
"""

import hashlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from evatok_jax.geometry import Geometry
from evatok_jax.storage import bits
from evatok_jax.storage.evt_file import (
    DIGEST_DIGITS,
    MAX_CODEBOOK,
    MAX_LEVELS,
    MAX_SIDE,
    MAX_TICKS,
    EvtFile,
    check_geometry,
    code_dtype,
    flat_codes,
    padded_codes,
    picture_size,
)
from evatok_jax.storage.framing import Box, SourceInfo

__all__ = [
    "EvtFile",
    "dumps",
    "flat_codes",
    "info",
    "loads",
    "padded_codes",
    "read_evt",
    "write_evt",
]

MAGIC = b"EVT"
VERSION = 1
CHECKSUM = 8  # bytes of BLAKE2b, at the end
_NUMBERS = len(MAGIC) + 1 + DIGEST_DIGITS // 2  # where the numbers of the header begin
_CROP, _VARIABLE, _AUDIO, _ASPECT = 1, 2, 4, 8
_SLACK, _RATIO = 48 << 20, 2  # what parsing may allocate: 48 MB + 2 x the file


def write_evt(path: str | os.PathLike, evt: EvtFile) -> int:
    """Writes the file beside `path` and renames it into place; returns its size in bytes."""
    path, data = Path(path), dumps(evt)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return len(data)


def read_evt(path: str | os.PathLike) -> EvtFile:
    """Reads what `write_evt` wrote; ValueError with the reason where there is anything else."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        return loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def dumps(evt: EvtFile) -> bytes:
    """The bytes of an `.evt` file."""
    levels, source = np.array(evt.geometry.levels), evt.source
    body = b"".join(
        (
            MAGIC,
            bytes([VERSION]),
            bytes.fromhex(evt.tokenizer),
            bits.spell(_header(evt)),
            bits.pack(np.searchsorted(levels, evt.lengths.reshape(-1)), len(levels)),
            bits.pack(evt.codes, evt.codebook),
        )
    )
    _afford(len(body), evt.codes.nbytes, evt.lengths.size, source.frames, source.constant_rate)
    return body + _checksum(body)


def loads(data: bytes) -> EvtFile:
    """The video in the bytes of an `.evt` file.

    Raises ValueError with a reason for every input that `dumps` would not have written.
    """
    body = memoryview(data)[:-CHECKSUM]
    foreign = f"not an .evt file: it starts with {bytes(data[:4])!r}"
    if _checksum(body) != data[-CHECKSUM:]:
        damaged = "the checksum does not match: the file is damaged or cut off"
        raise ValueError(damaged if data[: len(MAGIC)] == MAGIC else foreign)
    if len(body) < _NUMBERS or body[: len(MAGIC)] != MAGIC:
        raise ValueError(foreign)
    if body[len(MAGIC)] != VERSION:
        raise ValueError(f"version {body[len(MAGIC)]} is unknown: this reader knows {VERSION}")
    return _parse(body)


def info(evt: EvtFile) -> dict:
    """What a file says, ready for JSON: bytes, seconds, and bits of the whole file."""
    size, tokens, source, geometry = len(dumps(evt)), evt.codes.size, evt.source, evt.geometry
    return {
        "format": f"evt {VERSION}",
        "bytes": size,
        "overhead_bytes": size - bits.packed_size(tokens, evt.codebook),
        "tokenizer": evt.tokenizer,
        "codebook": evt.codebook,
        "clip": list(geometry.clip_shape[:3]),
        "patch": list(geometry.patch),
        "levels": list(geometry.levels),
        "source": {
            "width": source.width,
            "height": source.height,
            "mode": source.mode,
            "box": source.box._asdict(),
            "frames": source.frames,
            "seconds": float(source.seconds),
            "frames_per_second": str(source.rate),
            "constant_rate": source.constant_rate,
            "time_base": str(source.time_base),
            "pixel_aspect": str(source.pixel_aspect),
            "lost": list(source.lost),
        },
        "clips": evt.clips,
        "tokens": tokens,
        "tokens_per_clip": tokens / evt.clips,
        "tokens_per_block": evt.lengths.tolist(),
        "bits_per_token": 8 * size / tokens,
        "bits_per_second": float(8 * size / source.seconds),
    }


def _checksum(body: bytes | memoryview) -> bytes:
    return hashlib.blake2b(body, digest_size=CHECKSUM).digest()


def _afford(size: int, code_bytes: int, blocks: int, frames: int, constant: bool) -> None:
    """Refuses contents that unfold to far more memory than the file's own size.

    Lengths are held as index, level and flag at a time; time stamps are differenced, and where the
    rate varies, sorted.
    """
    needed = code_bytes + 32 * blocks + (32 if constant else 64) * frames
    if needed > _SLACK + _RATIO * size:
        raise ValueError(
            f"{size} bytes unfold to {needed}: more than {_SLACK} + {_RATIO} x the file is refused"
        )


def _header(evt: EvtFile) -> Iterator[int]:
    """The numbers of the header in their order: `_parse` reads them back."""
    geometry, source, steps = evt.geometry, evt.source, np.diff(evt.source.timestamps)
    aspect, variable = source.pixel_aspect, not source.constant_rate
    yield (
        _CROP * (source.mode == "crop")
        + _VARIABLE * variable
        + _AUDIO * source.had_audio
        + _ASPECT * (aspect != 1)
    )
    yield evt.codebook
    yield from (geometry.blocks, *geometry.grid, *geometry.patch, len(geometry.levels))
    level = 0
    for following in geometry.levels:
        yield bits.zigzag(following - 2 * level)
        level = following
    yield from (source.height, source.width)
    height, width = picture_size(source, geometry)
    top, left, rows, columns = source.box
    yield from (top, height - top - rows, left, width - left - columns)
    if aspect != 1:
        yield from aspect.as_integer_ratio()
    yield from source.time_base.as_integer_ratio()
    usual = _usual_step(steps)
    yield from (source.frames, bits.zigzag(int(source.timestamps[0])), usual)
    if variable:
        yield from (bits.zigzag(step - usual) for step in map(int, steps))


def _parse(body: memoryview) -> EvtFile:
    """The content of a file whose checksum, magic and version are right."""
    numbers = bits.Numbers(body[_NUMBERS:])
    take = numbers.take
    flags = take("flags", high=_CROP | _VARIABLE | _AUDIO | _ASPECT)
    codebook = take("codebook", 2, MAX_CODEBOOK)
    grid = [take(f"number of {name}", 1, MAX_SIDE) for name in ("blocks", "rows", "columns")]
    patch = [take(f"patch {name}", 1, MAX_SIDE) for name in ("frames", "height", "width")]
    levels = [0]
    for _ in range(take("number of levels", 1, MAX_LEVELS)):
        levels.append(2 * levels[-1] + bits.unzigzag(take("level")))
    clip = (count * size for count, size in zip(grid, patch, strict=True))
    geometry = Geometry(*clip, tuple(patch), tuple(levels[1:]))
    check_geometry(geometry)
    height, width = take("height", 1, MAX_SIDE), take("width", 1, MAX_SIDE)
    source = SourceInfo(
        width=width,
        height=height,
        mode="crop" if flags & _CROP else "letterbox",
        box=Box(0, 0, height, width),
        time_base=Fraction(1),
        had_audio=bool(flags & _AUDIO),
    )
    source.box = _take_box(numbers, *picture_size(source, geometry))
    if flags & _ASPECT:
        source.pixel_aspect = _take_ratio(numbers, "pixel aspect")
        if source.pixel_aspect == 1:
            raise ValueError("square pixels are stored as no pixel aspect")
    source.time_base = _take_ratio(numbers, "time base")
    frames = take("frames", 1)
    blocks = -(-frames // geometry.frames) * geometry.blocks
    index_bytes = bits.packed_size(blocks, len(geometry.levels))
    code_bytes = bits.packed_size(blocks * geometry.levels[0], codebook)
    if index_bytes + code_bytes > numbers.left() // 2:
        raise ValueError(f"{frames} frames need more bytes of tokens than there are")
    _afford(len(body), code_bytes, blocks, frames, not flags & _VARIABLE)
    source.timestamps = _take_times(numbers, frames, bool(flags & _VARIABLE))
    payload = body[_NUMBERS + numbers.end() :]
    index = bits.unpack(payload[:index_bytes], blocks, len(geometry.levels), np.uint16)
    lengths = np.array(geometry.levels, np.int32)[index].reshape(-1, geometry.blocks)
    tokens, dtype = int(lengths.sum(dtype=np.int64)), code_dtype(codebook)
    expected, found = bits.packed_size(tokens, codebook), len(payload) - index_bytes
    if expected != found:
        raise ValueError(f"{tokens} tokens take {expected} bytes, the file has {found} for them")
    _afford(len(body), tokens * dtype.itemsize, blocks, frames, source.constant_rate)
    codes = bits.unpack(payload[index_bytes:], tokens, codebook, dtype)
    tokenizer = body[len(MAGIC) + 1 : _NUMBERS].hex()
    return EvtFile(codebook, geometry, tokenizer, source, lengths, codes)


def _take_box(numbers: bits.Numbers, height: int, width: int) -> Box:
    """A box from its four margins inside a picture of height x width."""
    top, bottom, left, right = (
        numbers.take(f"{side} margin", high=MAX_SIDE) for side in ("top", "bottom", "left", "right")
    )
    return Box(top, left, height - top - bottom, width - left - right)


def _take_ratio(numbers: bits.Numbers, name: str) -> Fraction:
    """A positive fraction in lowest terms."""
    above, below = numbers.take(name, 1), numbers.take(name, 1)
    ratio = Fraction(above, below)
    if ratio.denominator != below:
        raise ValueError(f"{name} {above}/{below} is not in lowest terms")
    return ratio


def _take_times(numbers: bits.Numbers, frames: int, variable: bool) -> Int64[np.ndarray, " n"]:
    """Time stamps of the frames and of the end; the caller has bounded their number."""
    start = bits.unzigzag(numbers.take("first time stamp", high=2 * MAX_TICKS))
    usual = numbers.take("frame duration", 1, 2 * MAX_TICKS)
    if not variable:
        _check_ticks(start + usual * frames)
        return start + usual * np.arange(frames + 1, dtype=np.int64)
    times = np.empty(frames + 1, np.int64)
    times[0] = now = start
    for i in range(frames):
        now += usual + bits.unzigzag(numbers.take("frame duration", high=4 * MAX_TICKS))
        _check_ticks(now)
        times[i + 1] = now
    steps = np.diff(times)
    if _usual_step(steps) != usual or (steps == usual).all():
        raise ValueError("the usual frame duration is not the most frequent one")
    return times


def _check_ticks(time: int) -> None:
    if not -MAX_TICKS <= time <= MAX_TICKS:
        raise ValueError(f"time stamp {time} is out of range")


def _usual_step(steps: Int64[np.ndarray, " n"]) -> int:
    """The duration that most frames have, the shortest of them where several tie."""
    values, counts = np.unique(steps, return_counts=True)
    return int(values[np.argmax(counts)])
