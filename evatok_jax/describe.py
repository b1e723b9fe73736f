"""What a config will build, without building it: parameters, levels, assignments."""

import jax
from ml_collections import ConfigDict

from evatok_jax.stages.stage import load_stage


def count(tree) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def abstract_params(stage) -> dict:
    """Shapes and types of a stage's parameters, by group."""
    return jax.eval_shape(stage.init, jax.random.key(0), stage.batch_spec())[0]


def describe_config(config: ConfigDict) -> dict:
    """Parameters by group and by part of the model, frozen networks, geometry; all abstract.

    Raises ValueError for a job that learns nothing.
    """
    if config.job != "train":
        raise ValueError(f"config {config.name!r} is a job of kind {config.job!r}: it has no model")
    stage = load_stage(config)
    geometry = getattr(stage, "geometry", None)
    params, frozen = abstract_params(stage), stage.frozen_spec()
    result = {
        "name": config.name,
        "stage": config.stage,
        "parameters": {group: count(tree) for group, tree in params.items()},
        "parts": {
            group: {name: count(part) for name, part in tree.items()}
            for group, tree in params.items()
        },
        "frozen": {name: count(tree) for name, tree in frozen.items()},
    }
    if geometry is not None:
        result |= {
            "clip": geometry.clip_shape,
            "levels": geometry.levels,
            "blocks": geometry.blocks,
            "assignments": geometry.assignments,
            "longest": geometry.max_length,
        }
    return result
