"""EVATok in JAX: video as as few discrete tokens as its content needs."""

import importlib

_DOOR = {"load", "Tokenizer", "Generator"}


def __getattr__(name: str):
    """The three names of the API, imported when they are first used."""
    if name in _DOOR:
        return getattr(importlib.import_module("evatok_jax.api"), name)
    raise AttributeError(f"module 'evatok_jax' has no attribute {name!r}")
