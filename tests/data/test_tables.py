"""Tables are whole or refused, and a row is found by what names its clip."""

import numpy as np
import pytest

from evatok_jax.data.tables import (
    Sidecar,
    check_origin,
    read_table,
    write_origin,
    write_shard,
)

WINDOWS = {"data": "abc", "split": "train", "frames": 16, "fps": 0.0, "short": "skip"}


@pytest.fixture
def table(tmp_path):
    """Two shards of 3 records with 4 windows each, as they are and mirrored, in any order."""
    record, window, flip = (
        a.ravel() for a in np.meshgrid(range(3), range(0, 64, 16), [False, True], indexing="ij")
    )
    order = np.random.default_rng(0).permutation(24)
    columns = {"record": record, "window": window, "flip": flip}
    columns["lengths"] = 1000 * record + 10 * window + flip
    write_origin(tmp_path / "t", WINDOWS, 2, "assignments", {"router": "r"})
    for shard, rows in enumerate(np.split(order, 2)):
        write_shard(tmp_path / "t", shard, {name: c[rows] for name, c in columns.items()})
    return tmp_path / "t"


def test_rows_are_found_by_record_window_and_flip(table):
    sidecar = Sidecar(table, WINDOWS)
    rng = np.random.default_rng(1)
    record, window = rng.integers(0, 3, 50), 16 * rng.integers(0, 4, 50)
    flip = rng.random(50) < 0.5
    rows = sidecar.rows(record, window, flip)
    wanted = 1000 * record + 10 * window + flip
    np.testing.assert_array_equal(sidecar.columns["lengths"][rows], wanted)


@pytest.mark.parametrize("name", [(3, 0, False), (0, 64, False), (1, 8, True), (0, 130, False)])
def test_a_clip_without_a_row_is_named(table, name):
    record, window, flip = (np.array([v, w]) for v, w in zip((0, 0, True), name, strict=True))
    with pytest.raises(ValueError, match=f"1 of 2 clips.*record {name[0]}, window {name[1]}"):
        Sidecar(table, WINDOWS).rows(record, window, flip.astype(bool))


@pytest.mark.parametrize(
    "changed",
    [{"data": "other"}, {"split": "test"}, {"frames": 8}, {"fps": 3.0}, {"short": "hold"}],
)
def test_other_windows_are_refused(table, changed):
    (name,) = changed
    with pytest.raises(ValueError, match=f"other windows.*\n  {name}: "):
        Sidecar(table, WINDOWS | changed)


def test_what_is_not_finished_is_refused(table):
    (table / "shard-00001.npz").unlink()
    with pytest.raises(ValueError, match=r"shard-00001.npz is missing \(1 of 2"):
        read_table(table)
    (table / "origin.json").unlink()
    assert len(read_table(table)["record"]) == 12  # of a table that says nothing of itself
    with pytest.raises(FileNotFoundError, match=r"origin.json is not there"):
        check_origin(table, WINDOWS)
