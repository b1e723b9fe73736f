"""Data sets hold the files byte for byte, are whole or absent, and say what was left out."""

import json
import subprocess
import sys

import numpy as np
import pytest

from evatok_jax.data.builders import build as building
from evatok_jax.data.builders import source
from evatok_jax.data.builders.build import SKIPPED, build
from evatok_jax.data.builders.command import build_main
from evatok_jax.data.builders.listing import VideoFile, listed
from evatok_jax.data.records import name_hash, open_records, read_index, read_manifest


def skipped(out):
    """What was left out, by name."""
    rows = [json.loads(line) for line in (out / SKIPPED).read_text().splitlines()]
    return {row["key"]: row for row in rows}


def test_records_are_the_files(tmp_path, class_folder):
    out = tmp_path / "out"
    manifest = build(source("folder", class_folder), out, shards=3, workers=0)
    assert manifest == read_manifest(out)
    assert manifest["splits"] == {"train": 11, "test": 1}
    assert manifest["classes"] == ["a", "b"]
    assert manifest["listed"] == 12
    names = sorted(p.relative_to(class_folder).as_posix() for p in class_folder.rglob("*.avi"))
    held_out = names.pop(9)
    for split, wanted in {"train": names, "test": [held_out]}.items():
        records, index = open_records(out, split), read_index(out, split)
        assert len(records) == len(index["key"]) == manifest["splits"][split]
        assert index["key"].tolist() == wanted
        for number, key in enumerate(wanted):
            record = records[number]
            assert record["key"].decode() == key
            assert record["video"] == (class_folder / key).read_bytes()
            assert record["label"] == "ab".index(key[0])
            assert (record["first"], record["last"]) == (0, record["frames"])
            assert (record["height"], record["width"]) == (32, 40)
            assert record["fps"] == pytest.approx(25)
            np.testing.assert_allclose(record["times"], np.arange(record["frames"]) / 25)
            assert record["times"].dtype == np.float64
            assert record["duration"] == pytest.approx(record["frames"] / 25)
            assert (record["offset"], record["caption"]) == (0, b"")
            assert index["hash"][number] == name_hash(key)
            assert index["motion"][number] > 1
            for name in ("label", "first", "last"):
                assert index[name][number] == record[name]
            assert index["duration"][number] == np.float32(record["duration"])


def test_tfds_reads_it_without_tensorflow(tmp_path, class_folder):
    build(source("folder", class_folder), tmp_path / "out", shards=2, workers=0)
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        f"builder = tfds.builder_from_directory({str(tmp_path / 'out')!r})\n"
        "train = builder.as_data_source('train')\n"
        "print(len(train), builder.info.features['label'].names, train[10]['frames'])\n"
        "assert 'tensorflow' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split("\n")[0] == "11 ['a', 'b'] 40"


def test_a_finished_build_is_recognised(tmp_path, class_folder):
    videos, out = source("folder", class_folder), tmp_path / "out"
    first = build(videos, out, shards=2, workers=0)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert build(videos, out, shards=2, workers=0) == first
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    with pytest.raises(ValueError, match=r"built from something else .*shards"):
        build(videos, out, shards=1, workers=0)
    (class_folder / "a/v00.avi").unlink()
    with pytest.raises(ValueError, match=r"built from something else .*listing"):
        build(source("folder", class_folder), out, shards=2, workers=0)


def test_an_unfinished_build_does_not_look_finished(tmp_path, class_folder, monkeypatch):
    videos, out = source("folder", class_folder), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(
            building, "write_metadata", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            build(videos, out, workers=0)
    with pytest.raises(FileNotFoundError, match="is not finished: give its `evatok data build`"):
        read_manifest(out)
    build(videos, out, workers=0)
    read_manifest(out)


def test_bad_videos_are_left_out_and_listed(tmp_path, class_folder, videos, capsys):
    (class_folder / "a/empty.avi").write_bytes(b"")
    whole = (class_folder / "b/v11.avi").read_bytes()
    (class_folder / "b/cut.avi").write_bytes(whole[: len(whole) // 2])
    videos.write(class_folder / "b/short.avi", videos.pictures(5))
    videos.sound(class_folder / "a/sound.mp4")
    out = tmp_path / "out"
    manifest = build_main("folder", out, class_folder, max_bad=0.3, workers=0)
    left_out = skipped(out)
    assert {key: row["cause"] for key, row in left_out.items()} == {
        "a/empty.avi": "empty",
        "b/cut.avi": "no video",
        "b/short.avi": "too short",
        "a/sound.mp4": "no pictures",
    }
    assert manifest["skipped"] == {"empty": 1, "no video": 1, "too short": 1, "no pictures": 1}
    assert left_out["b/short.avi"]["reason"] == "too short: 5 frames, 16 are needed"
    assert sum(manifest["splits"].values()) == 12
    printed = capsys.readouterr().out
    assert "skipped a/empty.avi (train): the file is empty" in printed
    assert "4 skipped" in printed
    strict = tmp_path / "strict"
    with pytest.raises(ValueError, match="3 of 16 videos are bad, more than the 5%"):
        build(source("folder", class_folder), strict, workers=0)
    assert len(skipped(strict)) == 3  # those of train: that was enough
    with pytest.raises(FileNotFoundError, match="not finished"):
        read_manifest(strict)
    assert build(source("folder", class_folder), strict, max_bad=0.3, workers=0) == manifest


def test_a_hopeless_build_ends_early(tmp_path, class_folder):
    """As soon as a part has found more than the whole may have."""
    for path in sorted(class_folder.rglob("*.avi"))[:3]:
        path.write_bytes(b"no video")
    videos = source("folder", class_folder)
    with pytest.raises(ValueError, match="2 of 12 videos are bad"):
        build(videos, tmp_path / "out", shards=9, max_bad=0.1, workers=0)
    assert len(list((tmp_path / "out").glob("clips-*"))) == 1


def test_absent_and_altered_files_are_bad(tmp_path, class_folder):
    path = class_folder / "a/v00.avi"
    rows = [
        ("train", VideoFile(path, "good")),
        ("train", VideoFile(tmp_path / "absent.avi", "absent")),
        ("train", VideoFile(path, "altered", sha256="0" * 64)),
    ]
    videos = listed("folder", rows, ("unlabelled",), "all train")
    build(videos, tmp_path / "out", max_bad=0.7, workers=0)
    reasons = {key: row["reason"] for key, row in skipped(tmp_path / "out").items()}
    assert reasons == {
        "absent": "the file is absent",
        "altered": "its SHA-256 is not the one that the source states",
    }


def test_where_absence_is_no_fault_something_must_be_there(tmp_path, class_folder):
    path = class_folder / "a/v00.avi"
    rows = [("train", VideoFile(tmp_path / f"{n}.avi", f"{n}")) for n in range(3)]
    few = listed("folder", [("train", VideoFile(path, "good")), *rows], ("all",), "all train")
    with pytest.raises(ValueError, match="3 of 4 videos are bad"):
        build(few, tmp_path / "strict", workers=0)
    few = listed(
        "folder",
        [("train", VideoFile(path, "good")), *rows],
        ("all",),
        "all train",
        absent_is_bad=False,
    )
    manifest = build(few, tmp_path / "out", shards=4, workers=0)
    assert (manifest["splits"], manifest["skipped"]) == ({"train": 1}, {"absent": 3})
    assert len(open_records(tmp_path / "out", "train")) == 1  # though three shards are empty
    none = listed("folder", rows, ("all",), "all train", absent_is_bad=False)
    with pytest.raises(ValueError, match="not one video of source folder is there"):
        build(none, tmp_path / "none", workers=0)


def test_parts_of_a_video_keep_to_their_frames(tmp_path, videos):
    path = videos.write(tmp_path / "v.avi", videos.pictures(100))
    rows = [
        ("train", VideoFile(path, "v", share=(0.0, 0.22))),
        ("test", VideoFile(path, "v", share=(0.25, 0.5))),
        ("train", VideoFile(path, "v", share=(0.53, 1.0))),
    ]
    build(listed("samples", rows, ("unlabelled",), ""), tmp_path / "out", workers=0)
    train, test = (read_index(tmp_path / "out", split) for split in ("train", "test"))
    np.testing.assert_array_equal(train["first"], [0, 53])
    np.testing.assert_array_equal(train["last"], [22, 100])
    np.testing.assert_allclose(train["duration"], [22 / 25, 47 / 25], rtol=1e-6)
    assert (test["first"][0], test["last"][0]) == (25, 50)


def test_other_folders_are_left_alone(tmp_path, class_folder):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="no data set: choose another"):
        build(source("folder", class_folder), tmp_path / "out", workers=0)
    assert (tmp_path / "out/thesis.txt").read_text() == "precious"


def test_wrong_arguments(tmp_path, class_folder):
    videos = source("folder", class_folder)
    for wrong in ({"shards": 0}, {"max_bad": 2.0}, {"min_frames": 0}, {"part": (2, 2)}):
        with pytest.raises(ValueError, match="expected"):
            build(videos, tmp_path / "out", workers=0, **wrong)
    with pytest.raises(ValueError, match=r"--part 1 of 2: expected i/n"):
        build_main("folder", tmp_path / "out", class_folder, part="1 of 2")
    assert not (tmp_path / "out").exists()


def test_ucf_mini_is_stored_whole(tmp_path, real_data):
    """Some of the old AVI files of UCF-101: their frames are 1/25 or 1/29.97 s apart."""
    videos = source("ucf_mini", real_data)
    some = [("test", videos.splits["test"][number]) for number in range(0, 100, 17)]
    out = tmp_path / "out"
    manifest = build(listed("ucf_mini", some, videos.classes, ""), out, workers=0)
    assert manifest["splits"] == {"test": len(some)}
    records = open_records(out, "test")
    for number, (_, video) in enumerate(some):
        record = records[number]
        assert record["video"] == video.path.read_bytes()
        steps = np.diff(record["times"])
        np.testing.assert_allclose(steps, 1 / record["fps"], rtol=1e-3)
