"""Images among the stages: what they align with, and what they cannot stand beside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evatok_jax.allocation.reward import Normalizer
from evatok_jax.bench import fvd_network
from evatok_jax.config import load_config
from evatok_jax.geometry import geometry
from evatok_jax.models.sizes import StackConfig
from evatok_jax.presets import add_adversary, add_alignment
from evatok_jax.pretrained.preprocess import preprocess
from evatok_jax.pretrained.teachers import load_vit, teacher
from evatok_jax.pretrained.vit import vit_features
from evatok_jax.stages.aligner import Aligner
from evatok_jax.stages.stage import load_stage


def test_dinov3_gives_its_patches_frame_by_frame():
    """[CLS] and registers are left out, and the frames of a block stand side by side."""
    config = load_config("configs/imagenet_uniform.py:runlocal")
    vit, weights = teacher(config.alignment.teacher), load_vit(config.alignment.teacher)
    assert vit.planar and vit.prefix == 5
    rng = np.random.default_rng(0)
    clip = jnp.asarray(rng.uniform(-0.5, 0.5, (2, 16, 32, 32, 3)), jnp.float32)
    aligner = Aligner(config.alignment, geometry("nano"), StackConfig(8, 3, 1))
    found = jax.jit(aligner.look)({aligner.name: weights}, clip)
    assert aligner.slots == 4 and found.shape == (2, 4 * 16, 4 * vit.width)
    frames = preprocess(clip[1:, :8], (64, 64), "bilinear").reshape(8, 1, 64, 64, 3)
    (alone,) = jax.jit(lambda w, x: vit_features(w, x, vit, [3]))(weights, frames)
    wanted = jnp.concatenate(list(alone[4:, 5:]), axis=-1)  # the frames of the second block
    np.testing.assert_allclose(found[1, 16:32], wanted, atol=1e-5)


def test_networks_for_video_refuse_images():
    config = load_config("configs/imagenet_uniform.py:runlocal")
    with config.unlocked():
        add_alignment(config, "vjepa2_l")
    with pytest.raises(ValueError, match=r"blocks of 1 frames .* images align with dinov3_b"):
        load_stage(config)
    config = load_config("configs/imagenet_uniform.py:runlocal")
    with config.unlocked():
        add_adversary(config, "videomae")
    with pytest.raises(ValueError, match=r"clips of 16 frames, these have 1: images need"):
        load_stage(config)
    config = load_config("configs/evaluate.py")
    with pytest.raises(ValueError, match="FVD needs clips of 9 frames or more, these have 1"):
        fvd_network(config, 1)


def test_rewards_need_a_choice():
    """One block of one level has one assignment, whose length has no deviation."""
    with pytest.raises(ValueError, match="every assignment has 16 tokens"):
        Normalizer.of(np.ones((3, 1), np.float32), np.array([[16]], np.int32))
