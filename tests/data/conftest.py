"""Tiny videos, made on the spot."""

import os
import shutil
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path

import av
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from evatok_jax.data.records import MANIFEST, read_manifest, shard_name
from evatok_jax.workdir import write_json

# name: (suffix, codec, options); what differs is how key frames, B-frames and time stamps behave.
KINDS = {
    "avi": ("avi", "mpeg4", {"g": "10"}),
    "avi-b-frames": ("avi", "mpeg4", {"g": "12", "bf": "2"}),
    "avi-one-key": ("avi", "mpeg4", {"g": "1000"}),
    "mp4-b-frames": ("mp4", "libx264", {"g": "12", "bf": "3", "sc_threshold": "0"}),
    "mp4-open-gop": ("mp4", "libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1"}),
    "mkv": ("mkv", "ffv1", {"g": "10"}),
    "mjpeg": ("avi", "mjpeg", {}),
}


def moving_pictures(frames: int, height: int = 32, width: int = 40, seed: int = 0) -> np.ndarray:
    """uint8 [frames, height, width, 3] in which no two frames are alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    phase = rng.uniform(0, 6, 3)
    t = np.arange(frames)[:, None, None, None]
    wave = np.sin(0.3 * t + 0.2 * x[..., None] + 0.25 * y[..., None] + phase)
    return (127 + 90 * wave + 20 * (t % 3 - 1)).clip(0, 255).astype(np.uint8)


def write_video(
    path: Path,
    pictures: np.ndarray,
    kind: str = "avi",
    rate: int = 25,
    rotation: dict | None = None,
) -> Path:
    """Writes pictures [n, h, w, 3] as a video of one of KINDS, whose suffix `path` should have.

    `rotation` are arguments of PyAV's `set_display_rotation`.
    """
    _, codec, options = KINDS[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, options=options)
        stream.thread_count = 1  # x264's bits depend on how its threads meet
        stream.height, stream.width = pictures.shape[1:3]
        if rotation:
            stream.set_display_rotation(**rotation)
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for picture in pictures:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """Writes a file that has sound and no picture."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def videos():
    """The functions above, for tests."""

    class Videos:
        kinds = KINDS
        pictures = staticmethod(moving_pictures)
        write = staticmethod(write_video)
        sound = staticmethod(write_sound)
        repeat_records = staticmethod(repeat_records)

    return Videos


def repeat_records(
    data: Path,
    target: Path,
    times: int = 1,
    shards: int = 1,
    change: Callable[[int, bytes], bytes] | None = None,
) -> Path:
    """A data set whose training records are those of another one, so many times over.

    `change` gives record i, whose video is known, other bytes than the build has seen.
    """
    shutil.copytree(data, target)
    manifest, index = read_manifest(target), target / "index-train.npz"
    old = [shard for shard in manifest["shards"] if shard["split"] == "train"]
    others = [shard for shard in manifest["shards"] if shard["split"] != "train"]
    records = [r for s in old for r in ArrayRecordReader(str(data / s["file"])).read_all()]
    for shard in old:
        (target / shard["file"]).unlink()
    new, number = [], 0
    for rounds in np.array_split(np.arange(times), shards):
        path = target / shard_name("train", len(new), shards)
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for record in chain.from_iterable(repeat(records, len(rounds))):
            if change:
                example = tf_example_pb2.Example.FromString(record)
                video = example.features.feature["video"].bytes_list.value
                video[0] = change(number, video[0])
                record = example.SerializeToString()
            writer.write(record)
            number += 1
        writer.close()
        about = {"file": path.name, "split": "train", "records": len(rounds) * len(records)}
        new.append(about | {"bytes": path.stat().st_size})
    with np.load(index) as columns:
        columns = {name: np.tile(column, times) for name, column in columns.items()}
    np.savez_compressed(index, **columns)
    manifest["splits"]["train"], manifest["shards"] = number, new + others
    write_json(target / MANIFEST, manifest)
    return target


@pytest.fixture
def spoil(tmp_path):
    """Copies a data set of which some training records hold other bytes than the build has seen."""

    def spoilt(data: Path, videos: dict[int, bytes]) -> Path:
        return repeat_records(data, tmp_path / "spoilt", change=videos.get)

    return spoilt


@pytest.fixture
def class_folder(tmp_path) -> Path:
    """A folder of 12 videos in two classes, of 18 to 40 frames."""
    for number in range(12):
        name = f"{'ab'[number % 2]}/v{number:02d}.avi"
        write_video(tmp_path / "videos" / name, moving_pictures(18 + 2 * number, seed=number))
    return tmp_path / "videos"


@pytest.fixture
def real_data() -> Path:
    """The folder of real clips that EVATOK_DATA names."""
    if not os.environ.get("EVATOK_DATA"):
        pytest.skip("EVATOK_DATA is not set: no real clips")
    return Path(os.environ["EVATOK_DATA"])
