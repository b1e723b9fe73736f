"""Sources list what is there, with the splits that they state."""

import hashlib

import pytest

from evatok_jax.data.builders import source
from evatok_jax.data.builders.listing import UNLABELLED


def listing(found):
    """(key, split, label) of all videos of a source."""
    return [(v.key, split, v.label) for split, groups in found.splits.items() for v in groups]


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_a_flat_folder_has_no_classes(tmp_path):
    touch(tmp_path, *(f"v{n:02d}.mp4" for n in range(20)), "notes.txt")
    found = source("folder", tmp_path)
    assert found.classes == UNLABELLED
    assert len(found.splits["train"]) == 18
    assert [v.key for v in found.splits["test"]] == ["v09.mp4", "v19.mp4"]


def test_one_folder_a_class(tmp_path):
    touch(tmp_path, "b/1.MP4", "a/2.avi", "a/deeper/3.webm")
    found = source("folder", tmp_path)
    assert found.classes == ("a", "b")
    assert listing(found) == [
        ("a/2.avi", "train", 0),
        ("a/deeper/3.webm", "train", 0),
        ("b/1.MP4", "test", 1),
    ]


def test_names_are_in_the_order_of_their_folders(tmp_path):
    """As paths are, not as strings are: "a" comes before "a-b"."""
    names = ["a/x.mp4", "a/y/z.mp4", "a-b/x.mp4", "a0/x.mp4"]
    touch(tmp_path, *names)
    found = source("folder", tmp_path)
    assert [key for key, _, _ in listing(found)] == names


def test_given_splits(tmp_path):
    touch(tmp_path, "train/a/1.mp4", "train/b/2.mp4", "test/b/3.mp4")
    found = source("folder", tmp_path)
    assert found.classes == ("a", "b")
    assert listing(found) == [
        ("test/b/3.mp4", "test", 1),
        ("train/a/1.mp4", "train", 0),
        ("train/b/2.mp4", "train", 1),
    ]
    assert source("imagenet", _images(tmp_path)).splits.keys() == {"train", "val"}


def _images(root):
    touch(root / "images", "train/n01/1.JPEG", "val/n01/2.JPEG")
    return root / "images"


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
    with pytest.raises(ValueError, match="source 'folder' takes no option fold"):
        source("folder", tmp_path, fold=1)


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
    assert listing(found) == [
        ("YoYo/v_YoYo_g08_c01.avi", "train", 1),
        ("Archery/v_Archery_g01_c01.avi", "test", 0),
    ]
    assert found.splits["test"][0].path.is_file()
    if place:  # the folder above, where the archives were unpacked
        assert listing(source("ucf101", tmp_path, fold=2)) == listing(found)


def test_ucf_mini(tmp_path):
    digest = hashlib.sha256(b"").hexdigest()
    touch(tmp_path, "ucf101_mini/YoYo/v.avi")
    (tmp_path / "ucf101_mini/index.csv").write_text(
        f"class,split,file,sha256\nYoYo,test,v.avi,{digest}\n"
    )
    for directory in (tmp_path, tmp_path / "ucf101_mini"):
        found = source("ucf_mini", directory)
        (video,) = found.splits["test"]
        assert (video.key, video.sha256) == ("YoYo/v.avi", digest)
        assert video.path.is_file()


def test_samples_hold_out_moments_and_keep_both_carphones_together(tmp_path):
    found = source("samples", tmp_path)
    assert found.classes == UNLABELLED
    rows = [(v, split) for split, groups in found.splits.items() for v in groups]
    assert {split for v, split in rows if v.key.startswith("carphone")} == {"train"}
    for name in ("bikes", "bigbuckbunny"):
        parts = sorted((v.share, split) for v, split in rows if v.key == name)
        assert [split for _, split in parts] == ["train", "test", "train"]
        ends = [edge for share, _ in parts for edge in share]
        assert ends == sorted(ends)
        assert all(b - a > 0.02 for a, b in zip(ends[1::2], ends[2::2], strict=False))  # the gaps


def test_ucf_mini_has_no_group_on_both_sides(real_data):
    found = source("ucf_mini", real_data)
    groups = {}
    for key, split, _ in listing(found):
        groups.setdefault(key.rsplit("_c", 1)[0], set()).add(split)
    assert len(listing(found)) == 350
    assert len(found.classes) == 11
    assert all(len(splits) == 1 for splits in groups.values())
