"""A data set has the same bytes however it was built: in one go, in pieces, by any number."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evatok_jax.cli import main
from evatok_jax.data.builders import source
from evatok_jax.data.builders.build import build
from evatok_jax.data.builders.check import check
from evatok_jax.data.records import read_manifest


def contents(out: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory, videos):
    """A folder of 10 videos in two classes, and two that are left out: one in the first shard."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(10):
        path = root / f"{'ab'[number % 2]}/v{number:02d}.avi"
        videos.write(path, videos.pictures(18 + number, seed=number))
    (root / "a/none.avi").write_bytes(b"no video")
    videos.write(root / "b/z-short.avi", videos.pictures(3))
    return root


@pytest.fixture(scope="module")
def built(tmp_path_factory, bad_folder):
    """The folder built in one go, by this process alone, in 4 + 1 shards."""
    out = tmp_path_factory.mktemp("built") / "whole"
    build(source("folder", bad_folder), out, shards=4, max_bad=0.5, workers=0)
    return out


@pytest.fixture(scope="module")
def whole(built):
    """The files of the data set."""
    return contents(built)


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers(tmp_path, bad_folder, whole, workers):
    out = tmp_path / "out"
    build(source("folder", bad_folder), out, shards=4, max_bad=0.5, workers=workers)
    assert contents(out) == whole


def test_parts_in_any_order(tmp_path, bad_folder, whole):
    videos, out = source("folder", bad_folder), tmp_path / "out"
    options = {"shards": 4, "max_bad": 0.5, "workers": 0}
    assert build(videos, out, part=(1, 2), **options) is None
    with pytest.raises(FileNotFoundError, match="not finished"):
        read_manifest(out)
    assert len(list(out.glob("clips-*"))) == 2
    assert build(videos, out, part=(0, 2), **options) == read_manifest(out)
    assert contents(out) == whole


def test_parts_on_hosts_without_a_common_disk(tmp_path, bad_folder, whole):
    """The folders are copied into one, where the command finds that all is there."""
    videos, out = source("folder", bad_folder), tmp_path / "out"
    for part in (0, 1, 2):
        build(videos, tmp_path / f"{part}", 4, max_bad=0.5, workers=0, part=(part, 3))
        for path in (tmp_path / f"{part}").rglob("*"):
            if path.is_file():
                there = out / path.relative_to(tmp_path / f"{part}")
                there.parent.mkdir(parents=True, exist_ok=True)
                there.write_bytes(path.read_bytes())
    build(videos, out, shards=4, max_bad=0.5, workers=0, part=(2, 3))
    assert contents(out) == whole


def test_killed_again_and_again(tmp_path, bad_folder, whole):
    """Each time as soon as there is one more file than the last time."""
    out = tmp_path / "out"
    code = (
        "from evatok_jax.data.builders import source\n"
        "from evatok_jax.data.builders.build import build\n"
        f"build(source('folder', {str(bad_folder)!r}), {str(out)!r}, 4, 0.5, workers=0)"
    )
    seen = kills = 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stderr=subprocess.DEVNULL, start_new_session=True
        )
        while process.poll() is None and len(list(out.rglob("*"))) <= seen:
            time.sleep(0.001)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills, seen = kills + 1, max(seen + 3, len(list(out.rglob("*"))))
    assert process.returncode == 0
    assert kills >= 3
    assert contents(out) == whole


def test_workers_end_with_a_killed_build(tmp_path, bad_folder, whole):
    """With worker processes, killed in the middle of the work: nobody stays behind."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "evatok_jax.cli", "data", "build", "folder", "--out", str(out)]
    command += ["--source", str(bad_folder), "--shards", "4", "--max-bad", "0.5", "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not list(out.glob("clips-*")):
        assert process.poll() is None
        time.sleep(0.001)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    assert children
    until = time.monotonic() + 20
    while any(Path(f"/proc/{child}/exe").exists() for child in children):
        assert time.monotonic() < until, "a worker has outlived its parent"
        time.sleep(0.01)
    build(source("folder", bad_folder), out, shards=4, max_bad=0.5, workers=0)
    assert contents(out) == whole


def test_check_finds_damage_and_a_build_mends_it(tmp_path, bad_folder, built, whole, capsys):
    out = shutil.copytree(built, tmp_path / "out")
    assert check(out) == read_manifest(out)
    main(["data", "check", str(out)])
    assert "5 shards, 10 records, " in capsys.readouterr().out
    shard, index = sorted(out.glob("clips-train*"))[1], out / "index-train.npz"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    index.write_bytes(index.read_bytes()[:-1])
    with pytest.raises(SystemExit):
        main(["data", "check", str(out)])
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("evatok data: 2 of ")
    assert f"{shard} has another SHA-256" in said
    assert f"{index} has " in said
    assert "Remove them and give the `evatok data build` of this data set again" in said
    for path in (shard, index):
        path.unlink()
    with pytest.raises(ValueError, match="no bytes and should have"):
        read_manifest(out)
    build(source("folder", bad_folder), out, shards=4, max_bad=0.5, workers=0)
    assert contents(out) == whole
    with pytest.raises(FileNotFoundError, match="no data set in"):
        check(tmp_path)
