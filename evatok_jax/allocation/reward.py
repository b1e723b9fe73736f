"""The proxy reward and what follows from it: labels, percentiles, quality-cost curves.

R(x, a) = w_q Q(x, a) - w_l L(a), with Q the negated z-score of LPIPS and L the z-score of the total
length, both over random clips x random assignments (EVATok Eq. 4-6; Eq. 6 as printed lacks the
minus sign, without which bad LPIPS would be rewarded).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Normalizer:
    """Means and standard deviations of LPIPS and of total length, over clips x assignments."""

    lpips_mean: float
    lpips_std: float
    length_mean: float
    length_std: float

    @classmethod
    def of(cls, lpips: Float[np.ndarray, "n a"], assignments: Int[np.ndarray, "a t"]):
        """Statistics of a table of scores; assignments are taken to be equally likely.

        Raises ValueError where all are equally long: there is nothing to choose.
        """
        total = assignments.sum(axis=1)
        if (total == total[0]).all():
            raise ValueError(f"every assignment has {total[0]} tokens: rewards need two lengths")
        return cls(float(lpips.mean()), float(lpips.std()), float(total.mean()), float(total.std()))


def proxy_reward(
    lpips: Float[np.ndarray, "n a"],
    assignments: Int[np.ndarray, "a t"],
    norm: Normalizer,
    w_q: float = 1.2,
    w_l: float = 0.8,
) -> np.ndarray:
    """R of every clip under every assignment, float64 [n, a]."""
    quality = -(lpips.astype(np.float64) - norm.lpips_mean) / norm.lpips_std
    length = (assignments.sum(axis=1) - norm.length_mean) / norm.length_std
    return w_q * quality - w_l * length


def labels(reward: Float[np.ndarray, "n a"]) -> np.ndarray:
    """The best assignment of each clip, int32 [n]; the first of equals (EVATok Eq. 3)."""
    return reward.argmax(axis=1).astype(np.int32)


def percentile(reward: Float[np.ndarray, "n a"], chosen: Int[np.ndarray, " n"]) -> float:
    """Where a choice stands between the worst and the best assignment, in [0, 1] (EVATok Eq. 8).

    (E[R(chosen)] - E[R(worst)]) / (E[R(best)] - E[R(worst)]), expectations over clips.
    """
    rows = np.arange(len(reward))
    best, worst = reward.max(axis=1).mean(), reward.min(axis=1).mean()
    return float((reward[rows, chosen].mean() - worst) / max(best - worst, 1e-12))


def best_fixed(reward: Float[np.ndarray, "n a"]) -> int:
    """The one assignment that is best on average over all clips."""
    return int(reward.mean(axis=0).argmax())


def best_uniform(
    reward: Float[np.ndarray, "n a"], assignments: Int[np.ndarray, "a t"]
) -> np.ndarray:
    """The best assignment of each clip among those with equal blocks, int64 [n]."""
    uniform = np.flatnonzero((assignments == assignments[:, :1]).all(axis=1))
    return uniform[reward[:, uniform].argmax(axis=1)]
