"""Videos come back with their length, size, rate and time stamps; bad files say what is wrong."""

from fractions import Fraction

import av
import numpy as np
import pytest
from videos import encode

from evatok_jax.storage.framing import box_for
from evatok_jax.storage.video_files import Video, clips_of, write_back, write_video

HD_CLOCK = Fraction(1, 90000)
TIMES = {
    "25 a second": (np.arange(8), Fraction(1, 25)),
    "broadcast": (np.arange(8), Fraction(1001, 30000)),
    "mp4 clock": (np.arange(8) * 512, Fraction(1, 12800)),
    "milliseconds": (7 + np.array([0, 33, 67, 100, 133, 167, 200, 233]), Fraction(1, 1000)),
    "variable": (np.array([0, 1, 5000, 5010, 90000, 90001, 95000, 99999]), HD_CLOCK),
    "late start": (2**33 + np.arange(8) * 3003, HD_CLOCK),
    "start between milliseconds": (1 + np.arange(8), Fraction(1, 30000)),
    "slow": (np.arange(8) * 10**5, Fraction(1, 1000)),
    "nanoseconds": (np.arange(8) * 10**7, Fraction(1, 10**9)),
}


def read(path):
    video = Video(path)
    return np.stack(list(video)), video


@pytest.mark.parametrize("name", TIMES)
def test_time_stamps_return_exactly(name, tmp_path, moving):
    times, base = TIMES[name]
    write_video(tmp_path / "a.mp4", moving(7, 48, 64), times, base)
    frames, video = read(tmp_path / "a.mp4")
    assert len(frames) == 7
    found = [time * video.time_base for time in video.timestamps.tolist()]
    assert found == [time * base for time in times.tolist()]


@pytest.mark.parametrize("size", [(48, 64), (57, 101), (101, 57), (64, 57), (1, 1), (2, 2)])
@pytest.mark.parametrize("frames", [1, 3])
def test_sizes_and_colours_return(size, frames, tmp_path, moving):
    shown = moving(frames, *size)
    write_video(tmp_path / "a.mp4", shown, np.arange(frames + 1), Fraction(1, 25))
    found, video = read(tmp_path / "a.mp4")
    assert found.shape == shown.shape and (video.height, video.width) == size
    assert np.abs(found.astype(int) - shown).mean() < 4
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("mode", ["letterbox", "crop"])
@pytest.mark.parametrize("frames", [1, 8, 13])
def test_clips_and_back(mode, frames, tmp_path, moving):
    times, aspect = np.cumsum(np.arange(1, frames + 2)), Fraction(16, 11)
    write_video(tmp_path / "a.mp4", moving(frames, 57, 101), times, HD_CLOCK, aspect)
    clips, source = clips_of(tmp_path / "a.mp4", 8, 32, 32, mode)
    with pytest.raises(ValueError, match="once all clips were read"):
        _ = source.frames
    clips = list(clips)
    assert [clip.shape for clip in clips] == [(8, 32, 32, 3)] * (1 + (frames - 1) // 8)
    fill = clips[-1][(frames - 1) % 8 :]
    assert (fill == fill[0]).all()
    assert (source.frames, source.width, source.height) == (frames, 101, 57)
    assert source.box == box_for((57, 101), 32, 32, mode)
    assert source.pixel_aspect == aspect and not source.had_audio

    write_back(tmp_path / "b.mp4", iter(clips), source)
    back, video = read(tmp_path / "b.mp4")
    assert back.shape == (frames, *source.restored_size, 3)
    assert np.array_equal(video.timestamps, times) and video.time_base == HD_CLOCK
    assert video.pixel_aspect == aspect


def test_clips_are_read_one_at_a_time(tmp_path, moving, monkeypatch):
    write_video(tmp_path / "a.mp4", moving(20, 48, 64), np.arange(21), Fraction(1, 25))
    seen = []
    monkeypatch.setattr(
        "evatok_jax.storage.video_files.fit_frame", lambda frame, *_: seen.append(1) or frame
    )
    clips, _ = clips_of(tmp_path / "a.mp4", 4, 48, 64)
    for count, _ in enumerate(clips, start=1):
        assert len(seen) == 4 * count


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [
        ("libx264", "yuv420p10le"),
        ("libx264", "yuvj420p"),
        ("mpeg4", "yuv420p"),
        ("ffv1", "gray"),
        ("ffv1", "bgr0"),
        ("ffv1", "yuv444p16le"),
    ],
)
def test_any_pixel_format_becomes_rgb(codec, pix_fmt, tmp_path, moving):
    shown = moving(3, 48, 64)
    if pix_fmt == "gray":
        shown = np.repeat(shown[..., :1], 3, -1)
    path = encode(tmp_path / ("a.mkv" if codec == "ffv1" else "a.mp4"), shown, codec, pix_fmt)
    found, video = read(path)
    assert np.abs(found.astype(int) - shown).mean() < 10
    assert video.timestamps.tolist() == [t * video.timestamps[1] for t in range(4)]


@pytest.mark.parametrize(
    ("rotation", "turn"),
    [
        ({"degrees": 90}, lambda f: np.rot90(f)),
        ({"degrees": -90}, lambda f: np.rot90(f, -1)),
        ({"degrees": 180}, lambda f: np.rot90(f, 2)),
        ({"degrees": 0, "hflip": True}, lambda f: f[:, ::-1]),
        ({"degrees": 0, "vflip": True}, lambda f: f[::-1]),
    ],
)
def test_pictures_come_upright(rotation, turn, tmp_path, moving):
    shown = moving(2, 48, 64)
    found, video = read(encode(tmp_path / "a.mp4", shown, rotation=rotation))
    expected = np.stack([turn(frame) for frame in shown])
    assert found.shape == expected.shape
    assert (video.height, video.width) == expected.shape[1:3]
    assert np.abs(found.astype(int) - expected).mean() < 8


def test_slanted_pictures_are_refused(tmp_path, moving):
    path = encode(tmp_path / "a.mp4", moving(2, 48, 64), rotation={"degrees": 30})
    with pytest.raises(ValueError, match=r"a\.mp4.*no quarter turn"):
        Video(path)


def test_sound_is_noticed(tmp_path, moving):
    path = encode(tmp_path / "a.mp4", moving(2, 48, 64), audio=True)
    _, source = clips_of(path, 4, 32, 32)
    assert source.lost == ("audio",)


@pytest.mark.parametrize("ending", ["mp4", "avi", "mkv", "ts"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_truncated_videos_are_refused(ending, share, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), np.uint8)
    path = encode(tmp_path / f"a.{ending}", noise, "mpeg4" if ending == "avi" else "libx264")
    assert len(read(path)[0]) == 12
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"a\.\w+: (unreadable|cut off|not a video|not one frame)"):
        read(path)


def test_a_late_start_is_no_missing_time(tmp_path, moving):
    """Matroska announces when a video ends; this one takes a fifth of that."""
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        track = out.add_stream("ffv1", rate=25)
        track.height, track.width, track.pix_fmt = 48, 64, "yuv420p"
        for number, picture in enumerate(moving(10, 48, 64)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number + 40
            out.mux(track.encode(frame))
        out.mux(track.encode())
    frames, video = read(tmp_path / "a.mkv")
    assert len(frames) == 10
    assert (video.timestamps * video.time_base).tolist() == [
        Fraction(n + 40, 25) for n in range(11)
    ]


def test_what_is_no_video_says_so(tmp_path, moving):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("This is no video." * 100)
    encode(tmp_path / "sound.mp4", None, audio=True)
    reasons = {
        "absent": "there is no such file",
        "empty": "the file is empty",
        "text": "not a video that can be read",
        "sound": "only sound",
    }
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=rf"{name}\.mp4: .*{reason}"):
            clips_of(tmp_path / f"{name}.mp4", 4, 32, 32)


def test_playlists_reach_nothing_else(tmp_path, moving):
    """A playlist may be a local file, and still must not fetch from the network."""
    path = tmp_path / "a.mp4"
    path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(ValueError, match=r"not a video|no video"):
        Video(path)


def test_a_video_is_read_once(tmp_path, moving):
    write_video(tmp_path / "a.mp4", moving(2, 48, 64), np.arange(3), Fraction(1, 25))
    video = Video(tmp_path / "a.mp4")
    assert len(list(video)) == 2
    with pytest.raises(ValueError, match="open it again"):
        list(video)


@pytest.mark.parametrize(
    ("count", "times", "suffix", "reason"),
    [
        (3, [0, 1, 2], "mp4", "frame 3 of 2"),
        (1, [0, 1, 2], "mp4", "1 frames came for 2"),
        (0, [0, 1], "mp4", "no frame"),
        (2, [0, 1, 1], "mp4", "must increase"),
        (2, [-1, 0, 1], "mp4", "from zero or later"),
        (2, [0, 1, 2], "gif", r"written as \.mp4"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(count, times, suffix, reason, tmp_path, moving):
    with pytest.raises(ValueError, match=reason):
        write_video(
            tmp_path / f"a.{suffix}", moving(count, 48, 64), np.array(times), Fraction(1, 25)
        )
    assert not list(tmp_path.iterdir())


def test_a_failing_decoder_leaves_the_old_file(tmp_path, moving):
    write_video(tmp_path / "a.mp4", moving(4, 48, 64), np.arange(5), Fraction(1, 25))
    before = (tmp_path / "a.mp4").read_bytes()
    clips, source = clips_of(tmp_path / "a.mp4", 4, 32, 32)
    assert len(list(clips)) == 1

    def failing():
        raise RuntimeError("the model is gone")
        yield

    with pytest.raises(RuntimeError, match="model is gone"):
        write_back(tmp_path / "a.mp4", failing(), source)
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
