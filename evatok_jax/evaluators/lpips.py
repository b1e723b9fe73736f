"""LPIPS of clips: the mean over their frames."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from evatok_jax.chunks import in_chunks
from evatok_jax.pretrained.lpips import Net, Params, load_lpips, lpips_distance, lpips_features

_CHUNK_PIXELS = 2**16  # 16 frames of 64x64: about 150 MB for VGG16


class LpipsMetric:
    """LPIPS between clips, frame by frame, with the weights kept on the device.

    Raises assets.AssetMissing if `params` are not given and were not fetched.
    """

    def __init__(self, net: Net, params: Params | None = None, dtype: DTypeLike = jnp.float32):
        self.params = jax.device_put(load_lpips(net) if params is None else params)
        self._features = partial(_features, net=net, dtype=dtype)

    def __call__(
        self, real: UInt8[np.ndarray, "n t h w 3"], *fakes: UInt8[np.ndarray, "n t h w 3"]
    ) -> Float[np.ndarray, "k n"]:
        """Distances of every one of k `fakes` to `real`.

        The features of `real` are computed once, and so are those of equal images among the fakes.
        """
        clips, frames, height, width, _ = real.shape

        def distances(real: np.ndarray, *fakes: np.ndarray) -> np.ndarray:
            reference, found = self._features(self.params, real), []
            for fake in fakes:
                equal = [k for k in range(len(found)) if np.array_equal(fakes[k], fake)]
                found.append(
                    found[equal[0]]
                    if equal
                    else _distance(self.params, reference, self._features(self.params, fake))
                )
            return np.stack([np.asarray(row) for row in found], axis=1)

        flat = [video.reshape(-1, height, width, 3) for video in (real, *fakes)]
        scores = in_chunks(distances, max(1, _CHUNK_PIXELS // (height * width)), *flat)
        return scores.reshape(clips, frames, -1).mean(axis=1, dtype=np.float64).T


@partial(jax.jit, static_argnames=("net", "dtype"))
def _features(params: Params, images: UInt8[Array, "n h w 3"], net: Net, dtype: DTypeLike):
    return lpips_features(params, images.astype(jnp.float32) / 127.5 - 1, net, dtype)


_distance = jax.jit(lpips_distance)
