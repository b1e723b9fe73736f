"""Curation: a router or tokenizer runs once over all windows, and the table says on what."""

import json
import shutil

import numpy as np
import pytest
from tiny_models import G, save_tokenizer
from videos import encode

from evatok_jax import cli
from evatok_jax import load as load_model
from evatok_jax.config import load_config, override
from evatok_jax.curate import curate
from evatok_jax.data.clips import Clips
from evatok_jax.data.tables import Sidecar, grid, read_table
from evatok_jax.storage.export import load_export, save_export


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("model") / "export")


@pytest.fixture(scope="module")
def router(export):
    """Another router, by itself."""
    other = load_export(save_tokenizer(export.with_name("other"), seed=1))
    parts = [{"router": tree["router"]} for tree in (other.config, other.params)]
    save_export(export.with_name("router"), "router", *parts)
    return export.with_name("router")


def build(folder, out, seed=0):
    rng = np.random.default_rng(seed)
    for number in range(3):
        (folder / "train").mkdir(parents=True, exist_ok=True)
        frames = rng.integers(0, 256, (20 + 16 * number, 32, 40, 3)).astype(np.uint8)
        encode(folder / "train" / f"{number}.mp4", frames)
    cli.main(["data", "build", "folder", "--source", str(folder), "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three videos of one, two and three windows."""
    home = tmp_path_factory.mktemp("data")
    return build(home / "videos", home / "set")


def clips_of(data):
    return Clips(data, "train", G.frames, G.height, G.width)


def annotate(data, kind, out, *options):
    cli.main(["data", "annotate", str(data), "--kind", kind, "--out", str(out), *options])
    return out / "table"


def test_assignments_are_the_routers(data, export, router, tmp_path, capsys):
    table = annotate(data, "assignments", tmp_path / "a", "--router", str(router))
    said = json.loads(capsys.readouterr().out)
    assert said["rows"] == 12 and said["columns"]["lengths"] == ["int32", 4]
    clips, tokenizer = clips_of(data), load_model(export)
    sidecar = Sidecar(table, grid(clips))
    tokenizer.use_router(router)
    windows = clips.windows()
    assert len(windows) == 6
    for flip in (False, True):
        video = np.stack([clips.read(r, w, flip)["video"] for r, w in windows.tolist()])
        rows = sidecar.rows(windows[:, 0], windows[:, 1], np.full(6, flip))
        np.testing.assert_array_equal(sidecar.columns["lengths"][rows], tokenizer.route(video))


def test_a_router_takes_the_place_of_the_tokenizers_own(data, export, router, tmp_path):
    options = ["--tokenizer", str(export), "--no-flip"]
    own, other = (
        read_table(annotate(data, "tokens", tmp_path / name, *options, *more))
        for name, more in (("own", []), ("other", ["--router", str(router)]))
    )
    lengths = read_table(annotate(data, "assignments", tmp_path / "a", *options))["lengths"]
    np.testing.assert_array_equal(own["lengths"], lengths)
    assert not np.array_equal(own["lengths"], other["lengths"])
    assert len(own["codes"]) == 6 and not own["flip"].any()


def test_stopped_and_continued_is_never_stopped(data, router, tmp_path):
    """Shards that are there stay; the others come out the same."""
    config = load_config(f"configs/assignments.py:data={data},router={router},batch=2")
    override(config, ["shard_size=2"])
    curate(config, tmp_path / "whole")
    whole = tmp_path / "whole" / "table"
    assert len(list(whole.glob("*.npz"))) == 3
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    (tmp_path / "stopped" / "done.json").unlink()
    stopped = tmp_path / "stopped" / "table"
    for shard in (0, 2):
        (stopped / f"shard-{shard:05d}.npz").unlink()
    kept = (stopped / "shard-00001.npz").stat()
    with pytest.raises(ValueError, match="is missing"):
        read_table(stopped)
    curate(config, tmp_path / "stopped")
    assert (stopped / "shard-00001.npz").stat() == kept
    for name in ("origin.json", *(f"shard-{shard:05d}.npz" for shard in range(3))):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def test_another_data_set_is_another_table(data, router, tmp_path, capsys):
    moved = shutil.copytree(data, tmp_path / "set")
    table = annotate(moved, "assignments", tmp_path / "a", "--router", str(router))
    Sidecar(table, grid(clips_of(data)))  # the same data set, elsewhere
    shutil.rmtree(moved)
    build(tmp_path / "videos", moved, seed=1)
    with pytest.raises(ValueError, match="other windows"):
        Sidecar(table, grid(clips_of(moved)))
    with pytest.raises(SystemExit):
        annotate(moved, "assignments", tmp_path / "a", "--router", str(router))
    assert "inputs.data" in capsys.readouterr().err


def test_what_a_map_lacks_is_named(data, router, tmp_path, capsys):
    for kind, options in (("tokens", ["--router", str(router)]), ("assignments", [])):
        with pytest.raises(SystemExit):
            annotate(data, kind, tmp_path / kind, *options)
        assert f"a table of {kind} needs a tokenizer" in capsys.readouterr().err
