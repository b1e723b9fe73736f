"""Windows by number and by time: what the rules say, from every kind of video."""

import time
from fractions import Fraction

import av
import numpy as np
import pytest

from evatok_jax.data.builders import source
from evatok_jax.data.builders.build import build
from evatok_jax.data.builders.listing import VideoFile, listed
from evatok_jax.data.clips import BadClip, Clips
from evatok_jax.data.decode import Fit

SIZE = {"height": 16, "width": 16}
MILLISECOND = Fraction(1, 1000)
# name: (suffix, codec, pixel format, options, (height, width), rotation)
KINDS = {
    "b-frames": ("mp4", "libx264", "yuv420p", {"g": "12", "bf": "3"}, (32, 48), 0),
    "rotated": ("mp4", "libx264", "yuv420p", {"g": "8", "bf": "2"}, (32, 48), 90),
    "odd": ("mkv", "ffv1", "yuv444p", {"g": "9"}, (33, 47), 0),
    "10-bit": ("mkv", "ffv1", "yuv422p10le", {"g": "9"}, (32, 40), 0),
    "gray": ("mkv", "ffv1", "gray", {"g": "9"}, (32, 40), 0),
}


def write_timed(path, pictures, stamps, kind="b-frames"):
    """Writes pictures [n, h, w, 3] that are shown from these times on, in milliseconds."""
    suffix, codec, form, options, _, degrees = KINDS[kind]
    path = path.with_suffix(f".{suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=1000, options=options)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt, stream.codec_context.time_base = form, MILLISECOND
        if degrees:
            stream.set_display_rotation(degrees=degrees)
        for picture, stamp in zip(pictures, stamps, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=form)
            frame.pts, frame.time_base = int(stamp), MILLISECOND
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def varying(count, rng, start=0):
    """Times that follow each other after 5 to 180 milliseconds."""
    return start + np.cumsum(rng.integers(5, 180, count))


def one_record(tmp_path, path, parts=None):
    parts = parts or [("train", (0.0, 1.0))]
    videos = [(split, VideoFile(path, "v", share=share)) for split, share in parts]
    build(listed("made", videos, ("unlabelled",), ""), tmp_path / "data", min_frames=1, workers=0)
    return tmp_path / "data"


def shown_at(times, start, count, fps, last):
    """The rule, frame by frame: the last one that has begun, 0.1 ms late at most."""
    numbers = []
    for k in range(count):
        at = times[start] + k / fps + 1e-4
        numbers.append(max(n for n in range(last) if times[n] <= at))
    return numbers


@pytest.mark.parametrize("kind", KINDS)
def test_windows_by_time_equal_the_full_decode(tmp_path, videos, kind):
    """Of varying frame rate, and beginning late."""
    rng = np.random.default_rng(0)
    path = write_timed(
        tmp_path / "v", videos.pictures(60, *KINDS[kind][4]), varying(60, rng, 1500), kind
    )
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert frames[0].time > 1.0
    times = np.array([float(frame.time - frames[0].time) for frame in frames])
    full = np.stack([Fit(frames[0], 16, 16)(frame) for frame in frames])
    data = one_record(tmp_path, path)
    np.testing.assert_allclose(Clips(data, "train", 4, **SIZE).records[0]["times"], times)
    for fps in (0.8, 3.0, 11.0, 40.0):
        clips = Clips(data, "train", 4, **SIZE, fps=fps)
        for start in rng.integers(0, 40, 4):
            if times[start] + 3 / fps > times[-1]:
                continue
            clip = clips.read(0, start)["video"]
            np.testing.assert_array_equal(clip, full[shown_at(times, start, 4, fps, 60)])


def test_a_part_of_a_video_gives_no_frame_of_another(tmp_path, videos):
    """By time as by number, whatever the rule for what is too short."""
    path = videos.write(tmp_path / "v.avi", videos.pictures(80))
    parts = [("train", (0.0, 0.25)), ("test", (0.3, 0.55))]
    data, rng = one_record(tmp_path, path, parts), np.random.default_rng(0)
    native = Clips(data, "test", 8, **SIZE)
    np.testing.assert_array_equal(native.windows(), [[0, 24], [0, 32]])
    full = Clips(data, "train", 8, **SIZE)._decode(native.records[0], np.arange(80))
    for split, first, last in (("train", 0, 20), ("test", 24, 44)):
        for fps, short in ((0.0, "skip"), (12.5, "skip"), (5.0, "hold"), (0.0, "hold")):
            clips = Clips(data, split, 8, **SIZE, fps=fps, short=short)
            drawn = [clips.draw(0, rng) for _ in range(20)]
            assert min(clip["window"] for clip in drawn) >= first
            step = 25 / fps if fps else 1
            for clip in drawn:
                numbers = np.floor(clip["window"] + np.arange(8) * step).astype(int)
                numbers = np.minimum(numbers, last - 1)
                np.testing.assert_array_equal(clip["video"], full[numbers])
            fitting = max(int(last - 7 * step - 1e-9), first) if fps else last - 8
            if short == "skip":
                assert {int(clip["window"]) for clip in drawn} <= set(range(first, last))
                assert max(clip["window"] for clip in drawn) <= fitting


def test_every_window_that_fits_is_drawn(tmp_path, videos):
    path = videos.write(tmp_path / "v.avi", videos.pictures(20))
    data, rng = one_record(tmp_path, path), np.random.default_rng(0)
    for fps, starts in ((0.0, 13), (12.5, 6), (25.0, 13)):
        clips = Clips(data, "train", 8, **SIZE, fps=fps, cache_bytes=2**30)
        drawn = {int(clips.draw(0, rng)["window"]) for _ in range(300)}
        assert drawn == set(range(starts))
        for start in drawn:
            clips.read(0, start)
        with pytest.raises(BadClip, match="frames are 0 to 19"):
            clips.read(0, starts)


def test_short_videos(tmp_path, class_folder):
    """They give no clip, or one that ends with its last frame."""
    build(source("folder", class_folder), tmp_path / "data", workers=0)
    for fps, needed in ((0.0, 30), (12.5, 59), (50.0, 15)):
        clips = Clips(tmp_path / "data", "train", 30, **SIZE, fps=fps)
        lengths = clips.index["last"]
        if needed > lengths.max():
            with pytest.raises(ValueError, match=r"11 videos has 30 frames at 12\.5"):
                clips.usable()
        else:
            np.testing.assert_array_equal(clips.usable(), np.flatnonzero(lengths >= needed))
        held = Clips(tmp_path / "data", "train", 30, **SIZE, fps=fps, short="hold")
        np.testing.assert_array_equal(held.usable(), np.arange(11))
        assert set(held.windows()[:, 0]) == set(range(11))
        record = int(lengths.argmin())
        numbers = np.floor(np.arange(30) * (25 / fps if fps else 1) + 1e-6).astype(int)
        numbers = np.minimum(numbers, lengths[record] - 1)
        expected = held._decode(held.records[record], numbers)
        np.testing.assert_array_equal(held.read(record, 0)["video"], expected)


def test_fixed_windows_follow_the_rule(tmp_path, videos):
    """Of constant rate, looked up in the index, and of varying rate, in the record."""
    rng, folder = np.random.default_rng(1), tmp_path / "videos"
    for number in range(3):
        pictures = videos.pictures(40 + 7 * number)
        videos.write(folder / f"{number}.avi", pictures, rate=25)
        videos.write(folder / f"{number}.mp4", pictures, "mp4-b-frames", rate=30)
        write_timed(folder / f"{number}v", pictures, varying(len(pictures), rng))
    build(source("folder", folder), tmp_path / "data", min_frames=1, workers=0)
    varied = 0
    for frames, fps in ((4, 3.0), (5, 7.3), (3, 25.0), (8, 30.0), (1, 0.5)):
        clips, expected = Clips(tmp_path / "data", "train", frames, **SIZE, fps=fps), []
        for record in range(len(clips.records)):
            row = clips.records[record]
            varied += clips.index["rate"][record] == 0
            number, times = 0, row["times"]
            while (number * frames + frames - 1) / fps + 1e-4 < row["duration"]:
                at = number * frames / fps + 1e-4
                expected.append((record, max(n for n in range(len(times)) if times[n] <= at)))
                number += 1
        np.testing.assert_array_equal(clips.windows(), expected)
        for record, start in expected[::5]:
            clips.read(record, start)
    assert varied


def test_windows_of_a_million_records(tmp_path, videos):
    data = one_record(tmp_path, videos.write(tmp_path / "v.avi", videos.pictures(20)))
    count, rng = 1_000_000, np.random.default_rng(0)
    last = rng.integers(1, 48, count).astype(np.int32)
    columns = {
        "first": np.zeros(count, np.int32),
        "last": last,
        "duration": (last / 25).astype(np.float32),
        "rate": np.full(count, 25.0),
    }
    for fps in (0.0, 25.0):
        clips = Clips(data, "train", 16, **SIZE, fps=fps)
        clips.__dict__["index"] = columns
        began = time.process_time()
        windows = clips.windows()
        assert time.process_time() - began < 3
        assert len(windows) == np.sum(last // 16)
        np.testing.assert_array_equal(windows[:, 1] % 16, 0)
        found = np.bincount(windows[:, 0], minlength=count) > 0
        np.testing.assert_array_equal(found, last >= 16)


def test_settings_that_mean_nothing(tmp_path, videos):
    data = one_record(tmp_path, videos.write(tmp_path / "v.avi", videos.pictures(20)))
    for settings, said in (
        ({"short": "hodl"}, "did you mean 'hold'"),
        ({"fps": -1.0}, "fps -1"),
        ({"time_limit": 0.0}, "time_limit 0"),
        ({"cache_dir": str(tmp_path)}, "holds nothing"),
    ):
        with pytest.raises(ValueError, match=said):
            Clips(data, "train", 8, **SIZE, **settings)
    with pytest.raises(ValueError, match="no split 'val', only train"):
        Clips(data, "val", 8, **SIZE)
