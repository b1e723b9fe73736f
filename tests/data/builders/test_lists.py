"""Data sets from the lists and archives that people have: each layout, in miniature."""

import csv
import io
import json
import tarfile
import tracemalloc

import numpy as np
import pytest

from evatok_jax.data.builders import source
from evatok_jax.data.builders.build import SKIPPED, build
from evatok_jax.data.builders.check import check
from evatok_jax.data.records import open_records, read_index

CAPTION = 'A "quoted", old\nwindmill, spinning é'


def rows_of(out, split):
    """All records of a split."""
    records = open_records(out, split)
    return [records[number] for number in range(len(records))]


def write_csv(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def clip(tmp_path, videos):
    """A function that writes a clip of its own at a path."""

    def write(path, seed):
        return videos.write(path, videos.pictures(17, seed=seed), "mp4-b-frames")

    return write


WEBVID = ("videoid", "contentUrl", "duration", "page_dir", "name")


def webvid(root, clip):
    """Lists of 8 and 2 videos, of which 5 and 1 are there, one of them damaged."""
    rows = [(100 + n, "https://a/b.mp4", "PT00H00M11S", f"{n % 2}", f"clip {n}") for n in range(10)]
    rows[1] = (*rows[1][:4], CAPTION)
    root.mkdir(parents=True)
    write_csv(root / "results_2M_train.csv", WEBVID, rows[:8])
    write_csv(root / "results_2M_val.csv", WEBVID, rows[8:])
    for number in (0, 1, 4, 6, 8):
        clip(root / f"videos/{number % 2}/{100 + number}.mp4", number)
    (root / "videos/1/103.mp4").write_bytes(b"<html>gone</html>")
    return root


def test_webvid(tmp_path, clip):
    root, out = webvid(tmp_path / "webvid", clip), tmp_path / "out"
    manifest = build(source("webvid", root), out, shards=3, max_bad=0.2, workers=0)
    assert manifest["splits"] == {"train": 4, "val": 1}
    assert manifest["skipped"] == {"absent": 4, "no video": 1}
    assert manifest["listed"] == 10
    train = rows_of(out, "train")
    assert [r["key"].decode() for r in train] == ["0/100", "1/101", "0/104", "0/106"]
    assert [r["caption"].decode() for r in train] == ["clip 0", CAPTION, "clip 4", "clip 6"]
    for row in train:
        assert row["video"] == (root / f"videos/{row['key'].decode()}.mp4").read_bytes()
    lines = [json.loads(line) for line in (out / SKIPPED).read_text().splitlines()]
    assert [line["key"] for line in lines] == ["0/102", "1/103", "1/105", "1/107", "1/109"]
    check(out)


def test_webvid_flat_and_with_lists_elsewhere(tmp_path, clip):
    root, flat = webvid(tmp_path / "webvid", clip), tmp_path / "flat"
    flat.mkdir()
    for path in (root / "videos").rglob("*.mp4"):
        path.rename(flat / path.name)
    lists = sorted(root.glob("*.csv"))
    build(source("webvid", flat, lists=lists), tmp_path / "out", max_bad=0.2, workers=0)
    assert [r["key"] for r in rows_of(tmp_path / "out", "train")] == [
        b"0/100",
        b"1/101",
        b"0/104",
        b"0/106",
    ]


def test_ten_million_rows_can_be_planned(tmp_path):
    """A row takes some bytes of memory, and its video is made when it is asked for."""
    count = 50_000
    path = tmp_path / "train.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(WEBVID)
        for n in range(count):
            caption = f"caption, {n} " + "é" * 60
            writer.writerow((n, "https://a/b", "PT", f"{n // 100:06d}", caption))
    tracemalloc.start()
    groups = source("webvid", tmp_path).splits["train"]
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(groups) == count
    assert held < 20 * count
    assert peak < 30 * count  # 10 million: 300 MB
    for number in (0, 1, 17_777, count - 1, 5):
        video = groups[number]
        assert video.key == f"{number // 100:06d}/{number}"
        assert video.caption == f"caption, {number} " + "é" * 60


def test_what_cannot_be_a_list(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no list of videos: .*\*\.csv"):
        source("webvid", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no list of videos: .*other\.csv"):
        source("webvid", tmp_path, lists=[tmp_path / "other.csv"])
    path = write_csv(tmp_path / "a.csv", ("videoid", "name"), [])
    with pytest.raises(ValueError, match=r"a\.csv has no column page_dir"):
        source("webvid", tmp_path)
    write_csv(path, WEBVID, [range(5), range(4)])
    with pytest.raises(ValueError, match="the row at line 3 has 4 columns, the first line names 5"):
        source("webvid", tmp_path)
    header = ("label", "youtube_id", "time_start", "time_end", "split")
    write_csv(path, header, [("yoga", "abc", "one", "2", "train")])
    with pytest.raises(ValueError, match="the times of abc are no numbers"):
        source("kinetics", tmp_path)


KINETICS = ("label", "youtube_id", "time_start", "time_end", "split")


@pytest.mark.parametrize("layout", ["flat", "splits", "classes", "both"])
def test_kinetics(tmp_path, clip, layout):
    root, out = tmp_path / "k600", tmp_path / "out"
    rows = [
        ("playing cello", "--07WQ2iBlw", "1", "11", "train"),
        ("yoga", "abc_-123456", "0", "10", "validate"),
        ("yoga", "zzzzzzzzzzz", "100", "110", "train"),
        ("archery", "not_there_0", "5", "15", "train"),
    ]
    root.mkdir()
    write_csv(root / "kinetics600.csv", KINETICS, rows)
    names = ["--07WQ2iBlw_000001_000011", "abc_-123456_000000_000010", "zzzzzzzzzzz_000100_000110"]
    for seed, (name, row) in enumerate(zip(names, rows, strict=False)):
        split = {"validate": "val"}.get(row[4], row[4])
        folder = {
            "flat": "",
            "splits": split,
            "classes": row[0],
            "both": f"{row[4]}/{row[0].replace(' ', '_')}",
        }[layout]
        clip(root / folder / f"{name}.mp4", seed)
    manifest = build(source("kinetics", root), out, workers=0)
    assert manifest["splits"] == {"train": 2, "val": 1}
    assert manifest["skipped"] == {"absent": 1}
    assert manifest["classes"] == ["archery", "playing cello", "yoga"]
    found = {(r["key"].decode(), r["label"]) for r in rows_of(out, "train")}
    assert found == {(f"playing cello/{names[0]}.mp4", 1), (f"yoga/{names[2]}.mp4", 2)}
    assert read_index(out, "val")["key"].tolist() == [f"yoga/{names[1]}.mp4"]


def archive(path, members):
    """A tar of (name, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def archives(tmp_path, clip):
    """Two archives as video2dataset writes them, with all that may be in them."""
    data = [clip(tmp_path / f"{n}.mp4", n).read_bytes() for n in range(5)]
    root = tmp_path / "dataset"

    def sample(key, video, caption):
        about = json.dumps({"key": key, "caption": caption, "status": "success"}).encode()
        return [(f"{key}.json", about), (f"{key}.mp4", video), (f"{key}.txt", caption.encode())]

    first = [row for n in range(3) for row in sample(f"00000{n:05d}", data[n], f"caption {n}")]
    archive(root / "00000.tar", first)
    second = [
        *sample("0000100000", data[3], "é")[:2],  # its caption is in its JSON alone
        ("0000100001.json", b'{"status": "failed_to_download"}'),
        ("0000100002.mp4", data[4]),
        ("0000100003.mp4", b"no video"),
    ]
    archive(root / "00001.tar", second)
    (root / "00000_stats.json").write_text("{}")
    return root, data


def test_webdataset(tmp_path, archives):
    (root, data), out = archives, tmp_path / "out"
    manifest = build(source("webdataset", root), out, shards=5, max_bad=0.2, workers=1)
    assert manifest["splits"] == {"train": 5}
    assert [file["records"] for file in manifest["shards"]] == [3, 2]  # an archive is not divided
    assert manifest["skipped"] == {"absent": 1, "no video": 1}
    rows = rows_of(out, "train")
    assert [row["video"] for row in rows] == data
    captions = [row["caption"].decode() for row in rows]
    assert captions == ["caption 0", "caption 1", "caption 2", "é", ""]
    assert [row["key"] for row in rows][2:4] == [b"00000/0000000002", b"00001/0000100000"]
    check(out)


def test_damaged_archives(tmp_path, archives):
    """What can be read of them is used, and the rest is stated."""
    root, _ = archives
    whole = (root / "00000.tar").read_bytes()
    (root / "val").mkdir()
    (root / "train").mkdir()
    for path in root.glob("*.tar"):
        path.rename(root / "train" / path.name)
    ends = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    (root / "val/a-cut.tar").write_bytes(whole[: len(whole) // 2])
    (root / "val/b-no-end.tar").write_bytes(whole[:ends])
    (root / "val/c-none.tar").write_bytes(b"no archive" * 100)
    found = source("webdataset", root)
    assert found.splits.keys() == {"train", "val"}
    groups = [list(group.videos()) for group in found.splits["val"]]
    assert [len(group) for group in groups][1:] == [4, 1]
    assert 1 <= len(groups[0]) <= 3
    reasons = [str(group[-1].problem) for group in groups]
    assert reasons[1:] == ["the archive is cut off", "the archive cannot be read: invalid header"]
    for group in groups:
        assert group[-1].problem.cause == "archive"
        assert all(video.problem is None for video in group[:-1])
    manifest = build(found, tmp_path / "out", max_bad=0.5, workers=0)
    assert manifest["skipped"]["archive"] == 3
    with pytest.raises(FileNotFoundError, match="no archive"):
        source("webdataset", tmp_path / "out")


def test_memory_of_folders(tmp_path):
    """Names are all that a folder of videos costs."""
    (tmp_path / "a").mkdir()
    for number in range(300):
        (tmp_path / "a" / f"{number:05d}.mp4").touch()
    found = source("folder", tmp_path)
    assert [len(groups) for groups in found.splits.values()] == [270, 30]
    assert np.all([video.label == 0 for video in found.splits["train"]])
