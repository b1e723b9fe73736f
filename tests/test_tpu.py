"""Slices of TPUs: their names, their links, and what describing one leaves behind."""

import os

import pytest

from evatok_jax import tpu


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5:8x8", "did you mean 'v5p'|did you mean 'v5e'"),
        ("v5e:8x9", "did you mean '8x8'"),
        ("v5e", "unknown topology"),
        ("v4:8x8", "unknown topology"),
        ("v5p:8x12x13", r"did you mean '8x12x\d+'"),
        ("v4:16x16x24", "unknown topology"),
        ("v5p:16x24x24", r"did you mean '\d+x24x24'"),
    ],
)
def test_an_unknown_topology_names_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        tpu.describe(name)


def test_a_description_leaves_the_environment_as_it_was(monkeypatch):
    """But for what libtpu itself sets."""
    monkeypatch.setenv("TPU_WORKER_ID", "7")
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    monkeypatch.setenv("OF_LIBTPU", "0")

    def described(**more):
        assert os.environ["TPU_WORKER_ID"] == "0" and "TPU_SKIP_MDS_QUERY" in os.environ
        os.environ["OF_LIBTPU"] = "1"
        raise RuntimeError("no such\nslice")

    monkeypatch.setattr(tpu.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(tpu.topologies, "get_topology_desc", described)
    with pytest.raises(ValueError, match="cannot describe v5e:2x2: no such slice"):
        tpu.describe("v5e:2x2")
    assert os.environ["TPU_WORKER_ID"] == "7" and "TPU_SKIP_MDS_QUERY" not in os.environ
    assert os.environ["OF_LIBTPU"] == "1"


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(tpu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'evatok_jax\[tpu\]'"):
        tpu.describe("v5e:2x2")


@pytest.mark.parametrize(
    ("slice", "links"),
    [
        *(("v5e:8x8", 1), ("v5e:16x16", 2), ("v6e:8x16", 1), ("v6e:16x16", 2)),
        *(("v4:2x2x4", 1), ("v4:2x4x4", 1), ("v4:4x4x4", 2), ("v5p:4x8x12", 2)),
    ],
)
def test_rings_send_both_ways_where_axes_are_joined(slice, links):
    assert tpu.linked(*slice.split(":")).links == links
