"""Brute force equals a plain loop over assignments, and the prefix tree equals both."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from needs import needs_assets

from evatok_jax.models.build import build_tokenizer
from evatok_jax.pixels import to_model, to_uint8
from evatok_jax.pretrained.lpips import load_lpips, lpips
from evatok_jax.search.brute_force import BruteForce
from evatok_jax.search.prefix_tree import PrefixTree

SMALL = {
    "frames": 8,
    "height": 32,
    "width": 32,
    "patch": [4, 8, 8],
    "levels": [8, 32],
}


@needs_assets("lpips_alex")
def test_against_a_plain_loop():
    """All scores of all assignments, with a random tokenizer and the real LPIPS network."""
    network = jax.device_put(load_lpips("alex"))
    model = build_tokenizer({"geometry": SMALL, "size": "tiny", "codebook_size": 32})
    g = model.config.geometry
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (2, *g.clip_shape)).astype(np.uint8)
    lengths = jnp.array([[8, 8]])
    init = jax.jit(lambda key: model.init(key, to_model(clips[:1]), lengths, 64))
    params = init(jax.random.key(0))["params"]
    search = BruteForce(model, params, network, "alex", batch=3)
    found = search(clips)
    tree = PrefixTree(model, params, network, "alex", batch=2)
    for name, scores in vars(tree(clips)).items():
        np.testing.assert_allclose(scores, getattr(found, name), atol=1e-5, err_msg=name)
    distance = jax.jit(partial(lpips, net="alex"))
    run = jax.jit(lambda v, n: model.apply({"params": params}, v, n, 64)[0])
    for index, lengths in enumerate(search.assignments):
        both = jnp.asarray(np.stack([lengths] * 2))
        fake = np.asarray(to_uint8(run(to_model(jnp.asarray(clips)), both)))
        for n in range(2):
            mse = ((fake[n].astype(float) - clips[n].astype(float)) ** 2).mean() / 255**2
            assert found.mse[n, index] == pytest.approx(mse, rel=1e-3)
            assert found.psnr[n, index] == pytest.approx(-10 * np.log10(mse), abs=1e-2)
            pair = (2.0 * to_model(jnp.asarray(x)) for x in (clips[n], fake[n]))
            expected = float(distance(network, *pair).mean())
            assert found.lpips[n, index] == pytest.approx(expected, abs=1e-4)
