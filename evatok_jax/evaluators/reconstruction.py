"""Reconstructions under several rules for the lengths, clip by clip, on the same windows.

The evaluator sees functions, never a model: `reconstruct(clips, lengths)` and, for every rule,
`lengths(clips, rows)`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from evatok_jax.evaluators.fvd import FvdStats, bootstrap_interval, clip_features, frechet
from evatok_jax.evaluators.lpips import LpipsMetric
from evatok_jax.evaluators.psnr_ssim import clip_psnr, clip_ssim

# (clips uint8 [n, f, h, w, 3], row numbers [n] among all windows) -> lengths int32 [n, blocks]
Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass
class ClipScores:
    """Scores of one rule, an array entry for each clip.

    Attributes:
      lengths: [n, blocks].
      values: "psnr" in dB, "ssim", "lpips_vgg", "lpips_alex", [n] each.
      features: of I3D, [n, 400].
    """

    lengths: np.ndarray
    values: dict[str, np.ndarray]
    features: np.ndarray | None = None

    def point(
        self, name: str, real: np.ndarray | None = None, rows=slice(None), resamples: int = 50
    ) -> dict:
        """Means over clips (or over some `rows` of them), and rFVD against the real features."""
        lengths = self.lengths[rows]
        point = {
            "name": name,
            "clips": len(lengths),
            "tokens": float(lengths.sum(axis=1).mean()),
            "tokens_per_block": lengths.mean(axis=0).tolist(),
        }
        point |= {key: float(value[rows].mean()) for key, value in self.values.items()}
        if real is not None and self.features is not None and len(lengths) > 1:
            sides = real[rows], self.features[rows]
            point["rfvd"] = frechet(*(FvdStats.of(side) for side in sides))
            if resamples:
                point["rfvd_low"], point["rfvd_high"] = bootstrap_interval(*sides, resamples)
        return point


@dataclass
class Evaluation:
    """Everything measured on one set of windows: scores by rule, and the real features."""

    rules: dict[str, ClipScores]
    real: np.ndarray | None
    codes_used: np.ndarray


@dataclass
class _Parts:
    lengths: list = field(default_factory=list)
    values: dict = field(default_factory=dict)
    features: list = field(default_factory=list)


def evaluate_rules(
    batches: Iterable[dict],
    rules: Mapping[str, Rule],
    reconstruct: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    codebook_size: int,
    i3d=None,
    nets: tuple[str, ...] = ("vgg", "alex"),
) -> Evaluation:
    """Reconstructs every clip under every rule and scores it.

    Args:
      batches: of `eval_clips`.
      rules: name -> lengths of a batch.
      reconstruct: (clips, lengths) -> (clips, counts of used codes [codebook_size]).
      i3d: parameters for rFVD; without them there are no features.
    """
    metrics = {net: LpipsMetric(net) for net in nets}
    parts = {name: _Parts() for name in rules}
    real_features, used, row = [], np.zeros(codebook_size), 0
    for batch in batches:
        clips = batch["video"][batch["mask"]]
        index = np.arange(row, row + len(clips))
        row += len(clips)
        fakes = []
        for name, rule in rules.items():
            lengths = rule(clips, index)
            fake, counts = reconstruct(clips, lengths)
            used += counts
            fakes.append(fake)
            parts[name].lengths.append(lengths)
            values = {"psnr": clip_psnr(clips, fake), "ssim": clip_ssim(clips, fake)}
            for key, value in values.items():
                parts[name].values.setdefault(key, []).append(value)
            if i3d is not None:
                parts[name].features.append(clip_features(i3d, fake))
        for net, metric in metrics.items():
            for name, distance in zip(rules, metric(clips, *fakes), strict=True):
                parts[name].values.setdefault(f"lpips_{net}", []).append(distance)
        if i3d is not None:
            real_features.append(clip_features(i3d, clips))
    scores = {
        name: ClipScores(
            np.concatenate(p.lengths),
            {key: np.concatenate(value) for key, value in p.values.items()},
            np.concatenate(p.features) if p.features else None,
        )
        for name, p in parts.items()
    }
    return Evaluation(scores, np.concatenate(real_features) if real_features else None, used)


def codebook_report(used: np.ndarray) -> dict:
    """Usage and perplexity of a codebook from counts of used codes."""
    share = used / max(used.sum(), 1.0)
    seen = share[share > 0]
    return {
        "usage": float((used > 0).mean()),
        "perplexity": float(np.exp(-(seen * np.log(seen)).sum())),
        "size": len(used),
    }


def at_budget(points: list[dict], tokens: float, key: str) -> float | None:
    """A curve's value at a mean number of tokens, linear in log tokens; None outside the curve."""
    curve = sorted((p["tokens"], p[key]) for p in points if key in p)
    if not curve or not curve[0][0] <= tokens <= curve[-1][0]:
        return None
    x, y = np.array(curve).T
    return float(np.interp(np.log(tokens), np.log(x), y))
