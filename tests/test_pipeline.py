"""Every stage in a row on the embedded clips, nothing learnt: that the parts fit each other."""

import time

import pytest

from evatok_jax import assets
from evatok_jax.config import load_config
from evatok_jax.pipeline import pipeline
from evatok_jax.workdir import read_json


@pytest.mark.all
def test_every_stage_and_the_report(tmp_path):
    """All jobs end, the page is there, and a second start does nothing again."""
    try:
        assets.path("samples"), assets.path("lpips_vgg"), assets.path("i3d")
    except assets.AssetMissing as error:
        pytest.skip(str(error))
    config = load_config("configs/pipeline.py:scale=test")
    pipeline(config, tmp_path)
    curves = read_json(tmp_path / "evaluate-curves" / "curves.json")
    assert {"uniform", "router", "max_proxy_reward"} <= set(curves["curves"])
    assert 0.0 <= curves["percentiles"]["router"] <= 1.0
    assert len(read_json(tmp_path / "evaluate-final" / "final.json")["rows"]) == 3
    assert (tmp_path / "report.html").stat().st_size > 10_000
    began = time.time()
    pipeline(config, tmp_path)
    assert time.time() - began < 30
