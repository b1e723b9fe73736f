"""`compare` refuses what cannot be compared and says by which protocol it measured."""

import json

import numpy as np
import pytest
from needs import PARITY, needs_assets, needs_parity

from evatok_jax import assets
from evatok_jax.evaluators import compare as compare_module
from evatok_jax.evaluators.compare import compare
from evatok_jax.evaluators.fvd import FvdStats, frechet


def clips(n=2, t=16, h=32, w=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, t, h, w, 3), np.uint8)


@pytest.mark.parametrize(
    "real, fake, metrics, message",
    [
        (clips() / 255, clips(), ("psnr",), "real clips are float64, expected uint8"),
        (clips()[0], clips(), ("psnr",), r"shape \(16, 32, 32, 3\), expected"),
        (clips()[..., :1], clips(), ("psnr",), "expected"),
        (clips(n=0), clips(n=0), ("psnr",), "expected"),
        (clips(h=16), clips(), ("fvd",), "resize"),
        (clips(n=2), clips(n=3), ("psnr", "fvd"), "pairs"),
        (clips(n=2), clips(n=1), ("fvd",), "two clips"),
        (clips(), clips(), ("psnr", "fid"), "choose from psnr, ssim, lpips, fvd"),
        (clips(), clips(), (), "choose from"),
        (clips(h=8), clips(h=8), ("ssim",), "11 pixels"),
    ],
)
def test_bad_input_is_a_value_error(real, fake, metrics, message):
    with pytest.raises(ValueError, match=message):
        compare(real, fake, metrics)


def test_missing_networks_are_found_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("EVATOK_ASSETS", str(tmp_path))
    lines = []
    for metric in ("lpips", "fvd"):
        with pytest.raises(FileNotFoundError, match="evatok assets"):
            compare(clips(), clips(seed=1), ("psnr", metric), progress=lines.append)
    assert not lines


def test_pixels_alone_need_no_network():
    answer = compare(clips(), clips(seed=1), ("psnr", "ssim"))
    assert set(answer["results"]) == {"psnr", "ssim"}
    assert answer["protocol"]["clips"] == {"real": 2, "fake": 2}
    assert answer["protocol"]["networks_sha256"] == {}
    assert json.loads(json.dumps(answer)) == answer


@needs_assets("lpips_vgg", "lpips_alex", "i3d")
@needs_parity
def test_networks_on_real_clips(monkeypatch):
    with np.load(PARITY / "i3d_logits_fixture.npz") as known:
        video, logits = known["video"], known["logits"]
    sides = iter((logits[:4], logits[4:]))  # what the network gives; it has its own tests
    monkeypatch.setattr(compare_module, "clip_features", lambda params, clips: next(sides))
    answer = compare(video[:4], video[4:], ("psnr", "fvd"), resamples=2)
    assert answer["protocol"]["networks_sha256"] == {"i3d": assets.file_hash(assets.path("i3d"))}
    assert answer["protocol"]["bootstrap"]["paired"] is True
    assert "divisor N" in answer["protocol"]["rules"]["fvd"]
    expected = frechet(FvdStats.of(logits[:4]), FvdStats.of(logits[4:]))
    assert answer["results"]["fvd"] == pytest.approx(expected, rel=1e-12)

    small = video[:2, :2, :32, :32]
    answer = compare(small, small[::-1].copy(), ("lpips",))
    assert set(answer["results"]) == {"lpips_vgg", "lpips_alex"}
    assert all(0 < value < 2 for value in answer["results"].values())
    assert json.loads(json.dumps(answer)) == answer
