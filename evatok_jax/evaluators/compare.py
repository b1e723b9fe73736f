"""Two sets of clips against each other, with the protocol that the numbers depend on."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from evatok_jax import assets
from evatok_jax.evaluators.fvd import FvdStats, bootstrap_interval, clip_features, frechet
from evatok_jax.evaluators.lpips import LpipsMetric
from evatok_jax.evaluators.psnr_ssim import PSNR_OF_EQUAL, clip_psnr, clip_ssim
from evatok_jax.pretrained.i3d import load_i3d

METRICS = ("psnr", "ssim", "lpips", "fvd")
_NETWORKS = {"lpips": ("lpips_vgg", "lpips_alex"), "fvd": ("i3d",)}
_RULES = {
    "psnr": f"dB, from the MSE of each clip, at most {PSNR_OF_EQUAL:g}; mean over clips",
    "ssim": "per frame and RGB channel, window 11x11 sigma 1.5 where it fits, range 255; mean",
    "lpips": "v0.1 with linear layers, per frame at the clip's own resolution, input [-1, 1]; mean",
    "fvd": "I3D Kinetics-400 logits, input [-1, 1], frames resized to 224x224 bilinearly without "
    "antialias; Frechet distance in float64, covariance with divisor N (StyleGAN-V, LARP)",
}


def compare(
    real: np.ndarray,
    fake: np.ndarray,
    metrics: Sequence[str] = METRICS,
    *,
    resamples: int = 50,
    seed: int = 0,
    progress: Callable[[str], Any] = lambda line: None,
) -> dict[str, Any]:
    """Compares clips, uint8 [n, t, h, w, 3]; returns {"results": ..., "protocol": ...} for JSON.

    PSNR, SSIM and LPIPS are means over pairs, clip i against clip i. If only FVD is asked for, the
    sides may hold different numbers of clips and are taken as unpaired. "fvd_interval" holds the
    2.5th and 97.5th percentile over bootstrap resamples of the clips.

    Args:
      metrics: any of "psnr", "ssim", "lpips" (VGG and Alex), "fvd".
      resamples: bootstrap resamples of the FVD; 0 for none.
      seed: of the bootstrap.
      progress: called with a line of text before each metric.

    Raises ValueError for arrays that are no clips or do not fit each other, for an unknown metric
    and for fewer than two clips under FVD; assets.AssetMissing if a network was not fetched.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"metrics {list(metrics)}: choose from {', '.join(METRICS)}")
    paired = any(name != "fvd" for name in metrics)
    _check_clips(real, fake, paired)
    if "fvd" in metrics and min(len(real), len(fake)) < 2:
        raise ValueError(f"FVD needs two clips or more a side, got {len(real)} and {len(fake)}")
    networks = [network for name in metrics for network in _NETWORKS.get(name, ())]
    hashes = {network: assets.file_hash(assets.path(network)) for network in networks}

    results: dict[str, Any] = {}
    for name in metrics:
        progress(f"{name} of {len(real)} and {len(fake)} clips")
        if name == "psnr":
            results["psnr"] = float(clip_psnr(real, fake).mean(dtype=np.float64))
        elif name == "ssim":
            results["ssim"] = float(clip_ssim(real, fake).mean(dtype=np.float64))
        elif name == "lpips":
            for net in ("vgg", "alex"):
                results[f"lpips_{net}"] = float(LpipsMetric(net)(real, fake).mean())
        else:
            params = jax.device_put(load_i3d())
            features = [clip_features(params, clips) for clips in (real, fake)]
            results["fvd"] = frechet(*(FvdStats.of(side) for side in features))
            if resamples:
                low, high = bootstrap_interval(*features, resamples, seed, paired)
                results["fvd_interval"] = [low, high]
    _, frames, height, width, _ = real.shape
    protocol = {
        "clips": {"real": len(real), "fake": len(fake)},
        "paired": paired,
        "frames": frames,
        "resolution": [height, width],
        "rules": {name: _RULES[name] for name in metrics},
        "networks_sha256": hashes,
    }
    if "fvd_interval" in results:
        protocol["bootstrap"] = {
            "resamples": resamples,
            "seed": seed,
            "percentiles": [2.5, 97.5],
            "paired": paired,
        }
    return {"results": results, "protocol": protocol}


def _check_clips(real: np.ndarray, fake: np.ndarray, paired: bool) -> None:
    for side, clips in (("real", real), ("fake", fake)):
        if clips.dtype != np.uint8:
            raise ValueError(f"{side} clips are {clips.dtype}, expected uint8 pixels 0..255")
        if clips.ndim != 5 or clips.shape[-1] != 3 or 0 in clips.shape:
            raise ValueError(f"{side} clips have shape {clips.shape}, expected [n, t, h, w, 3]")
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(
            f"clips of {real.shape[1:]} against clips of {fake.shape[1:]} (frames, height, width, "
            "channels): cut and resize one side like the other"
        )
    if paired and len(real) != len(fake):
        raise ValueError(
            f"{len(real)} real and {len(fake)} fake clips: PSNR, SSIM and LPIPS compare pairs; "
            "only FVD alone takes sides of different size"
        )
