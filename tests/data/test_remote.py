"""Shards from afar: through a cache of a limited size, or straight from gs://."""

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from itertools import islice
from urllib.parse import parse_qs, unquote, urlparse

import numpy as np
import pytest
from etils import epath

from evatok_jax.data.builders import source
from evatok_jax.data.builders.build import build
from evatok_jax.data.clips import Clips
from evatok_jax.data.container import BadVideo
from evatok_jax.data.pipeline import train_clips
from evatok_jax.data.reading import Records
from evatok_jax.data.shard_cache import ShardCache

SIZE = 1000


@pytest.fixture
def data(tmp_path, class_folder):
    """11 training records in 4 shards."""
    build(source("folder", class_folder), tmp_path / "data", shards=4, workers=0)
    return tmp_path / "data"


@pytest.fixture
def far(tmp_path):
    """A folder of files of SIZE bytes, "0" to "9", each full of its name."""
    (tmp_path / "far").mkdir()
    for name in "0123456789":
        (tmp_path / "far" / name).write_text(name * SIZE)
    return epath.Path(tmp_path / "far")


def held(folder):
    """The names of the files that a cache holds."""
    return {path.read_text()[0] for path in folder.glob("*.shard")}


def test_the_least_recently_used_goes_first(tmp_path, far):
    cache = ShardCache(tmp_path / "near", 3.5 * SIZE)
    steps = {"0": "0", "1": "01", "2": "012", "0 ": "012", "3": "023", "1 ": "013", "4": "134"}
    for name, expected in steps.items():
        name = name.strip()
        time.sleep(0.01)
        assert cache.fetch(far / name, SIZE).read_text() == name * SIZE
        assert held(tmp_path / "near") == set(expected)


def test_a_copy_is_whole_or_not_there(tmp_path, far):
    near = tmp_path / "near"
    cache = ShardCache(near, 3.5 * SIZE)
    with pytest.raises(ValueError, match="has 1000 bytes, its manifest says 1001"):
        cache.fetch(far / "0", SIZE + 1)
    with pytest.raises(FileNotFoundError):
        cache.fetch(far / "absent", SIZE)
    with pytest.raises(ValueError, match=r"raise data\.cache_gb"):
        cache.fetch(far / "0", 4 * SIZE)
    assert not [path for path in near.iterdir() if path.suffix != ".lock"]
    # What a process that was killed has left behind takes no room from the others.
    for name in ("dead", "gone", "lost"):
        (near / f"{name}.part").write_text("x" * SIZE)
    assert cache.fetch(far / "1", SIZE).read_text() == "1" * SIZE
    assert not list(near.glob("*.part"))


# Fetches files in an order of its own from a cache that holds three of ten.
READER = """
import random, sys
from etils import epath
from evatok_jax.data.shard_cache import ShardCache

far, near, seed = sys.argv[1:]
cache, draw, wrong = ShardCache(near, 3500), random.Random(seed), 0
for _ in range(150):
    name = draw.choice("0123456789")
    try:
        wrong += cache.fetch(epath.Path(far) / name, 1000).read_text() != name * 1000
    except FileNotFoundError:
        pass  # another process needed the room between the two calls
print(wrong)
"""


def test_several_processes_share_a_cache(tmp_path, far):
    near, most, ended = tmp_path / "near", [], threading.Event()

    def look():
        while not ended.wait(0.002):
            if near.exists():
                most.append(sum(_size(p) for p in near.iterdir() if p.suffix != ".lock"))

    watch = threading.Thread(target=look)
    watch.start()
    command = [sys.executable, "-c", READER, str(far), str(near)]
    readers = [
        subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, text=True)
        for seed in range(3)
    ]
    said = [reader.communicate()[0].strip() for reader in readers]
    ended.set()
    watch.join()
    assert said == ["0"] * 3
    assert max(most) <= 3500
    assert len(held(near)) == 3


def _size(path):
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_clips_through_a_cache_are_the_same(data, tmp_path):
    """Also where it holds one shard of four, and others take it away."""
    plain = Clips(data, "train", 8, 16, 16)
    most = max(shard["bytes"] for shard in plain.manifest["shards"])
    near = tmp_path / "near"
    cached = Clips(data, "train", 8, 16, 16, cache_dir=str(near), cache_gb=1.5 * most / 1e9)
    streams = [train_clips(clips, batch_size=4, seed=1, threads=1) for clips in (plain, cached)]
    for number, (one, two) in enumerate(islice(zip(*streams, strict=True), 8)):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
        if number % 3 == 2:
            for path in near.glob("*.shard"):
                path.unlink()
    assert len(list(near.glob("*.shard"))) == 1


def test_only_the_last_used_shards_stay_open(data, monkeypatch):
    monkeypatch.setattr("evatok_jax.data.reading._OPEN", 2)
    clips = Clips(data, "train", 8, 16, 16)
    keys = [clips.records[record]["key"].decode() for record in (*range(11), *range(11))]
    assert keys == [*clips.index["key"], *clips.index["key"]]
    assert len(clips.records._open) == 2
    with pytest.raises(IndexError):
        clips.records[11]


def test_a_record_that_cannot_be_read_says_where(data, monkeypatch):
    monkeypatch.setattr("evatok_jax.data.reading._PAUSES", (0.0,))
    clips = Clips(data, "train", 8, 16, 16)
    shard = data / clips.manifest["shards"][0]["file"]
    content = bytearray(shard.read_bytes())
    content[content.index(clips.records[0]["video"]) + 100] ^= 255
    shard.write_bytes(content)
    clips, bad = Clips(data, "train", 8, 16, 16), 0
    for record in range(11):
        try:
            assert clips.records[record]["key"].decode() == clips.index["key"][record]
        except BadVideo as error:
            bad += 1
            assert error.cause == "unreadable"
            assert shard.name in str(error)
    assert bad == 1


class _Bucket(http.server.BaseHTTPRequestHandler):
    """As much of Google's storage as it takes to read files: bucket "data" is `root`."""

    root = None

    def do_GET(self):
        address = urlparse(self.path)
        path = self.root / unquote(address.path.partition("/o/")[2])
        if not path.is_file():
            return self.answer(404, b"")
        content = path.read_bytes()
        if parse_qs(address.query).get("alt") != ["media"]:
            about = {"name": path.name, "bucket": "data", "size": str(len(content))}
            return self.answer(200, json.dumps(about | {"generation": "1"}).encode())
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        if not first:
            first, last = max(0, len(content) - int(last)), ""
        part = content[int(first) : int(last) + 1 if last else None]
        span = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        self.answer(206, part, {"Content-Range": span, "x-goog-generation": "1"})

    def answer(self, code, content, headers=()):
        self.send_response(code)
        for name, value in {**dict(headers), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def test_array_record_reads_gs_itself(data, tmp_path, monkeypatch):
    """The records of a bucket are those of the folder."""
    local = Clips(data, "train", 8, 16, 16)
    handler = type("Bucket", (_Bucket,), {"root": data})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", address)
        shards = [shard for shard in local.manifest["shards"] if shard["split"] == "train"]
        records = Records(epath.Path("gs://data"), shards, local.classes)
        assert len(records) == 11
        for record in (0, 10, 5):
            assert records[record]["video"] == local.records[record]["video"]
        server.shutdown()


def test_addresses_that_array_record_does_not_read(data):
    with pytest.raises(ValueError, match=r"gs:// only; .* data\.cache_dir"):
        Records(epath.Path("s3://bucket/data"), [], ["a"])
    assert os.fspath(epath.Path("s3://bucket/data")) == "s3://bucket/data"
