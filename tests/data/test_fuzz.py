"""Two thousand damaged videos beside two hundred good ones: nothing crashes, hangs or is lost."""

import json
import resource
import struct
import time

import numpy as np
import pytest

from evatok_jax.data import pipeline
from evatok_jax.data.builders import source
from evatok_jax.data.builders.build import SKIPPED, build
from evatok_jax.data.clips import Clips
from evatok_jax.data.faults import Quarantine, read_faults
from evatok_jax.data.records import open_records, read_index

GOOD, TIMES = 200, 10  # each good one is damaged in so many ways
KINDS = ("avi", "avi-b-frames", "mp4-b-frames", "mkv", "mjpeg")
HEIGHT, WIDTH = 32, 40
LIMIT = 10.0  # seconds

# Where a file says how large its pictures are, and what it says instead.
SIZES = [
    (struct.pack("<II", WIDTH, HEIGHT), struct.pack("<II", 30_000, 30_000)),
    (struct.pack("<II", WIDTH, HEIGHT), struct.pack("<II", 8_000, 8_000)),
    (struct.pack(">HH", WIDTH, HEIGHT), struct.pack(">HH", 60_000, 60_000)),
    (struct.pack(">HH", HEIGHT, WIDTH), struct.pack(">HH", 8_000, 8_000)),
    (bytes([0xB0, 0x81, WIDTH, 0xBA, 0x81, HEIGHT]), b"\xb0\x84\x00\x00\xff\xff"),
]
# Names of codecs and of kinds of tracks, and those of others.
NAMES = [
    (b"FMP4", b"MJPG"),
    (b"MJPG", b"FMP4"),
    (b"FFV1", b"H264"),
    (b"avc1", b"mp4v"),
    (b"vide", b"soun"),
    (b"vids", b"auds"),
]


def damaged(data: bytes, other: bytes, how: int, rng) -> bytes:
    """The bytes of a video, spoilt in one of several ways."""
    if how == 0:
        return b""
    if how in (1, 2, 3):  # truncated
        return data[: rng.integers(1, len(data))]
    if how in (4, 5):  # of another container, at its beginning
        return other[: rng.integers(8, 400)] + data[rng.integers(8, 400) :]
    changed = bytearray(data)
    if how in (6, 7):  # bits flip
        for place in rng.integers(0, len(data), rng.integers(1, 60)):
            changed[place] ^= 1 << rng.integers(8)
        return bytes(changed)
    found = [pair for pair in (NAMES if how == 8 else SIZES) if pair[0] in data]
    old, new = found[rng.integers(len(found))]
    return data.replace(old, new)


@pytest.fixture(scope="module")
def clips(tmp_path_factory, videos):
    """The good ones, some of each kind, by name."""
    folder, found = tmp_path_factory.mktemp("good"), {}
    for number in range(GOOD):
        kind = KINDS[number % len(KINDS)]
        name = f"{number:03d}.{videos.kinds[kind][0]}"
        pictures = videos.pictures(16 + number % 7, HEIGHT, WIDTH, seed=number)
        found[name] = videos.write(folder / name, pictures, kind).read_bytes()
    return found


def spoilt(clips: dict[str, bytes], number: int) -> bytes:
    """Damaged video `number`, of GOOD * TIMES."""
    rng, data = np.random.default_rng(number), list(clips.values())
    how, which = divmod(number, GOOD)
    return damaged(data[which], data[(which + 1) % GOOD], how, rng)


@pytest.mark.all
def test_building(tmp_path, clips):
    """All good ones are in the data set, and all others in it or on the list."""
    folder = tmp_path / "videos"
    for name in ("good", "bad"):
        (folder / "train" / name).mkdir(parents=True)
    for name, data in clips.items():
        (folder / "train/good" / name).write_bytes(data)
    suffixes = [name.partition(".")[2] for name in clips]
    for number in range(GOOD * TIMES):
        name = f"{number:04d}.{suffixes[number % GOOD]}"
        (folder / "train/bad" / name).write_bytes(spoilt(clips, number))
    out = tmp_path / "out"
    manifest = build(
        source("folder", folder), out, shards=4, max_bad=1.0, workers=2, patience=LIMIT
    )
    index, records = read_index(out, "train"), open_records(out, "train")
    rows = [json.loads(line) for line in (out / SKIPPED).read_text().splitlines()]
    stored, left = index["key"].tolist(), [row["key"] for row in rows]
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert len(names) == GOOD * (TIMES + 1)
    assert sorted(stored + left) == sorted(names)
    assert sum(manifest["skipped"].values()) == len(left)
    assert "time limit" not in manifest["skipped"]
    good = {name for name in names if "/good/" in name}
    assert good <= set(stored)
    for number, name in enumerate(stored):
        if name in good:
            assert records[number]["video"] == clips[name.rpartition("/")[2]]
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"left out: {manifest['skipped']}; the largest process had {most:.2f} GB")
    assert most < 1


@pytest.mark.all
def test_reading(tmp_path, clips, videos, monkeypatch):
    """Records that have been damaged since: good ones are read, all others replaced and listed."""
    folder = tmp_path / "videos/train"
    folder.mkdir(parents=True)
    for name, data in clips.items():
        (folder / name).write_bytes(data)
    clean = build(source("folder", tmp_path / "videos"), tmp_path / "clean", workers=0)
    assert clean["splits"] == {"train": GOOD}
    data = videos.repeat_records(
        tmp_path / "clean",
        tmp_path / "data",
        TIMES + 1,
        change=lambda number, video: video if number < GOOD else spoilt(clips, number - GOOD),
    )
    monkeypatch.setattr(pipeline, "_TRIES", 100)  # where most are bad, ten are too few
    quarantine = Quarantine(tmp_path, max_bad=1.0)
    before, slowest, found = memory(), 0.0, []
    stream = pipeline.train_clips(
        Clips(data, "train", 16, 16, 16, time_limit=LIMIT),
        batch_size=22,
        seed=1,
        quarantine=quarantine,
    )
    for _ in range(GOOD * (TIMES + 1) // 22):
        began = time.perf_counter()
        found.append(next(stream))
        slowest = max(slowest, time.perf_counter() - began)
    read = {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}
    own = np.flatnonzero(read["attempts"] == 0)
    assert set(range(GOOD)) <= set(read["record"][own])
    faults = read_faults(tmp_path / "quarantine.jsonl")
    bad = {fault.record for fault in faults if fault.attempt == 0}
    assert bad == set(range(GOOD * (TIMES + 1))) - set(read["record"][own])
    assert len(faults) == read["attempts"].sum()
    assert not any(fault.cause == "too slow" for fault in faults)
    sound = Clips(tmp_path / "clean", "train", 16, 16, 16)
    for row in np.flatnonzero(read["record"] < GOOD):
        clip = sound.read(*(read[name][row] for name in ("record", "window", "flip")))
        np.testing.assert_array_equal(clip["video"], read["video"][row])
    print(f"{quarantine}; slowest batch {slowest:.1f} s; {memory() - before:.2f} GB more memory")
    assert memory() - before < 0.5


def memory() -> float:
    """The most that this process has had, in gigabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
