"""Batches are a pure function of (seed, global record index); every window is what it says."""

import json
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest

from evatok_jax.data.builders import source
from evatok_jax.data.builders.build import build
from evatok_jax.data.builders.listing import VideoFile, listed
from evatok_jax.data.pipeline import Clips, eval_clips, train_clips

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


def take(count, *args, **kwargs):
    return list(islice(train_clips(*args, **{**SHAPE, **kwargs}), count))


def test_a_batch_is_what_it_says(data):
    (batch,) = take(1, data, batch_size=6, seed=3)
    types = {
        "video": (np.uint8, (6, 8, 16, 16, 3)),
        "label": (np.int32, (6,)),
        "key": (np.uint32, (6,)),
        "record": (np.int32, (6,)),
        "window": (np.int32, (6,)),
        "flip": (np.bool_, (6,)),
    }
    assert {name: (value.dtype, value.shape) for name, value in batch.items()} == types
    clips = Clips(data, "train", **SHAPE)
    assert clips.classes == ["a", "b"]
    for row in range(6):
        clip = clips.read(batch["record"][row], batch["window"][row])
        video = clip["video"][:, :, ::-1] if batch["flip"][row] else clip["video"]
        np.testing.assert_array_equal(batch["video"][row], video)
        assert batch["key"][row] == clip["key"]
        assert batch["label"][row] == clip["label"]


@pytest.mark.parametrize("start", [0, 1, 4, 11, 40])
def test_any_position_is_rebuilt(data, start):
    """Batch n of a fresh iterator is batch 0 of one that starts there, across epochs too."""
    whole = take(12, data, batch_size=4, seed=5)
    flat = {name: np.concatenate([b[name] for b in whole]) for name in whole[0]}
    (batch,) = take(1, data, batch_size=4, seed=5, start_index=start, threads=1)
    same(batch, {name: column[start : start + 4] for name, column in flat.items()})


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_global_batches(data, count):
    whole = take(4, data, batch_size=8, seed=1, start_index=3)
    parts = [
        take(4, data, batch_size=8, seed=1, start_index=3, process_index=i, process_count=count)
        for i in range(count)
    ]
    for number, batch in enumerate(whole):
        rows = [part[number] for part in parts]
        same(batch, {name: np.concatenate([row[name] for row in rows]) for name in batch})


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


def test_given_windows(data):
    windows = Clips(data, "train", **SHAPE).windows()[5:12]
    (batch,) = take(1, data, batch_size=7, seed=0, windows=windows)
    assert sorted(batch["row"]) == list(range(7))
    np.testing.assert_array_equal(
        windows[batch["row"]], np.stack([batch["record"], batch["window"]], 1)
    )


def test_workers_give_the_same(data):
    code = f"""
import json, zlib
from itertools import islice
from absl import app
from evatok_jax.data.pipeline import train_clips

def main(_):
    for workers in (0, 2):
        clips = train_clips({str(data)!r}, **{SHAPE!r}, batch_size=4, seed=7, workers=workers)
        sums = [zlib.crc32(b["video"]) + int(b["record"][0]) for b in islice(clips, 7)]
        print(json.dumps(sums))

if __name__ == "__main__":
    app.run(main)
"""
    script = data.parent / "script.py"
    script.write_text(code)
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    one, two = result.stdout.strip().splitlines()
    assert one == two
    assert len(set(json.loads(one))) == 7


def test_evaluation_covers_every_window_once(data):
    clips = Clips(data, "train", **SHAPE)
    windows = clips.windows()
    lengths = clips.index["last"] - clips.index["first"]
    assert len(windows) == np.sum(lengths // 8)
    batches = list(eval_clips(clips, 6))
    assert all(batch["video"].shape == (6, 8, 16, 16, 3) for batch in batches)
    flat = {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}
    mask = flat["mask"]
    assert mask.sum() == len(windows) == np.sum(mask[: len(windows)])
    np.testing.assert_array_equal(flat["row"][mask], np.arange(len(windows)))
    np.testing.assert_array_equal(np.stack([flat["record"], flat["window"]], 1)[mask], windows)
    assert (flat["row"][~mask] == len(windows) - 1).all()
    assert not flat["flip"].any()
    halves = [list(eval_clips(clips, 6, process_index=i, process_count=2)) for i in range(2)]
    assert len(halves[0]) == len(halves[1]) == len(batches)
    for batch, one, two in zip(batches, *halves, strict=True):
        same(batch, {name: np.concatenate([one[name], two[name]]) for name in batch})
    assert list(eval_clips(clips, 6, windows=windows[:0])) == []


def test_parts_keep_to_their_frames(tmp_path, videos):
    path = videos.write(tmp_path / "v.avi", videos.pictures(80))
    parts = (
        ("train", VideoFile(path, "v", share=(0.0, 0.25))),
        ("test", VideoFile(path, "v", share=(0.3, 0.55))),
    )
    build(listed("samples", parts, ("unlabelled",), ""), tmp_path / "data", workers=0)
    np.testing.assert_array_equal(
        Clips(tmp_path / "data", "test", **SHAPE).windows(), [[0, 24], [0, 32]]
    )
    windows = np.concatenate(
        [b["window"] for b in take(5, tmp_path / "data", batch_size=8, seed=0)]
    )
    assert windows.min() >= 0
    assert windows.max() <= 20 - 8
    assert len(set(windows)) > 5


def test_short_videos_give_no_clip(data):
    clips = Clips(data, "train", frames=30, height=16, width=16)
    long = clips.index["last"] >= 30
    assert 0 < long.sum() < 11
    np.testing.assert_array_equal(clips.usable(), np.flatnonzero(long))
    with pytest.raises(ValueError, match="none of 11 videos has 100 frames"):
        Clips(data, "train", frames=100, height=16, width=16).usable()


def test_a_clip_that_cannot_be_decoded_is_named(data, monkeypatch):
    clips = Clips(data, "train", **SHAPE)
    row = dict(clips.records[4])
    row["video"] = row["video"][: len(row["video"]) // 2]
    clips.__dict__["records"] = {4: row}
    with pytest.raises(ValueError, match=r"split train, record 4 \(.*v.*avi\), frames from 20"):
        clips.read(4, 20)
    with pytest.raises(ValueError, match="record 4"):
        list(eval_clips(clips, 1, windows=np.array([[4, 20]])))


def test_wrong_arguments(data):
    with pytest.raises(ValueError, match="no split 'val', only test, train"):
        Clips(data, "val", **SHAPE)
    with pytest.raises(ValueError, match="batch of 6 cannot be divided among 4"):
        take(1, data, batch_size=6, seed=0, process_count=4)
    with pytest.raises(ValueError, match="seed -1"):
        take(1, data, batch_size=6, seed=-1)
