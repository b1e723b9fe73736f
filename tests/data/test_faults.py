"""What cannot be read is replaced by what depends on nothing but its place, and listed."""

import json
import threading
import time
from itertools import islice

import numpy as np
import pytest
from ml_collections import ConfigDict

from evatok_jax.data import clips as clips_module
from evatok_jax.data.builders import source
from evatok_jax.data.builders.build import build
from evatok_jax.data.clips import BadClip, Clips
from evatok_jax.data.container import BadVideo
from evatok_jax.data.deadline import within
from evatok_jax.data.faults import Fault, Quarantine, read_faults
from evatok_jax.data.pipeline import train_clips
from evatok_jax.stages.stage import BaseStage
from evatok_jax.workdir import claim

BAD = {2: b"", 7: b"no video" * 50}


@pytest.fixture
def whole(tmp_path, class_folder):
    """11 training records."""
    build(source("folder", class_folder), tmp_path / "whole", workers=0)
    return tmp_path / "whole"


@pytest.fixture
def spoilt(whole, spoil):
    """The same, two of them without a video."""
    return spoil(whole, BAD)


def opened(data, **settings):
    return Clips(data, "train", 8, 16, 16, **settings)


def batches(data, count, quarantine=None, batch_size=11, clips=None, **settings):
    stream = train_clips(
        clips or opened(data), batch_size=batch_size, seed=3, quarantine=quarantine, **settings
    )
    return list(islice(stream, count))


def same(one, two):
    for a, b in zip(one, two, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_the_good_are_delivered_and_the_bad_replaced(whole, spoilt, tmp_path):
    clean, quarantine = batches(whole, 3), Quarantine(tmp_path, max_bad=1.0)
    found = batches(spoilt, 3, quarantine)
    for epoch, (before, after) in enumerate(zip(clean, found, strict=True)):
        bad = np.isin(before["record"], list(BAD))
        assert bad.sum() == 2
        np.testing.assert_array_equal(after["attempts"] > 0, bad)
        assert not np.isin(after["record"], list(BAD)).any()
        for name in before:
            if name != "attempts":
                np.testing.assert_array_equal(before[name][~bad], after[name][~bad])
        listed = {f.index - 11 * epoch for f in read_faults(tmp_path / "quarantine.jsonl")}
        assert set(np.flatnonzero(bad)) <= listed
    faults = read_faults(tmp_path / "quarantine.jsonl")
    assert len(faults) == sum(int(batch["attempts"].sum()) for batch in found)
    assert {(f.record, f.cause) for f in faults} == {(2, "empty"), (7, "no video")}
    keys = opened(whole).index["key"]
    assert all(f.key == keys[f.record] for f in faults)
    assert quarantine.causes.total() == len(faults)


def test_replacements_depend_on_the_place_alone(spoilt):
    """Not on hosts, threads, the start or frames kept in memory."""
    one = batches(spoilt, 4, Quarantine(max_bad=1.0), batch_size=4)
    two = [
        batches(
            spoilt,
            4,
            Quarantine(max_bad=1.0),
            batch_size=4,
            threads=1,
            process_index=index,
            process_count=2,
        )
        for index in range(2)
    ]
    rows = [{n: np.concatenate([a[n], b[n]]) for n in a} for a, b in zip(*two, strict=True)]
    same(one, rows)
    kept = opened(spoilt, cache_bytes=2**30)
    same(one, batches(spoilt, 4, Quarantine(max_bad=1.0), batch_size=4, clips=kept))
    same(one[2:], batches(spoilt, 2, Quarantine(max_bad=1.0), batch_size=4, start_index=8))
    assert any(batch["attempts"].any() for batch in one)


def test_frames_in_memory_do_not_make_sound_windows_bad(tmp_path, videos, spoil):
    """A video that is damaged at its end has sound windows before, kept in memory or not."""
    data = videos.write(tmp_path / "videos/v.avi", videos.pictures(60)).read_bytes()
    build(source("folder", tmp_path / "videos"), tmp_path / "data", max_bad=0.0, workers=0)
    spoilt = spoil(tmp_path / "data", {0: data[: len(data) // 2]})
    plain, kept = opened(spoilt), opened(spoilt, cache_bytes=2**30)
    for start in range(0, 53):
        try:
            expected = plain.read(0, start)["video"]
        except BadClip:
            with pytest.raises(BadClip):
                kept.read(0, start)
        else:
            np.testing.assert_array_equal(kept.read(0, start)["video"], expected)


def test_too_many_end_the_job(spoilt, tmp_path):
    with pytest.raises(ValueError, match=r"share data.max_bad=0.1") as error:
        batches(spoilt, 20, Quarantine(tmp_path, max_bad=0.1))
    assert "empty" in str(error.value)
    assert "no video" in str(error.value)
    assert str(tmp_path / "quarantine.jsonl") in str(error.value)
    assert len(read_faults(tmp_path / "quarantine.jsonl")) >= 10
    with pytest.raises(ValueError, match=r"clips could not be read.*record [27] \(.*max_bad=0:"):
        batches(spoilt, 1)  # none is allowed unless one says so


def test_a_data_set_without_a_sound_clip_ends_the_job(whole, spoil):
    spoilt = spoil(whole, dict.fromkeys(range(11), b""))
    with pytest.raises(ValueError, match="10 clips in a row cannot be read"):
        batches(spoilt, 1, Quarantine(max_bad=1.0), batch_size=1)


@pytest.mark.parametrize(
    ("steps", "fails"),
    [
        ([(100, 1)] * 9, False),  # too few of either to judge by
        ([(100, 1)] * 10, False),  # a clip in 101
        ([(98, 1)] * 10, True),
        ([(1, 1)] * 9, False),
        ([(1, 1)] * 10, True),
        ([(500, 0), (490, 9)], False),
        ([(500, 0), (490, 9), (1, 1)], False),
        ([(500, 0), (480, 9), (10, 2)], True),
    ],
)
def test_when_a_share_is_judged(steps, fails):
    """From ten faults or a thousand clips on, at one in a hundred."""
    quarantine, fault = Quarantine(max_bad=0.01), Fault(0, 0, 0, "v", 0, "damaged", "so it is")

    def run():
        for clips, faults in steps:
            quarantine.add(clips, [fault] * faults)

    if fails:
        with pytest.raises(ValueError, match="max_bad"):
            run()
    else:
        run()


def stuck_at(monkeypatch, clips, record):
    """Lets the decoding of a record never come back; the call that frees it."""
    free, real, data = threading.Event(), clips_module.window, clips.records[record]["video"]

    def window(video, *arguments):
        if video == data:
            free.wait()
        return real(video, *arguments)

    monkeypatch.setattr(clips_module, "window", window)
    return free.set


def test_a_decode_that_hangs_is_replaced_and_so_it_stays(whole, tmp_path, monkeypatch):
    """It is on the list before its batch is handed out; a run that starts again does not try it."""
    clips, clean = opened(whole, time_limit=2.0), batches(whole, 2)
    free = stuck_at(monkeypatch, clips, 5)
    stream = train_clips(clips, batch_size=11, seed=3, quarantine=Quarantine(tmp_path, 1.0))
    first = next(stream)
    faults = read_faults(tmp_path / "quarantine.jsonl")
    place = int(np.flatnonzero(clean[0]["record"] == 5)[0])
    assert (place, 0, 5, "too slow") in {(f.index, f.attempt, f.record, f.cause) for f in faults}
    assert first["attempts"][place] >= 1
    second = next(stream)
    stream.close()
    free()
    monkeypatch.undo()
    # Now nothing hangs any more. All is as it was: by one process, or by two.
    same([first, second], batches(whole, 2, Quarantine(tmp_path, 1.0)))
    (later,) = batches(whole, 1, Quarantine(tmp_path, 1.0), start_index=11)
    same([second], [later])
    for index in range(2):
        part = batches(
            whole,
            2,
            Quarantine(tmp_path, 1.0, process_index=index),
            batch_size=22,
            process_index=index,
            process_count=2,
        )
        same([(first, second)[index]], part[:1])
    assert len(list(tmp_path.glob("quarantine*"))) == 1  # nothing new to tell


def test_a_call_that_does_not_come_back_is_left_alone():
    free, began = threading.Event(), time.monotonic()
    with pytest.raises(BadVideo, match=r"longer than 0\.2 s"):
        within(0.2, lambda deadline: free.wait())
    assert time.monotonic() - began < 5
    free.set()
    assert within(5.0, lambda deadline: 3) == 3
    with pytest.raises(KeyError):
        within(5.0, lambda deadline: {}[1])


def test_a_list_is_kept_whole(tmp_path):
    """A line that was being written goes; those of other processes and folders are known too."""
    fault = Fault(7, 0, 2, "v", -1, "unreadable", "the disk is gone")
    other, own = tmp_path / "other", tmp_path / "own"
    for folder in (other, own):
        folder.mkdir()
    Quarantine(own, 1.0).add(1, [fault])
    path = own / "quarantine.jsonl"
    path.write_text(path.read_text() + json.dumps(fault._asdict())[:30])
    Quarantine(own, 1.0, process_index=3).add(1, [fault._replace(index=8, attempt=1)])
    Quarantine(other, 1.0).add(1, [fault._replace(index=9)])
    quarantine = Quarantine(own, 1.0, also=[other])
    assert quarantine.known == {(7, 0): 2, (8, 1): 2, (9, 0): 2}
    assert read_faults(path) == [fault]
    quarantine.add(1, [fault._replace(index=10)])
    assert len(read_faults(path)) == 2
    assert len(read_faults(own / "quarantine-3.jsonl")) == 1
    assert len(read_faults(other / "quarantine.jsonl")) == 1


def test_a_list_of_other_data_means_nothing(whole, tmp_path):
    """A place is passed over only where the record is the one that failed."""
    (clean,) = batches(whole, 1)
    wrong = [(place + 1) % 11 for place in clean["record"].tolist()]
    faults = [Fault(i, 0, record, "v", 0, "", "") for i, record in enumerate(wrong)]
    Quarantine(tmp_path, 1.0).add(11, faults)
    same([clean], batches(whole, 1, Quarantine(tmp_path, 1.0)))


class _Stage(BaseStage):
    """A stage that only reads."""

    geometry = ConfigDict(dict(frames=8, height=16, width=16))


def test_stages_list_what_they_replace_in_their_workdir(spoilt, tmp_path):
    """And go on, from the state of another run too, with the replacements that were taken."""
    data = dict(path=str(spoilt), flip=True, max_bad=1.0, fps=12.5, short="skip", time_limit=9.0)
    run = dict(threads=1, workers=0, resume="")
    config = ConfigDict(dict(seed=3, batch_size=11, data=data, run=run, optim={}))
    stage = _Stage(config)
    stage.workdir = tmp_path / "one"
    claim(stage.workdir, config)
    batch = next(stage.clips(0))
    faults = read_faults(stage.workdir / "quarantine.jsonl")
    assert len(faults) == batch["attempts"].sum() >= 2
    config.data.max_bad, config.run.resume = 0.0, str(stage.workdir)
    claim(stage.workdir, config)  # how much may fail is no part of what a run is
    other = _Stage(config)
    other.workdir = tmp_path / "other"
    claim(other.workdir, config)
    same([batch], [next(other.clips(0))])
    config.data.fps = 3.0
    with pytest.raises(ValueError, match=r"data.fps: 12.5 -> 3.0"):
        claim(stage.workdir, config)
