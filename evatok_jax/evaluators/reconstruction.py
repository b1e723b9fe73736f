"""Reconstructions under several rules for the lengths, clip by clip, on the same windows.

The evaluator sees functions, never a model: `reconstruct(clips, lengths)` and, for every rule,
`lengths(clips, rows)`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evatok_jax.data.tables import read_table, shard_path, write_shard
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
    """Everything measured on one set of windows: scores by rule, real features, counts of codes."""

    rules: dict[str, ClipScores]
    real: np.ndarray | None
    codes_used: np.ndarray


def evaluate_rules(
    batches: Iterable[dict],
    rules: Mapping[str, Rule],
    reconstruct: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    codebook_size: int,
    table: Path,
    i3d=None,
    nets: tuple[str, ...] = ("vgg", "alex"),
) -> Evaluation:
    """Reconstructs every clip under every rule and scores it.

    Args:
      batches: of `eval_clips`.
      rules: name -> lengths of a batch.
      reconstruct: (clips, lengths) -> (clips, codes [n, size of the longest], -1 where none is).
      table: folder for what was measured, a shard for each batch; shards that are there from an
        interrupted run are not measured again.
      i3d: parameters for rFVD; without them there are no features.

    Raises ValueError where a shard was measured under other lengths.
    """
    metrics = {net: LpipsMetric(net) for net in nets}
    row = 0
    for shard, batch in enumerate(batches):
        clips = batch["video"][batch["mask"]]
        index = np.arange(row, row + len(clips))
        row += len(clips)
        lengths = {name: rule(clips, index) for name, rule in rules.items()}
        if not shard_path(table, shard).exists():
            write_shard(table, shard, _measure(clips, lengths, reconstruct, metrics, i3d))
            continue
        with np.load(shard_path(table, shard)) as known:
            for name, wanted in lengths.items():
                if not np.array_equal(known[f"{name}: lengths"], wanted):
                    raise ValueError(f"{table} has other lengths for {name!r}: delete that folder")
    columns, scores, codes = read_table(table), {}, []
    for name in rules:
        start = f"{name}: "
        own = {key.removeprefix(start): v for key, v in columns.items() if key.startswith(start)}
        codes.append(own.pop("codes").ravel())
        scores[name] = ClipScores(
            own.pop("lengths"), features=own.pop("features", None), values=own
        )
    codes = np.concatenate(codes)
    used = np.bincount(codes[codes >= 0], minlength=codebook_size)
    return Evaluation(scores, columns.get("real"), used)


def _measure(clips, lengths: Mapping[str, np.ndarray], reconstruct, metrics, i3d) -> dict:
    """Columns for `table`: "RULE: value" for each rule and value, "real" for the real features."""
    made = [reconstruct(clips, own) for own in lengths.values()]
    # Where rules agree on a clip, the first one's reconstruction stands for all and is judged once.
    chosen = np.stack(list(lengths.values()))
    first = (chosen[:, None] == chosen).all(axis=3).argmax(axis=1)
    new = first == np.arange(len(made))[:, None]
    place = first, np.arange(len(clips))
    fakes, codes = (np.stack(side)[place] for side in zip(*made, strict=True))
    values = {
        "lengths": chosen,
        "codes": codes,
        "psnr": [clip_psnr(clips, fake) for fake in fakes],
        "ssim": [clip_ssim(clips, fake) for fake in fakes],
    }
    values |= {f"lpips_{net}": metric(clips, *fakes) for net, metric in metrics.items()}
    columns = {}
    if i3d is not None:
        columns["real"] = clip_features(i3d, clips)
        features = np.zeros((*new.shape, columns["real"].shape[1]), np.float32)
        features[new] = clip_features(i3d, fakes[new])
        values["features"] = features[place]
    for key, rows in values.items():
        columns |= {f"{name}: {key}": row for name, row in zip(lengths, rows, strict=True)}
    return columns


def codebook_report(used: np.ndarray) -> dict:
    """Usage and perplexity of a codebook from counts of used codes."""
    share = used / max(used.sum(), 1.0)
    seen = share[share > 0]
    return {
        "usage": float((used > 0).mean()),
        "perplexity": float(np.exp(-(seen * np.log(seen)).sum())),
        "size": len(used),
    }


def at_budget(points: list[dict], tokens: int | float, key: str) -> float | None:
    """What a curve reaches within a mean number of tokens, linear in log tokens between points.

    Beyond its dearest point it is that point's value, since a budget need not be spent; below its
    cheapest one, None.
    """
    curve = sorted((p["tokens"], p[key]) for p in points if key in p)
    if not curve or tokens < curve[0][0]:
        return None
    x, y = np.array(curve).T
    return float(np.interp(np.log(tokens), np.log(x), y))
