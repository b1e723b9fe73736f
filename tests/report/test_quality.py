"""Tokens at equal quality, read off curves."""

import pytest

from evatok_jax.report.quality import tokens_for, tokens_saved

UNIFORM = [{"tokens": t, "lpips_vgg": m} for t, m in ((64, 0.4), (32, 0.5), (128, 0.3))]


def test_curve_is_linear_in_log2_tokens():
    assert tokens_for(UNIFORM, "lpips_vgg", 0.5) == pytest.approx(32)
    assert tokens_for(UNIFORM, "lpips_vgg", 0.45) == pytest.approx(32 * 2**0.5)
    assert tokens_for(UNIFORM, "lpips_vgg", 0.3) == pytest.approx(128)


def test_nothing_is_extrapolated():
    assert tokens_for(UNIFORM, "lpips_vgg", 0.51) is None
    assert tokens_for(UNIFORM, "lpips_vgg", 0.29) is None
    assert tokens_for(UNIFORM, "psnr", 20.0) is None


def test_a_router_on_the_uniform_curve_saves_nothing():
    router = [{"tokens": 64, "lpips_vgg": 0.4}, {"tokens": 40, "lpips_vgg": 0.4}]
    saved = tokens_saved({"uniform": UNIFORM, "router": router})
    assert saved == [(40, pytest.approx(0.375)), (64, pytest.approx(0.0))]
    assert tokens_saved({"router": router}) == []
