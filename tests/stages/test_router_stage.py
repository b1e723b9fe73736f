"""The router's stage: a router of softened labels starts from what the table says of all clips."""

import jax
import numpy as np

from evatok_jax.allocation.reward import best_fixed
from evatok_jax.config import load_config
from evatok_jax.data.tables import write_shard
from evatok_jax.pixels import to_model
from evatok_jax.stages.stage import load_stage


def test_knowing_nothing_it_gives_the_best_single_assignment(tmp_path):
    rng = np.random.default_rng(0)
    columns = {"lpips": rng.random((6, 81), np.float32)}
    write_shard(tmp_path, 0, columns | {"record": np.arange(6), "window": np.zeros(6, int)})
    stage = load_stage(
        load_config(f"configs/router.py:geometry=nano,size=tiny,temperature=0.25,scores={tmp_path}")
    )
    params, _ = stage.init(jax.random.key(0), {})
    clips = rng.integers(0, 256, (3, *stage.geometry.clip_shape), np.uint8)
    logits = stage.model.apply({"params": params["router"]}, to_model(clips))
    _, reward = stage.targets
    assert (np.argmax(logits, axis=1) == best_fixed(reward)).all()
