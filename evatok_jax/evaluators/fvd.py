"""Frechet video distance (Unterthiner et al. 2018) on I3D logits, as StyleGAN-V and LARP have it.

Covariances divide by N. They are kept as a factor R with R'R the scatter matrix: rows are added
by stacking them and taking a QR decomposition, so nothing is ever squared, sums and merges keep all
the digits of float64, and the singular covariances of few clips need no care. With such factors
tr((S1 S2)^(1/2)) is the sum of the singular values of R1 R2' / sqrt(N1 N2).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from evatok_jax.chunks import in_chunks
from evatok_jax.pretrained.i3d import Params, i3d_logits

CHUNK = 4  # clips: about 300 MB of activations


def fvd_features(params: Params, video: UInt8[Array, "n t h w 3"]) -> Float[Array, "n 400"]:
    """I3D logits of clips with pixels 0..255 (StyleGAN-V, LARP); raises as `i3d_logits` does."""
    return i3d_logits(params, video.astype(jnp.float32) / 127.5 - 1)


def clip_features(
    params: Params, video: UInt8[np.ndarray, "n t h w 3"], chunk: int = CHUNK
) -> Float[np.ndarray, "n 400"]:
    """`fvd_features` of any number of clips; compiled once for a chunk and a shape of clip."""
    return in_chunks(lambda clips: _fvd_features(params, clips), chunk, video)


_fvd_features = jax.jit(fvd_features)


@dataclass
class FvdStats:
    """Mean and covariance of a stream of features, in float64.

    Attributes:
      count: features seen.
      mean: [d].
      factor: [r, d] with factor' factor = the sum of outer products of centred features.
    """

    count: int
    mean: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, *batches: Float[np.ndarray, "_n d"]) -> "FvdStats":
        """Statistics of one or more batches of features."""
        stats = cls(0, np.zeros(batches[0].shape[1]), np.zeros((0, batches[0].shape[1])))
        for batch in batches:
            stats.update(batch)
        return stats

    def update(self, features: Float[np.ndarray, "n d"]) -> None:
        """Adds features; raises ValueError if they are not finite."""
        features = np.asarray(features, np.float64)
        if not np.isfinite(features).all():
            raise ValueError("features with NaN or infinity: the network's input was not pixels")
        if len(features):
            mean = features.mean(axis=0)
            self.merge(FvdStats(len(features), mean, features - mean))

    def merge(self, other: "FvdStats") -> None:
        """Adds the features that `other` has seen."""
        count = self.count + other.count
        if not other.count:
            return
        shift = other.mean - self.mean
        between = np.sqrt(self.count * other.count / count) * shift
        self.factor = np.concatenate([self.factor, other.factor, between[None]])
        self.mean = self.mean + shift * (other.count / count)
        self.count = count
        if len(self.factor) > 2 * self.factor.shape[1]:
            self.factor = np.linalg.qr(self.factor, mode="r")

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """With divisor N."""
        return self.factor.T @ self.factor / self.count


def frechet(a: FvdStats, b: FvdStats) -> float:
    """Frechet distance between the normal distributions of two statistics.

    Raises ValueError if one of them has seen fewer than two features.
    """
    if min(a.count, b.count) < 2:
        raise ValueError(f"FVD needs two clips or more on each side, got {a.count} and {b.count}")
    shift = np.sum(np.square(a.mean - b.mean))
    traces = sum(np.sum(np.square(s.factor)) / s.count for s in (a, b))
    factors = [_square(s.factor) / np.sqrt(s.count) for s in (a, b)]
    cross = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    return float(shift + traces - 2 * cross)


def _square(factor: np.ndarray) -> np.ndarray:
    """The same factor with no more rows than columns."""
    return np.linalg.qr(factor, mode="r") if len(factor) > factor.shape[1] else factor


def bootstrap_interval(
    real: Float[np.ndarray, "_n d"],
    fake: Float[np.ndarray, "_m d"],
    resamples: int = 50,
    seed: int = 0,
    paired: bool = True,
    percentiles: Sequence[float] = (2.5, 97.5),
) -> tuple[float, float]:
    """Percentiles of the FVD over resampled clips: how far chance in the choice of clips moves it.

    A resample holds fewer different clips than the sample, so its FVD is biased upwards all the
    more: compare intervals with intervals. `paired` takes the same clips on both sides, as
    reconstructions want it.

    Raises ValueError for paired sides of different length.
    """
    if paired and len(real) != len(fake):
        raise ValueError(f"paired resampling of {len(real)} real and {len(fake)} fake clips")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        index = rng.integers(len(real), size=len(real))
        other = index if paired else rng.integers(len(fake), size=len(fake))
        values.append(frechet(FvdStats.of(real[index]), FvdStats.of(fake[other])))
    low, high = np.percentile(values, percentiles)
    return float(low), float(high)
