"""LPIPS of clips is the mean over frames, whatever the chunks."""

import jax
import jax.numpy as jnp
import numpy as np

from evatok_jax.evaluators import lpips as module
from evatok_jax.pretrained.lpips import lpips, lpips_spec


def test_clips_against_several_others(monkeypatch):
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.05 * rng.standard_normal(leaf.shape), jnp.float32),
        lpips_spec("alex"),
    )
    real, *fakes = rng.integers(0, 256, (3, 3, 2, 32, 32, 3), np.uint8)
    monkeypatch.setattr(module, "_CHUNK_PIXELS", 4 * 32 * 32)  # four of six frames at a time
    found = module.LpipsMetric("alex", params)(real, *fakes, real, fakes[0])
    assert found.shape == (4, 3)

    def frames(video):
        return jnp.asarray(video.reshape(-1, 32, 32, 3), jnp.float32) / 127.5 - 1

    distance = jax.jit(lpips, static_argnames="net")
    for row, fake in zip(found, fakes, strict=False):
        expected = distance(params, frames(real), frames(fake), net="alex").reshape(3, 2).mean(1)
        np.testing.assert_allclose(row, expected, rtol=1e-5)
    np.testing.assert_array_equal(found[2], 0.0)
    np.testing.assert_array_equal(found[3], found[0])
