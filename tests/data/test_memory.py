"""An hour of noise in 1080p: no process that builds or reads has a gigabyte."""

import json
import subprocess
import sys
from io import BytesIO

import av
import numpy as np
import pytest

from evatok_jax.data.records import read_manifest

GIGABYTE = 1e9


def noise(path, seconds, rate=1, height=1080, width=1920):
    """A video of noise, whose packets repeat: to encode an hour would take hours."""
    rng, group = np.random.default_rng(0), BytesIO()
    options = {"preset": "ultrafast", "crf": "30", "g": "25", "x264-params": "scenecut=0"}
    with av.open(group, "w", format="mp4") as out:
        track = out.add_stream("libx264", rate=rate, options=options)
        track.height, track.width, track.pix_fmt = height, width, "yuv420p"
        luma = rng.integers(0, 256, (height // 2, width // 2), np.uint8).repeat(2, 0).repeat(2, 1)
        chroma = np.full((height // 2, width), 128, np.uint8)
        for number in range(25):
            planes = np.concatenate([np.roll(luma, 3 * number, 1), chroma])
            out.mux(track.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        out.mux(track.encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    group.seek(0)
    with av.open(group) as source, av.open(str(path), "w") as out:
        track = source.streams.video[0]
        packets = [(bytes(p), p.is_keyframe, p.duration) for p in source.demux(track) if p.size]
        copy = out.add_stream_from_template(track, opaque=True)
        for number in range(seconds * rate):
            data, key, duration = packets[number % len(packets)]
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.is_keyframe = copy, track.time_base, key
            packet.pts = packet.dts = number * duration
            packet.duration = duration
            out.mux(packet)


# Builds a data set of videos, or takes batches of one; prints the most that each process had.
SCRIPT = """
import json, os, sys, threading, time
from pathlib import Path
from absl import app
from evatok_jax.data.builders import source
from evatok_jax.data.builders.build import build
from evatok_jax.data.clips import Clips
from evatok_jax.data.pipeline import train_clips

most = {}

def watch():
    while True:
        tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")  # a thread may start them
        for pid in " ".join(map(Path.read_text, tasks)).split():
            try:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            except OSError:
                continue  # it has ended
            peaks = [1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
            most[pid] = max([most.get(pid, 0), *peaks])
        time.sleep(0.1)

def main(argv):
    threading.Thread(target=watch, daemon=True).start()
    what, given, data = argv[1:]
    if what == "build":
        build(source("folder", given), data, workers=1)
    else:
        clips = Clips(data, "train", 16, 128, 128, time_limit=100.0)
        stream = train_clips(clips, batch_size=4, seed=0, workers=1, threads=2)
        for _ in range(int(given)):
            next(stream)
    time.sleep(0.3)
    print(json.dumps(max(most.values())))

if __name__ == "__main__":
    app.run(main)
"""


@pytest.fixture
def most(tmp_path):
    """The most bytes that a worker process had that builds or reads."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def run(*arguments):
        command = [sys.executable, script, *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.all
def test_workers_stay_under_a_gigabyte(tmp_path, most):
    """And an hour costs a builder no more than ten minutes do."""
    built = {}
    for minutes in (10, 60):
        folder, data = tmp_path / f"{minutes}", tmp_path / f"data-{minutes}"
        noise(folder / "v.mp4", 60 * minutes)
        size = (folder / "v.mp4").stat().st_size
        built[minutes] = most("build", folder, data)
        (folder / "v.mp4").unlink()
        print(
            f"{minutes} minutes, {size / 1e6:.0f} MB: a builder has {built[minutes] / 1e6:.0f} MB"
        )
    read = most("read", 10, tmp_path / "data-60")
    print(f"{read_manifest(tmp_path / 'data-60')['splits']}: {read / 1e6:.0f} MB to read")
    assert max(read, *built.values()) < GIGABYTE
    assert built[60] < built[10] + 0.1 * GIGABYTE
