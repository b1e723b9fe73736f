"""A window is that part of a full decode, in the right colours; what cannot be used is refused."""

import csv

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from evatok_jax.data import decode
from evatok_jax.data.container import BadVideo
from evatok_jax.data.deadline import Deadline
from evatok_jax.data.decode import Fit, frames_from, window
from evatok_jax.data.probe import probe
from evatok_jax.storage.video_files import Video


def decode_all(path, height, width):
    """All frames of a file, by the plainest way there is."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    fit = Fit(frames[0], height, width)
    return np.stack([fit(frame) for frame in frames])


def run(start, count):
    """Numbers of frames that follow each other."""
    return np.arange(start, start + count)


@pytest.mark.parametrize(
    "kind", ["avi", "avi-b-frames", "avi-one-key", "mp4-b-frames", "mp4-open-gop", "mkv", "mjpeg"]
)
def test_every_window_equals_the_full_decode(tmp_path, videos, kind):
    path = tmp_path / f"video.{videos.kinds[kind][0]}"
    videos.write(path, videos.pictures(47), kind)
    data, full = path.read_bytes(), decode_all(path, 16, 16)
    found = probe(data)
    assert (found.frames, found.height, found.width) == (47, 32, 40)
    assert found.fps == pytest.approx(25, rel=0.05)
    for start in range(0, 47 - 5 + 1):
        clip = window(data, run(start, 5), 16, 16, found.keyframes)
        np.testing.assert_array_equal(clip, full[start : start + 5])


@pytest.mark.parametrize("kind", ["avi", "avi-b-frames", "mp4-b-frames", "mp4-open-gop", "mkv"])
def test_frames_far_apart_equal_the_full_decode(tmp_path, videos, kind):
    """Also those that are shown more than once, and where a key frame lies between them."""
    path = tmp_path / f"video.{videos.kinds[kind][0]}"
    videos.write(path, videos.pictures(90), kind)
    data, full = path.read_bytes(), decode_all(path, 16, 16)
    found, rng = probe(data), np.random.default_rng(0)
    for step in (1, 3, 11, 25):
        numbers = rng.integers(0, 10) + np.arange(0, 80, step) + rng.integers(0, 2)
        numbers = np.repeat(numbers, rng.integers(1, 3, len(numbers)))
        clip = window(data, numbers, 16, 16, found.keyframes)
        np.testing.assert_array_equal(clip, full[numbers])


def test_only_what_is_needed_is_decoded(tmp_path, videos, monkeypatch):
    """From the key frame before a window on, and nothing between two frames that are far apart."""
    path = videos.write(tmp_path / "video.mkv", videos.pictures(90), "mkv")  # a key frame in ten
    data, decoded = path.read_bytes(), []
    keyframes = probe(data).keyframes

    def counted(*arguments):
        for frame in frames_from(*arguments):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(decode, "frames_from", counted)
    for numbers, most in ((run(63, 4), 7), (np.array([5, 44, 81]), 6 + 5 + 2), (run(0, 90), 90)):
        decoded.clear()
        window(data, numbers, 16, 16, keyframes)
        assert len(decoded) <= most


@pytest.mark.parametrize("kind", ["avi", "mp4-b-frames", "mkv", "mjpeg"])
def test_key_frames_are_used(tmp_path, videos, kind):
    path = videos.write(tmp_path / f"video.{videos.kinds[kind][0]}", videos.pictures(47), kind)
    found = probe(path.read_bytes())
    assert len(found.keyframes) >= 4
    assert tuple(found.keyframes[0]) == (0, 0)
    assert (np.diff(found.keyframes[:, 0]) >= 8).all()


def test_colours_and_filter_agree_with_pillow(tmp_path, videos):
    """RGB of a lossless video against colour conversion and antialiased resize in floats."""
    pictures = 80 + videos.pictures(1, 48, 60) // 3  # no colour that one of the two would clip
    path = videos.write(tmp_path / "video.mkv", pictures, "mkv")
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    planes = [
        np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        for plane in frame.planes
    ]
    y, cb, cr = (
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize((60, 48), Image.BILINEAR))
        for plane in planes
    )
    y, cb, cr = (y - 16) / 219 * 255, (cb - 128) / 224 * 255, (cr - 128) / 224 * 255
    rgb = (y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb)
    expected = np.stack(
        [
            np.asarray(Image.fromarray(c).resize((16, 16), Image.BILINEAR, box=(6, 0, 54, 48)))
            for c in rgb
        ],
        -1,
    )
    difference = Fit(frame, 16, 16)(frame) - expected.clip(0, 255)
    assert np.abs(difference).max() < 3  # the two place chroma half a pixel apart
    assert np.abs(difference.mean((0, 1))).max() < 0.3


def test_shrinking_is_antialiased_and_keeps_the_centre(tmp_path, videos):
    pictures = np.zeros((1, 64, 192, 3), np.uint8)
    pictures[:, :, 64:128] = 255 * (np.indices((64, 64)).sum(0) % 2)[None, :, :, None]
    pictures[:, :, :64, 0] = pictures[:, :, 128:, 2] = 255
    path = videos.write(tmp_path / "video.mkv", pictures, "mkv")
    clip = window(path.read_bytes(), run(0, 1), 16, 16, probe(path.read_bytes()).keyframes)
    inner = clip[0, 1:-1, 1:-1].astype(int)
    assert np.abs(inner - 127).max() <= 4  # a fine chess board is grey; its neighbours are cut off


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (24, 16), (64, 64)])
@pytest.mark.parametrize("stored", [(32, 40), (38, 26), (32, 32)])
def test_any_shape_fits(tmp_path, videos, size, stored):
    path = videos.write(tmp_path / "video.avi", videos.pictures(3, *stored))
    data = path.read_bytes()
    keyframes = probe(data).keyframes
    clip = window(data, run(1, 2), *size, keyframes)
    assert clip.shape == (2, *size, 3)
    np.testing.assert_array_equal(clip, window(data, run(1, 2), *size, keyframes))


def test_bad_videos_say_why(tmp_path, videos):
    good = videos.write(tmp_path / "good.avi", videos.pictures(60)).read_bytes()
    mp4 = videos.write(tmp_path / "good.mp4", videos.pictures(60), "mp4-b-frames").read_bytes()
    mkv = videos.write(tmp_path / "good.mkv", videos.pictures(60), "mkv").read_bytes()
    for data, reason in [
        (b"", "empty"),
        (b"no video" * 100, "not a video"),
        (videos.sound(tmp_path / "sound.mp4").read_bytes(), "only sound"),
        (good.replace(b"FMP4", b"????"), "no decoder"),
        (good[: len(good) // 2], "cut off|damaged|decoding fails"),
        (mp4[: len(mp4) // 2], "not a video"),
        (mkv[: len(mkv) // 2], "cut off|damaged|decoding fails"),
    ]:
        with pytest.raises(BadVideo, match=reason):
            probe(data)


def test_records_reach_nothing_else(tmp_path, videos, monkeypatch):
    """A record that is a playlist must not open the files that it names."""
    videos.write(tmp_path / "video.mp4", videos.pictures(20), "mp4-b-frames")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadVideo):
        probe(b"ffconcat version 1.0\nfile video.mp4\n")


@pytest.mark.parametrize(
    ("rotation", "turn"),
    [
        ({"degrees": 90}, lambda f: np.rot90(f, 1, (1, 2))),
        ({"degrees": -90}, lambda f: np.rot90(f, -1, (1, 2))),
        ({"degrees": 180}, lambda f: np.rot90(f, 2, (1, 2))),
        ({"degrees": 0, "hflip": True}, lambda f: f[:, :, ::-1]),
    ],
)
def test_pictures_come_upright(tmp_path, videos, rotation, turn):
    """As in `Video`, in probes and in windows that are reached by seeking."""
    pictures = videos.pictures(30, 32, 48)
    plain = videos.write(tmp_path / "plain.mp4", pictures, "mp4-b-frames").read_bytes()
    path = videos.write(tmp_path / "turned.mp4", pictures, "mp4-b-frames", rotation=rotation)
    data, shown = path.read_bytes(), np.stack(list(Video(path)))
    found = probe(data)
    assert len(found.keyframes) > 1
    assert (found.frames, found.height, found.width) == shown.shape[:3]
    stored = (16, 24) if shown.shape[1:3] == (32, 48) else (24, 16)
    clip = window(data, run(20, 5), *stored, found.keyframes)
    expected = turn(window(plain, run(20, 5), 16, 24, found.keyframes))
    np.testing.assert_array_equal(clip, expected)
    seen_in_a_mirror = window(data, run(20, 5), *stored, found.keyframes, flip=True)
    np.testing.assert_array_equal(seen_in_a_mirror, clip[:, :, ::-1])
    halved = shown[20:25].reshape(5, stored[0], 2, stored[1], 2, 3).mean((2, 4))
    assert np.abs(clip - halved).mean() < 8


def test_cover_art_is_no_video(tmp_path, videos):
    """A song with a picture is no video, to neither reader."""
    path = tmp_path / "song.m4a"
    picture = av.VideoFrame.from_ndarray(videos.pictures(1, 16, 16)[0], format="rgb24")
    sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
    sound.sample_rate = 16000
    with av.open(str(path), "w", format="mp4") as out:
        song, cover = out.add_stream("aac", rate=16000), out.add_stream("png", rate=25)
        cover.height, cover.width, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = Disposition.attached_pic
        for stream, frame in ((song, sound), (cover, picture)):
            out.mux(stream.encode(frame))
            out.mux(stream.encode())
    with pytest.raises(BadVideo, match="only sound"):
        probe(path.read_bytes())
    with pytest.raises(ValueError, match="only sound"):
        Video(path)


def test_a_window_past_the_end_is_an_error(tmp_path, videos):
    data = videos.write(tmp_path / "video.avi", videos.pictures(20)).read_bytes()
    with pytest.raises(BadVideo, match="only 3 of the frames 17 to 20"):
        window(data, run(17, 4), 16, 16, probe(data).keyframes)


def test_pictures_larger_than_agreed_are_refused(tmp_path, videos):
    """By the header, and by the decoder where the header says nothing."""
    for kind in ("avi", "mkv", "mjpeg"):
        path = tmp_path / f"video.{videos.kinds[kind][0]}"
        data = videos.write(path, videos.pictures(3, 64, 64), kind).read_bytes()
        with pytest.raises(BadVideo):
            window(data, run(0, 3), 16, 16, probe(data).keyframes, max_pixels=32 * 32)


def test_a_deadline_ends_a_decode(tmp_path, videos):
    """The cause is the time, not what the data look like when they end too soon."""
    data = videos.write(tmp_path / "video.avi", videos.pictures(60)).read_bytes()
    keyframes = probe(data).keyframes
    with pytest.raises(BadVideo, match=r"longer than 1e-06 s") as error:
        window(data, run(50, 4), 16, 16, keyframes, deadline=Deadline(1e-6))
    assert error.value.cause == "too slow"
    window(data, run(50, 4), 16, 16, keyframes, deadline=Deadline(60.0))


def test_real_clips(real_data):
    """Old AVI files with B-frames and odd time stamps among them."""
    folder = real_data / "ucf101_mini"
    with (folder / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[::25]
    rng = np.random.default_rng(0)
    for row in rows:
        path = folder / row["class"] / row["file"]
        data, full = path.read_bytes(), decode_all(path, 32, 32)
        found = probe(data)
        assert found.frames == int(row["frames"]) == len(full)
        for start in rng.integers(0, found.frames - 15, 3):
            clip = window(data, run(start, 16), 32, 32, found.keyframes)
            np.testing.assert_array_equal(clip, full[start : start + 16])
