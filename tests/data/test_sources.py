"""Sources list what is there, with the splits that they state."""

import hashlib

import pytest

from evatok_jax.data.sources import UNLABELLED, source


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_a_flat_folder_has_no_classes(tmp_path):
    touch(tmp_path, *(f"v{n:02d}.mp4" for n in range(20)), "notes.txt")
    found = source("folder", tmp_path)
    assert found.classes == UNLABELLED
    assert len(found.videos) == 20
    assert [v.key for v in found.videos if v.split == "test"] == ["v09.mp4", "v19.mp4"]


def test_one_folder_a_class(tmp_path):
    touch(tmp_path, "b/1.MP4", "a/2.avi", "a/deeper/3.webm")
    found = source("folder", tmp_path)
    assert found.classes == ("a", "b")
    assert {v.key: v.label for v in found.videos} == {
        "b/1.MP4": 1,
        "a/2.avi": 0,
        "a/deeper/3.webm": 0,
    }
    assert [v.split for v in found.videos] == ["train", "train", "test"]


def test_given_splits(tmp_path):
    touch(tmp_path, "train/a/1.mp4", "train/b/2.mp4", "test/b/3.mp4")
    found = source("folder", tmp_path)
    assert found.classes == ("a", "b")
    rows = {(v.key, v.split, v.label) for v in found.videos}
    assert ("test/b/3.mp4", "test", 1) in rows
    assert len(rows) == 3


def test_what_cannot_be_a_folder_of_videos(tmp_path):
    with pytest.raises(FileNotFoundError, match="no video"):
        source("folder", tmp_path)
    touch(tmp_path, "a/1.mp4", "2.mp4")
    with pytest.raises(ValueError, match=r"1 beside them \(2\.mp4\)"):
        source("folder", tmp_path)
    with pytest.raises(FileNotFoundError, match="no directory"):
        source("folder", tmp_path / "absent")
    with pytest.raises(ValueError, match="did you mean 'folder'"):
        source("foldr", tmp_path)
    with pytest.raises(ValueError, match="--source"):
        source("folder")


@pytest.mark.parametrize("place", ["", "ucfTrainTestlist", "../ucf101_lists"])
def test_ucf101(tmp_path, place):
    videos = tmp_path / "UCF-101"
    lists = videos / place
    touch(videos, "Archery/v_Archery_g01_c01.avi")
    lists.mkdir(exist_ok=True)
    (lists / "classInd.txt").write_text("1 Archery\n2 YoYo\n")
    (lists / "trainlist02.txt").write_text("YoYo/v_YoYo_g08_c01.avi 2\n")
    (lists / "testlist02.txt").write_text("Archery/v_Archery_g01_c01.avi\n")
    found = source("ucf101", videos, fold=2)
    assert [(v.key, v.split, v.label) for v in found.videos] == [
        ("YoYo/v_YoYo_g08_c01.avi", "train", 1),
        ("Archery/v_Archery_g01_c01.avi", "test", 0),
    ]
    assert found.videos[1].path.is_file()


def test_ucf_mini(tmp_path):
    digest = hashlib.sha256(b"").hexdigest()
    touch(tmp_path, "ucf101_mini/YoYo/v.avi")
    (tmp_path / "ucf101_mini/index.csv").write_text(
        f"class,split,file,sha256\nYoYo,test,v.avi,{digest}\n"
    )
    for directory in (tmp_path, tmp_path / "ucf101_mini"):
        (video,) = source("ucf_mini", directory).videos
        assert (video.key, video.split, video.sha256) == ("YoYo/v.avi", "test", digest)
        assert video.path.is_file()


def test_samples_hold_out_moments_and_keep_both_carphones_together(tmp_path):
    found = source("samples", tmp_path)
    assert found.classes == UNLABELLED
    assert {v.split for v in found.videos if v.key.startswith("carphone")} == {"train"}
    for name in ("bikes", "bigbuckbunny"):
        parts = sorted((v.share, v.split) for v in found.videos if v.key == name)
        assert [split for _, split in parts] == ["train", "test", "train"]
        ends = [edge for share, _ in parts for edge in share]
        assert ends == sorted(ends)
        assert all(b - a > 0.02 for a, b in zip(ends[1::2], ends[2::2], strict=False))  # the gaps


def test_ucf_mini_has_no_group_on_both_sides(real_data):
    found = source("ucf_mini", real_data)
    groups = {}
    for video in found.videos:
        group = video.key.rsplit("_c", 1)[0]
        groups.setdefault(group, set()).add(video.split)
    assert len(found.videos) == 350
    assert len(found.classes) == 11
    assert all(len(splits) == 1 for splits in groups.values())
