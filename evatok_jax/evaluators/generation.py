"""Generated clips: gFVD against real ones, and what the length tokens came to."""

from functools import partial

import jax
import numpy as np

from evatok_jax.evaluators.fvd import FvdStats, bootstrap_interval, clip_features, frechet


def generation_features(i3d, clips: np.ndarray, side: int = 0) -> np.ndarray:
    """I3D features [n, 400] of clips, uint8 [n, f, h, w, 3], for `generation_scores`.

    With `side` they are first resized to that many pixels (frame prediction on Kinetics-600: 64, as
    LARP has it; bilinear, antialiased).
    """
    return clip_features(i3d, _resized(clips, side) if side else clips)


def generation_scores(
    fake: np.ndarray, real: np.ndarray, resamples: int = 50, seed: int = 0
) -> dict:
    """gFVD of samples' features against real clips' ([n, 400] each), with a bootstrap interval.

    `real_vs_real` is the distance between two random halves of the real clips. Each half has half
    the clips, so it lies above the floor that samples of the full number could reach.
    """
    low, high = bootstrap_interval(real, fake, resamples, seed, paired=False)
    halves = np.array_split(np.random.default_rng(seed).permutation(len(real)), 2)
    floor = None
    if min(map(len, halves)) > 1:
        floor = frechet(*(FvdStats.of(real[half]) for half in halves))
    return {
        "gfvd": frechet(FvdStats.of(real), FvdStats.of(fake)),
        "gfvd_low": low,
        "gfvd_high": high,
        "real_vs_real": floor,
        "samples": len(fake),
        "real_clips": len(real),
    }


def _resized(clips: np.ndarray, side: int) -> np.ndarray:
    shape = (*clips.shape[1:2], side, side, 3)
    resize = jax.jit(partial(jax.image.resize, shape=shape, method="linear"))
    pixels = [np.asarray(resize(clip.astype(np.float32))) for clip in clips]
    return np.stack(pixels).round().clip(0, 255).astype(np.uint8)


def unigram_entropy(ids: np.ndarray) -> float:
    """Entropy in nats of the frequencies of ids: the loss of knowing nothing else."""
    counts = np.unique(ids, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())


def unigram_loss(ids: np.ndarray, seen: np.ndarray, vocab: int) -> float:
    """Cross-entropy in nats of ids under the frequencies of `seen` ids, each counted once more.

    What a model that knows nothing but the frequencies of its training tokens loses on others; the
    entropy of a few held-out tokens' own frequencies would lie below it, and lower the fewer they
    are.
    """
    counts = np.bincount(seen.ravel(), minlength=vocab) + 1.0
    return float(-np.log(counts / counts.sum())[ids.ravel()].mean())
