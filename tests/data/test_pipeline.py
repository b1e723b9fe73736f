"""Batches are a pure function of (seed, global record index); every window is what it says."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice

import numpy as np
import pytest

from evatok_jax.data.builders import source
from evatok_jax.data.builders.build import build
from evatok_jax.data.clips import BadClip, Clips
from evatok_jax.data.pipeline import eval_clips, train_clips

SHAPE = {"frames": 8, "height": 16, "width": 16}


@pytest.fixture
def data(tmp_path, class_folder):
    """11 training records of 18 to 38 frames and one for testing."""
    build(source("folder", class_folder), tmp_path / "data", shards=2, workers=0)
    return tmp_path / "data"


def same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype
        np.testing.assert_array_equal(one[name], two[name])


def joined(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def take(count, data, **kwargs):
    settings = {name: kwargs.pop(name) for name in ("fps", "cache_bytes") if name in kwargs}
    return list(islice(train_clips(Clips(data, "train", **SHAPE, **settings), **kwargs), count))


def test_a_batch_is_what_it_says(data):
    (batch,) = take(1, data, batch_size=6, seed=3)
    types = {
        "video": (np.uint8, (6, 8, 16, 16, 3)),
        "label": (np.int32, (6,)),
        "key": (np.uint32, (6,)),
        "record": (np.int32, (6,)),
        "window": (np.int32, (6,)),
        "flip": (np.bool_, (6,)),
        "attempts": (np.int32, (6,)),
    }
    assert {name: (value.dtype, value.shape) for name, value in batch.items()} == types
    assert not batch["attempts"].any()
    clips = Clips(data, "train", **SHAPE)
    assert clips.classes == ["a", "b"]
    for row in range(6):
        clip = clips.read(batch["record"][row], batch["window"][row])
        video = clip["video"][:, :, ::-1] if batch["flip"][row] else clip["video"]
        np.testing.assert_array_equal(batch["video"][row], video)
        assert batch["key"][row] == clip["key"] == clips.index["hash"][batch["record"][row]]
        assert batch["label"][row] == clip["label"] == clips.index["label"][batch["record"][row]]


@pytest.mark.parametrize("start", [0, 1, 4, 11, 40])
def test_any_position_is_rebuilt(data, start):
    """Batch n of a fresh iterator is batch 0 of one that starts there, across epochs too."""
    whole = take(12, data, batch_size=4, seed=5, fps=12.0)
    flat = joined(whole)
    (batch,) = take(1, data, batch_size=4, seed=5, start_index=start, threads=1, fps=12.0)
    same(batch, {name: column[start : start + 4] for name, column in flat.items()})


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_global_batches(data, count):
    whole = take(4, data, batch_size=8, seed=1, start_index=3)
    parts = [
        take(4, data, batch_size=8, seed=1, start_index=3, process_index=i, process_count=count)
        for i in range(count)
    ]
    for batch, *rows in zip(whole, *parts, strict=True):
        same(batch, joined(rows))


def test_epochs(data):
    """Each visits every record once, in a new order, at new windows, mirrored or not."""
    batches = take(8, data, batch_size=11, seed=2)
    for batch in batches:
        assert sorted(batch["record"]) == list(range(11))
    orders = {tuple(batch["record"]) for batch in batches}
    assert len(orders) == 8
    clips = Clips(data, "train", **SHAPE)
    by_record = [{int(b["window"][b["record"] == r][0]) for b in batches} for r in range(11)]
    assert np.mean([len(windows) for windows in by_record]) > 4
    for record, windows in enumerate(by_record):
        assert min(windows) >= 0
        assert max(windows) + 8 <= clips.index["last"][record]
    flips = np.concatenate([batch["flip"] for batch in batches])
    assert 0.3 < flips.mean() < 0.7
    (unflipped,) = take(1, data, batch_size=11, seed=2, flip=False)
    assert not unflipped["flip"].any()
    (other,) = take(1, data, batch_size=11, seed=3)
    assert tuple(other["record"]) not in orders


def test_hosts_that_change_in_the_middle_of_an_epoch(data):
    """Two hosts, then four, then one: each record exactly once, and the batches of a single run."""
    read, whole = [], take(11, data, batch_size=4, seed=6)
    for count, first, last in ((2, 0, 1), (4, 1, 2), (1, 2, 11)):
        hosts = [
            take(
                last - first,
                data,
                batch_size=4,
                seed=6,
                start_index=4 * first,
                process_index=index,
                process_count=count,
            )
            for index in range(count)
        ]
        read += [joined(parts) for parts in zip(*hosts, strict=True)]
    for one, two in zip(whole, read, strict=True):
        same(one, two)
    records = joined(read)["record"].reshape(4, 11)
    np.testing.assert_array_equal(np.sort(records), np.tile(np.arange(11), (4, 1)))


def test_frames_kept_in_memory_change_nothing(data):
    kept = take(3, data, batch_size=8, seed=5, cache_bytes=2**30)
    for one, two in zip(kept, take(3, data, batch_size=8, seed=5), strict=True):
        same(one, two)


def test_given_windows(data):
    windows = Clips(data, "train", **SHAPE).windows()[5:12]
    (batch,) = take(1, data, batch_size=7, seed=0, windows=windows)
    assert sorted(batch["row"]) == list(range(7))
    np.testing.assert_array_equal(
        windows[batch["row"]], np.stack([batch["record"], batch["window"]], 1)
    )


# Prints the checksums of global batches, a line for each pipeline that it is told of.
SCRIPT = """
import json, sys, zlib
import numpy as np
from absl import app
from evatok_jax.data.clips import Clips
from evatok_jax.data.pipeline import train_clips

def checksum(hosts):
    total = 0
    for name in sorted(hosts[0]):
        total = zlib.crc32(np.concatenate([rows[name] for rows in hosts]), total)
    return total

def main(argv):
    clips = Clips(argv[1], "train", 8, 16, 16)
    for hosts, workers, batches in json.loads(argv[2]):
        parts = [
            train_clips(clips, batch_size=4, seed=7, workers=workers, process_index=index,
                        process_count=hosts)
            for index in range(hosts)
        ]
        print(json.dumps([checksum([next(part) for part in parts]) for _ in range(batches)]))

if __name__ == "__main__":
    app.run(main)
"""


def checksums(data, pipelines):
    """For each (hosts, workers, batches) the checksums of its global batches."""
    script = data.parent / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script, str(data), json.dumps(pipelines)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in result.stdout.strip().splitlines()]


def test_workers_give_the_same(data):
    one, two = checksums(data, [(1, 0, 9), (1, 2, 9)])
    assert one == two
    assert len(set(one)) == 9


@pytest.mark.all
def test_hosts_and_workers_give_the_same(data):
    """For three epochs: 11 records, 4 clips a batch."""
    pipelines = [(hosts, workers, 9) for hosts in (1, 2, 4) for workers in (0, 1, 2)]
    first, *others = checksums(data, pipelines)
    assert len(others) == 8
    assert all(other == first for other in others)


# A worker that comes to record 5 says so, and waits to be killed or ends without a word.
VICTIM = """
import os, sys, time
from pathlib import Path
from absl import app
from evatok_jax.data import clips, pipeline

class Victim(clips.Clips):
    def draw(self, record, random, flip=False):
        if record == 5:
            Path(os.environ["CAUGHT"]).write_text(str(os.getpid()) + "!")
            if "END" in os.environ:
                os._exit(0)
            time.sleep(100)
        return super().draw(record, random, flip)

def main(argv):
    data = Victim(argv[1], "train", 8, 16, 16, time_limit=100.0)
    try:
        for _ in pipeline.train_clips(data, batch_size=1, seed=7, workers=2, threads=1):
            pass
    except ChildProcessError as error:
        print(error)

if __name__ == "__main__":
    app.run(main)
"""


@pytest.fixture
def victim(data):
    """Starts the script above: its process, and the worker's id."""
    script, caught = data.parent / "victim.py", data.parent / "caught"
    script.write_text(VICTIM)
    started = []

    def start(**more):
        environment = os.environ | {"CAUGHT": str(caught)} | more
        command = [sys.executable, script, str(data)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        started.append(process)
        while not caught.exists() or not caught.read_text().endswith("!"):
            assert process.poll() is None
            time.sleep(0.05)
        return process, int(caught.read_text()[:-1])

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_worker_that_dies_is_an_error_that_names_the_record(data, victim):
    process, worker = victim()
    os.kill(worker, signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    key = Clips(data, "train", **SHAPE).index["key"][5]
    assert f"worker process {worker} has died while it was reading record 5 ({key})" in said
    assert "exit code -9" in said
    assert process.returncode == 0


@pytest.mark.all
def test_a_worker_that_ends_without_a_word_is_an_error_too(victim):
    """Grain would wait for it for ever."""
    process, _ = victim(END="0")
    said, _ = process.communicate(timeout=60)
    assert "has died while it was reading record 5" in said


@pytest.mark.all
def test_workers_end_with_the_process_that_has_started_them(victim):
    process, worker = victim()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(worker)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_evaluation_covers_every_window_once(data):
    clips = Clips(data, "train", **SHAPE)
    windows = clips.windows()
    lengths = clips.index["last"] - clips.index["first"]
    assert len(windows) == np.sum(lengths // 8)
    batches = list(eval_clips(clips, 6))
    assert all(batch["video"].shape == (6, 8, 16, 16, 3) for batch in batches)
    flat = joined(batches)
    mask = flat["mask"]
    assert mask.sum() == len(windows) == np.sum(mask[: len(windows)])
    np.testing.assert_array_equal(flat["row"][mask], np.arange(len(windows)))
    np.testing.assert_array_equal(np.stack([flat["record"], flat["window"]], 1)[mask], windows)
    assert (flat["row"][~mask] == len(windows) - 1).all()
    assert not flat["flip"].any()
    halves = [list(eval_clips(clips, 6, process_index=i, process_count=2)) for i in range(2)]
    assert len(halves[0]) == len(halves[1]) == len(batches)
    for batch, one, two in zip(batches, *halves, strict=True):
        same(batch, joined([one, two]))
    assert list(eval_clips(clips, 6, windows=windows[:0])) == []


def test_a_clip_that_cannot_be_read_is_an_error_in_an_evaluation(data):
    clips = Clips(data, "train", **SHAPE)
    row = dict(clips.records[4])
    row["video"] = row["video"][: len(row["video"]) // 2]
    clips.__dict__["records"] = {4: row}
    with pytest.raises(BadClip, match=r"split train, record 4 \(.*v.*avi\), frames from 20"):
        clips.read(4, 20)
    with pytest.raises(BadClip, match="record 4"):
        list(eval_clips(clips, 1, windows=np.array([[4, 20]])))


def test_wrong_arguments(data):
    with pytest.raises(ValueError, match="batch of 6 cannot be divided among 4"):
        take(1, data, batch_size=6, seed=0, process_count=4)
    with pytest.raises(ValueError, match="seed -1"):
        take(1, data, batch_size=6, seed=-1)
