"""Discriminators: spectral norm as PyTorch's, virtual batches, what a logit may look at."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evatok_jax.models.build import build_discriminator, build_geometry
from evatok_jax.models.discriminators import FeatureDiscriminator, VirtualBatchNorm

FIXTURES = Path(__file__).parent.parent / "fixtures"


def test_spectral_norm_against_torch():
    """Three training passes of a circular convolution, power iterations included."""
    with np.load(FIXTURES / "spectral.npz") as file:
        found = dict(file)
    kernel = found["weight_orig"]  # [out, in, width]
    layer = nn.SpectralNorm(nn.Conv(5, (9,), padding="CIRCULAR"), collection_name="spectral")
    x = found["x"].transpose(0, 2, 1)
    variables = layer.init(jax.random.key(0), x, update_stats=False)
    params = variables["params"]
    (name,) = params
    params = {name: {"kernel": kernel.transpose(2, 1, 0), "bias": found["bias"]}}
    flat = jax.tree_util.tree_flatten_with_path(variables["spectral"])[0]
    key = next(path for path, leaf in flat if leaf.ndim == 2)
    spectral = jax.tree_util.tree_map_with_path(
        lambda path, leaf: found["weight_u"][None] if path == key else leaf, variables["spectral"]
    )
    for want in found["outputs"]:
        got, new = layer.apply(
            {"params": params, "spectral": spectral}, x, update_stats=True, mutable=["spectral"]
        )
        spectral = new["spectral"]
        np.testing.assert_allclose(got, want.transpose(0, 2, 1), atol=1e-5)


def test_virtual_batches():
    """Statistics of a group against NumPy; groups are alone; small batches are one group."""
    x = jnp.asarray(np.random.default_rng(0).normal(2.0, 3.0, (16, 5, 3)), jnp.float32)
    model = VirtualBatchNorm(8)
    variables = model.init(jax.random.key(0), x)
    got = np.asarray(model.apply(variables, x))
    for group in (slice(0, 8), slice(8, 16)):
        part = x[group]
        want = (part - part.mean(axis=(0, 1))) / np.sqrt(part.var(axis=(0, 1)) + 1e-5)
        np.testing.assert_allclose(got[group], want, atol=1e-5)
    np.testing.assert_allclose(model.apply(variables, x[:8]), got[:8], atol=1e-6)
    few = np.asarray(model.apply(variables, x[:2]))
    np.testing.assert_allclose(few.mean(axis=(0, 1)), 0, atol=1e-5)
    with pytest.raises(ValueError, match="groups of 8 clips do not divide a batch of 12"):
        model.apply(variables, x[:12])


def test_transformer_logits():
    """One for a clip, or one for a patch; as many parameters as LARP's large run."""
    g = build_geometry("nano")
    video = jnp.zeros((2, *g.clip_shape))
    for patch_logits, count in ((False, 1), (True, g.blocks * g.block_patches)):
        model = build_discriminator(g, "tiny", patch_logits, "float32", "none")
        out = jax.eval_shape(model.init_with_output, jax.random.key(0), video)[0]
        assert out.shape == (2, count)
    paper = build_geometry("paper128")
    model = build_discriminator(paper, "LARP", False, "float32", "none")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *paper.clip_shape)))
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert size == pytest.approx(12 * 12 * 512**2 + 768 * 512, rel=0.01)


def test_heads_learn_only_when_asked():
    """Without `update` nothing tracked changes, and the logits of all depths stand side by side."""
    features = [jax.random.normal(jax.random.key(i), (8, 6, 4)) for i in range(2)]
    model = FeatureDiscriminator(2)
    variables = model.init(jax.random.key(0), features)
    logits, still = model.apply(variables, features, mutable=["spectral"])
    assert logits.shape == (8, 12) and logits.dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, still["spectral"], variables["spectral"])
    _, moved = model.apply(variables, features, update=True, mutable=["spectral"])
    before, after = jax.tree.leaves(variables["spectral"]), jax.tree.leaves(moved["spectral"])
    assert any(np.abs(a - b).max() > 1e-6 for a, b in zip(before, after, strict=True))
