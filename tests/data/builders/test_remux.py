"""Long videos are cut into records that show the same pictures at the same times."""

from fractions import Fraction
from io import BytesIO
from itertools import islice

import av
import numpy as np
import pytest

from evatok_jax.data.builders import source
from evatok_jax.data.builders.build import build
from evatok_jax.data.builders.check import check
from evatok_jax.data.builders.examine import LARGEST, examine, records
from evatok_jax.data.builders.listing import VideoFile
from evatok_jax.data.container import BadVideo
from evatok_jax.data.decode import window
from evatok_jax.data.probe import probe
from evatok_jax.data.records import open_records, read_index

LIMIT = 80_000
FRAMES = 48
CLOSED = {"g": "6", "bf": "3", "sc_threshold": "0"}
OPEN_265 = "keyint=6:min-keyint=6:qp=10:open-gop=1:scenecut=0:log-level=error"
# name: (suffix, codec, options, pixel format)
KINDS = {
    "mp4": ("mp4", "libx264", CLOSED, "yuv420p"),
    "mp4-open": ("mp4", "libx264", CLOSED | {"x264-params": "open-gop=1"}, "yuv420p"),
    "mp4-10-bit": ("mp4", "libx264", CLOSED, "yuv420p10le"),
    "mkv": ("mkv", "libx264", CLOSED, "yuv420p"),
    "mkv-gray": ("mkv", "ffv1", {"g": "4"}, "gray"),
    "hevc-open": ("mp4", "libx265", {"x265-params": OPEN_265}, "yuv420p"),
    "mpeg2-open": ("mpg", "mpeg2video", {"g": "6", "bf": "2", "b": "4M"}, "yuv420p"),
    "transport": ("ts", "libx264", CLOSED, "yuv420p"),
    "avi": ("avi", "mpeg4", {"g": "6", "qscale": "2"}, "yuv420p"),
    "avi-b-frames": ("avi", "mpeg4", {"g": "6", "bf": "2", "b": "4M"}, "yuv420p"),
    "webm": ("webm", "libvpx-vp9", {"g": "6", "deadline": "realtime", "b": "3M"}, "yuv420p"),
}


def noisy(path, kind="mp4", frames=FRAMES, times=None, start=0, rotation=None, sound=False):
    """A video of noise, in which a frame has thousands of bytes; `times` in thousandths."""
    suffix, codec, options, pixels = KINDS[kind]
    path = path / f"{kind}.{suffix}"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        track = out.add_stream(codec, rate=25, options=options)
        track.height, track.width, track.pix_fmt = 64, 80, pixels
        if times is not None:
            track.time_base = track.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            track.set_display_rotation(rotation)
        song = out.add_stream("aac", rate=16000, layout="mono") if sound else None
        for number in range(frames):
            picture = rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number + start if times is None else int(times[number])
            out.mux(track.encode(frame))
        out.mux(track.encode())
        if song:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
            frame.sample_rate = 16000
            out.mux(song.encode(frame))
            out.mux(song.encode())
    return path


def cut(path, limit=LIMIT, share=(0.0, 1.0)):
    """The records of a video."""
    video = VideoFile(path, "v", share=share)
    return list(records(video, examine(video, lambda: None, 1, limit)))


def pictures(data, found):
    """All frames of a record or file."""
    return window(data, np.arange(found), 64, 80, np.zeros((1, 2), np.int64))


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_the_whole(tmp_path, kind):
    path = noisy(tmp_path, kind)
    whole = probe(path.read_bytes())
    full = pictures(path.read_bytes(), whole.frames)
    parts = cut(path)
    assert len(parts) > 1
    done = 0
    for part in parts:
        assert len(part["video"]) < LIMIT
        first, last = part["first"], part["last"]
        assert first == 0 < last <= part["frames"] == len(part["times"])
        there = slice(done, done + part["frames"])
        np.testing.assert_array_equal(pictures(part["video"], part["frames"]), full[there])
        np.testing.assert_allclose(part["offset"] + part["times"], whole.times[:-1][there])
        assert part["offset"] + part["duration"] == pytest.approx(whole.times[done + last])
        assert part["fps"] == whole.fps
        own = probe(part["video"])
        np.testing.assert_array_equal(own.keyframes, part["keyframes"])
        np.testing.assert_allclose(own.times[:-1], part["times"], atol=0.001)
        assert part["motion"] > 20
        done += last
    assert done == whole.frames
    again = cut(path)
    assert [part["video"] for part in again] == [part["video"] for part in parts]


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_variable_frame_rates_and_late_starts(tmp_path, kind):
    rng = np.random.default_rng(1)
    times = 5000 + np.cumsum(rng.integers(5, 90, FRAMES))
    parts = cut(noisy(tmp_path, kind, times=times))
    assert len(parts) > 1
    shown = np.concatenate([part["offset"] + part["times"][: part["last"]] for part in parts])
    np.testing.assert_allclose(shown, (times - times[0]) / 1000, atol=1e-9)


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_rotation_is_kept_and_sound_is_not(tmp_path, kind):
    parts = cut(noisy(tmp_path, kind, rotation=90, sound=True))
    assert len(parts) > 1
    for part in parts:
        own = probe(part["video"])
        assert (own.height, own.width) == (part["height"], part["width"]) == (80, 64)
        with av.open(BytesIO(part["video"])) as container:
            assert not container.streams.audio


def test_the_frames_of_a_split_are_found_in_their_parts(tmp_path):
    path = noisy(tmp_path)
    parts, share = cut(path), cut(path, share=(0.5, 0.7))
    edges = np.cumsum([0, *(part["last"] for part in parts)])
    whole = [(part["offset"], part["video"]) for part in parts]
    frames = []
    for part in share:
        place = whole.index((part["offset"], part["video"]))
        frames += range(edges[place] + part["first"], edges[place] + part["last"])
    assert frames == list(range(24, 34))


def test_one_group_of_pictures_is_not_cut(tmp_path):
    KINDS["one-group"] = ("mp4", "libx264", {"g": "1000", "sc_threshold": "0"}, "yuv420p")
    path = noisy(tmp_path, "one-group")
    (part,) = cut(path)
    assert part["video"] == path.read_bytes()
    assert len(part["video"]) > LIMIT
    manifest = build(source("folder", tmp_path), tmp_path / "out", limit=LIMIT, workers=0)
    assert manifest["large"] == [["one-group.mp4", path.stat().st_size]]
    small = path.stat().st_size // LARGEST - 1000
    with pytest.raises(BadVideo, match="cannot be cut at key frames: it is one group") as error:
        cut(path, limit=small)
    assert error.value.cause == "too large"


def test_long_videos_in_a_data_set(tmp_path):
    """Any window of the whole is found in the records, if no cut goes through it."""
    path = noisy(tmp_path)
    full = pictures(path.read_bytes(), FRAMES)
    out = tmp_path / "out"
    manifest = build(source("folder", tmp_path), out, limit=LIMIT, workers=1)
    rows, index = open_records(out, "train"), read_index(out, "train")
    assert manifest["splits"]["train"] == len(rows) > 1
    assert max(len(rows[number]["video"]) for number in range(len(rows))) < LIMIT
    done = 0
    for number in range(len(rows)):
        row = rows[number]
        assert row["key"] == path.name.encode()
        for start in islice(range(row["first"], row["last"] - 3, 5), 4):
            clip = window(row["video"], np.arange(start, start + 4), 64, 80, row["keyframes"])
            np.testing.assert_array_equal(clip, full[done + start : done + start + 4])
        done += row["last"]
        assert row["offset"] == pytest.approx((done - row["last"]) / 25)
        assert index["duration"][number] == pytest.approx(row["last"] / 25)
    assert done == FRAMES
    check(out)
