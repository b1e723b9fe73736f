"""Data sets hold the files byte for byte, are whole or absent, and say what was left out."""

import json
import subprocess
import sys

import numpy as np
import pytest

from evatok_jax.data import builder
from evatok_jax.data.builder import build, build_main
from evatok_jax.data.records import name_hash, open_records, read_index, read_manifest
from evatok_jax.data.sources import Source, VideoFile, source


def test_records_are_the_files(tmp_path, class_folder):
    out = tmp_path / "out"
    manifest = build(source("folder", class_folder), out, shards=3)
    assert manifest == read_manifest(out)
    assert manifest["splits"] == {"train": 11, "test": 1}
    assert manifest["classes"] == ["a", "b"]
    keys = []
    for split, count in manifest["splits"].items():
        records, index = open_records(out, split), read_index(out, split)
        assert len(records) == len(index["key"]) == count
        for number in range(count):
            record, key = records[number], records[number]["key"].decode()
            keys.append(key)
            assert record["video"] == (class_folder / key).read_bytes()
            assert record["label"] == "ab".index(key[0])
            assert (record["first"], record["last"]) == (0, record["frames"])
            assert (record["height"], record["width"]) == (32, 40)
            assert record["fps"] == pytest.approx(25)
            assert index["hash"][number] == name_hash(key)
            assert index["key"][number] == key
            for name in ("label", "first", "last"):
                assert index[name][number] == record[name]
    assert sorted(keys) == sorted(
        p.relative_to(class_folder).as_posix() for p in class_folder.rglob("*.avi")
    )


def test_tfds_reads_it_without_tensorflow(tmp_path, class_folder):
    build(source("folder", class_folder), tmp_path / "out", shards=2)
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


def test_the_same_source_gives_the_same_bytes_and_is_recognised(tmp_path, class_folder):
    videos = source("folder", class_folder)
    first = build(videos, tmp_path / "one", shards=2)
    assert build(videos, tmp_path / "two", shards=2) == first
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "one").iterdir()}
    assert build(videos, tmp_path / "one", shards=2) == first
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "one").iterdir()}
    with pytest.raises(ValueError, match="built from something else"):
        build(videos, tmp_path / "one", shards=1)


def test_an_interrupted_build_leaves_nothing_that_looks_finished(
    tmp_path, class_folder, monkeypatch
):
    videos, out = source("folder", class_folder), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(
            builder, "write_metadata", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            build(videos, out)
    assert not out.exists()
    build(videos, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "videos"]


def test_bad_videos_are_left_out_and_listed(tmp_path, class_folder, videos, capsys):
    (class_folder / "a/empty.avi").write_bytes(b"")
    whole = (class_folder / "b/v11.avi").read_bytes()
    (class_folder / "b/cut.avi").write_bytes(whole[: len(whole) // 2])
    videos.write(class_folder / "b/short.avi", videos.pictures(5))
    videos.sound(class_folder / "a/sound.mp4")
    manifest = build_main("folder", tmp_path / "out", class_folder, max_bad=0.3)
    assert {bad["key"] for bad in manifest["skipped"]} == {
        "a/empty.avi",
        "b/cut.avi",
        "b/short.avi",
        "a/sound.mp4",
    }
    assert json.loads((tmp_path / "out/skipped.json").read_text()) == manifest["skipped"]
    reasons = {bad["key"]: bad["reason"] for bad in manifest["skipped"]}
    assert reasons["b/short.avi"] == "too short: 5 frames, 16 are needed"
    assert sum(manifest["splits"].values()) == 12
    printed = capsys.readouterr().out
    assert "skipped a/empty.avi (train): the file is empty" in printed
    assert "4 skipped" in printed
    with pytest.raises(ValueError, match="4 of 16 videos are bad, more than the 5%"):
        build(source("folder", class_folder), tmp_path / "strict")
    assert len(json.loads((tmp_path / "strict.skipped.json").read_text())) == 4
    assert not (tmp_path / "strict").exists()


def test_absent_and_altered_files_are_bad(tmp_path, class_folder):
    path = class_folder / "a/v00.avi"
    found = Source(
        "folder",
        (
            VideoFile(path, "good", "train"),
            VideoFile(tmp_path / "absent.avi", "absent", "train"),
            VideoFile(path, "altered", "train", sha256="0" * 64),
        ),
        ("unlabelled",),
        "all train",
    )
    # Each file is opened once, so the altered one needs a path of its own.
    altered = tmp_path / "altered.avi"
    altered.write_bytes(path.read_bytes())
    videos = (*found.videos[:2], VideoFile(altered, "altered", "train", sha256="0" * 64))
    found = Source(found.name, videos, found.classes, found.split_rule)
    manifest = build(found, tmp_path / "out", max_bad=0.7)
    assert [bad["reason"] for bad in manifest["skipped"]] == [
        "the file is absent",
        "its SHA-256 is not the one that the source states",
    ]


def test_parts_of_a_video_keep_to_their_frames(tmp_path, videos):
    path = videos.write(tmp_path / "v.avi", videos.pictures(100))
    parts = (
        VideoFile(path, "v", "train", share=(0.0, 0.22)),
        VideoFile(path, "v", "test", share=(0.25, 0.5)),
        VideoFile(path, "v", "train", share=(0.53, 1.0)),
    )
    build(Source("samples", parts, ("unlabelled",), ""), tmp_path / "out")
    train, test = (read_index(tmp_path / "out", split) for split in ("train", "test"))
    np.testing.assert_array_equal(train["first"], [0, 53])
    np.testing.assert_array_equal(train["last"], [22, 100])
    assert (test["first"][0], test["last"][0]) == (25, 50)


def test_other_folders_are_left_alone(tmp_path, class_folder):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="no data set: choose another"):
        build(source("folder", class_folder), tmp_path / "out")
    assert (tmp_path / "out/thesis.txt").read_text() == "precious"


def test_a_damaged_data_set_is_refused(tmp_path, class_folder):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="evatok data build"):
        read_manifest(out)
    manifest = build(source("folder", class_folder), out)
    shard = out / manifest["shards"][0]["file"]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged"):
        read_manifest(out)
