"""A probe finds when each frame is shown, whatever the file says about time; and how it moves."""

import gc
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest
from PIL import Image

from evatok_jax.data import container
from evatok_jax.data.container import BadVideo
from evatok_jax.data.probe import probe
from evatok_jax.data.timestamps import frame_times

FRAMES = 24


def write(pictures, suffix="mp4", codec="libx264", times=None, pixels="yuv420p", **options):
    """A video as bytes; `times` are time stamps in milliseconds."""
    file = BytesIO()
    with av.open(file, "w", format={"mkv": "matroska"}.get(suffix, suffix)) as out:
        track = out.add_stream(codec, rate=25, options=options)
        track.height, track.width, track.pix_fmt = *pictures.shape[1:3], pixels
        if times is not None:
            track.time_base = track.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number if times is None else int(times[number])
            out.mux(track.encode(frame))
        out.mux(track.encode())
    return file.getvalue()


def restamped(data, stamp, suffix="mkv"):
    """The packets of a video with other time stamps: stamp(number, pts, dts) gives both."""
    file = BytesIO()
    name = {"mkv": "matroska"}.get(suffix, suffix)
    with av.open(BytesIO(data)) as source, av.open(file, "w", format=name) as out:
        track = source.streams.video[0]
        copy = out.add_stream_from_template(track, opaque=True)
        packets = (packet for packet in source.demux(track) if packet.size)
        for number, packet in enumerate(packets):
            packet.pts, packet.dts = stamp(number, packet.pts, packet.dts)
            packet.stream = copy
            out.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize("start", [0, 3000])
@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("mp4", "libx264", {"bf": "3", "g": "12"}),
        ("mkv", "libx264", {"bf": "3", "g": "12"}),
        ("webm", "libvpx-vp9", {"deadline": "realtime"}),
        ("mpegts", "libx264", {"bf": "2"}),
        ("mkv", "mjpeg", {}),
    ],
)
def test_variable_frame_rates(videos, suffix, codec, options, start):
    """Time stamps count, from the first frame on, with B-frames and late starts."""
    times = np.cumsum(np.random.default_rng(3).integers(10, 120, FRAMES)) + start
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    data = write(videos.pictures(FRAMES), suffix, codec, times, pixels, **options)
    found = probe(data)
    shown = (times - times[0]) / 1000
    assert found.times.dtype == np.float64
    np.testing.assert_allclose(found.times[:-1], shown, atol=1e-4)
    assert found.times[-1] > shown[-1]


@pytest.mark.parametrize(
    ("pixels", "codec", "size"),
    [
        ("yuv420p10le", "libx264", (32, 40)),
        ("gray", "ffv1", (33, 41)),
        ("gray10le", "ffv1", (32, 40)),
        ("yuv444p", "libx264", (33, 41)),
        ("yuv420p", "ffv1", (31, 37)),
        ("bgr0", "ffv1", (32, 40)),
    ],
)
def test_kinds_of_pictures(videos, pixels, codec, size):
    found = probe(write(videos.pictures(FRAMES, *size), "mkv", codec, pixels=pixels))
    assert (found.frames, found.height, found.width) == (FRAMES, *size)
    np.testing.assert_allclose(found.times, np.arange(FRAMES + 1) / 25, atol=1e-9)
    assert found.motion.shape == (FRAMES,)
    assert found.motion[0] == 0
    assert (found.motion[1:] > 1).all()


def test_repeated_stamps_give_way_to_the_frame_rate(videos):
    data = write(videos.pictures(FRAMES), bf="0")
    found = probe(restamped(data, lambda n, pts, dts: (pts - pts % 1024,) * 2))
    steps = np.diff(found.times)
    assert found.frames == FRAMES
    np.testing.assert_allclose(steps, 1 / found.fps)


def test_missing_stamps(videos):
    """A raw stream has none: its frames follow each other at its rate."""
    found = probe(write(videos.pictures(FRAMES), "h264", bf="2"))
    np.testing.assert_allclose(found.times, np.arange(FRAMES + 1) / found.fps, rtol=1e-6)


def test_which_stamps_count():
    tick, rate = Fraction(1, 100), Fraction(25)
    good = [0, 4, 8, 20]
    for presented, decoded, wanted in [
        (good, [None] * 4, [0, 4, 8, 20, 24]),
        ([0, 4, 4, 8], good, [0, 4, 8, 20, 24]),
        ([8, 0, 4, 12], good, [0, 4, 8, 20, 24]),
        ([0, 4, 8, None], good, [0, 4, 8, 12, 16]),  # held back by the decoder at the end
        ([None] * 4, good, [0, 4, 8, 20, 24]),
        ([7], [7], [7, 11]),
    ]:
        ticks, base = frame_times(presented, decoded, 0, rate, tick)
        assert (ticks.tolist(), base) == (wanted, tick)
    ticks, base = frame_times([0, 0], [None, None], 4, rate, tick)
    assert (ticks.tolist(), base) == ([0, 1, 2], Fraction(1, 25))
    with pytest.raises(BadVideo, match="no usable time stamps, and no frame rate"):
        frame_times([0, 0], [0, 0], 0, None, tick)


def test_motion_is_the_mean_change_of_luma(tmp_path):
    """Of gray pictures that step by known amounts, in any size."""
    levels = np.array([10, 10, 60, 50, 250])
    for height, width in ((32, 40), (500, 300)):
        pictures = np.broadcast_to(
            levels[:, None, None, None], (len(levels), height, width, 3)
        ).astype(np.uint8)
        found = probe(write(pictures, "mkv", "ffv1", pixels="gray"))
        np.testing.assert_allclose(found.motion, [0, 0, 50, 10, 200], atol=1)


def test_frames_do_not_pile_up(videos):
    """Not even until Python looks for cycles, which may be hundreds of frames later."""
    data, alive = write(videos.pictures(FRAMES), bf="2"), []

    def count():
        alive.append(sum(isinstance(thing, av.VideoFrame) for thing in gc.get_objects()))

    gc.disable()
    try:
        probe(data, count)
    finally:
        gc.enable()
    assert len(alive) >= FRAMES
    assert max(alive) <= min(alive) + 2


def test_an_image_is_one_frame():
    file = BytesIO()
    Image.fromarray(np.full((3, 5, 3), 9, np.uint8)).save(file, "PNG")
    found = probe(file.getvalue())
    assert (found.frames, found.height, found.width) == (1, 3, 5)
    assert found.times[0] == 0 < found.times[1]
    assert found.motion.tolist() == [0]


def test_growing_pictures_are_refused_before_they_take_memory(videos, monkeypatch):
    """A header may be small and the pictures after it huge."""
    small = write(videos.pictures(400, 32, 32), "h264", bf="0")
    large = write(videos.pictures(4, 128, 128), "h264", bf="0")
    with pytest.raises(BadVideo, match="changes its size"):
        probe(small + large)
    monkeypatch.setattr(container, "MAX_PIXELS", 64 * 64)
    with pytest.raises(BadVideo, match="decoding fails after"):
        probe(small + large)
    with pytest.raises(BadVideo, match="pictures of 128x128 pixels, above 4096"):
        probe(large)
