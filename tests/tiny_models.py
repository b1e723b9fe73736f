"""Exports of models with random weights, of the smallest geometry."""

import jax
import jax.numpy as jnp

from evatok_jax.geometry import geometry
from evatok_jax.models.build import build_router, build_tokenizer, describe_geometry
from evatok_jax.storage.export import save_export

G = geometry("nano")


def save_tokenizer(path, seed=0):
    """An export of a tokenizer with a router; returns the path."""
    nano = describe_geometry("nano")
    tokenizer = {"geometry": nano, "size": "tiny", "codebook_size": 100}
    router = {"geometry": nano, "size": "tiny"}
    video = jnp.zeros((1, *G.clip_shape))
    lengths = jnp.full((1, 4), 4, jnp.int32)
    key = jax.random.key(seed)
    params = {
        "tokenizer": jax.jit(build_tokenizer(tokenizer).init, static_argnums=3)(
            key, video, lengths, 16
        ),
        "router": jax.jit(build_router(router).init)(key, video),
    }
    params = {name: jax.device_get(tree["params"]) for name, tree in params.items()}
    save_export(path, "tokenizer", {"tokenizer": tokenizer, "router": router}, params)
    return path
