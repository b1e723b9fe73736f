"""Models from plain descriptions: what configs and exports say, as modules.

A description is JSON-able: {"geometry": "mini64" or its fields, "size": a name of `sizes`, ...}.
It is what an export keeps, so a trained model can be rebuilt without the config that trained it.
"""

from dataclasses import asdict, fields

from evatok_jax.geometry import GEOMETRIES, Geometry, geometry
from evatok_jax.models import sizes
from evatok_jax.models.discriminators import TransformerDiscriminator
from evatok_jax.models.generator import Generator, GeneratorConfig
from evatok_jax.models.router import Router, RouterConfig
from evatok_jax.models.tokenizer import Tokenizer, TokenizerConfig
from evatok_jax.names import nearest


def build_geometry(description: str | dict) -> Geometry:
    """A geometry by name, or from its fields."""
    if isinstance(description, str):
        return geometry(description)
    _check(description, [f.name for f in fields(Geometry)], "geometry")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in description.items()}
    return Geometry(**values)


def _size(table: dict, name: str):
    if name not in table:
        raise ValueError(f"unknown size {name!r}: {nearest(name, table)}")
    return table[name]


def _check(description: dict, known, what: str) -> None:
    for key in description:
        if key not in known:
            raise ValueError(
                f"unknown key {key!r} in the {what}'s description: {nearest(key, known)}"
            )


def _config(cls, description: dict, **stacks):
    description = {k: tuple(v) if isinstance(v, list) else v for k, v in description.items()}
    description |= {"geometry": build_geometry(description["geometry"])} | stacks
    description.pop("size", None)
    _check(description, [f.name for f in fields(cls)], cls.__name__)
    return cls(**description)


def build_tokenizer(description: dict) -> Tokenizer:
    """A tokenizer from {"geometry", "size", and any field of TokenizerConfig}."""
    encoder, decoder = _size(sizes.TOKENIZERS, description["size"])
    parts = dict(encoder=encoder, decoder=decoder, cnn=_size(sizes.CNNS, description["size"]))
    return Tokenizer(_config(TokenizerConfig, description, **parts))


def build_router(description: dict) -> Router:
    """A router from {"geometry", "size", and any field of RouterConfig}."""
    stack = _size(sizes.ROUTERS, description["size"])
    return Router(_config(RouterConfig, description, stack=stack))


def build_generator(description: dict) -> Generator:
    """A generator from {"size", and any field of GeneratorConfig}."""
    stack = _size(sizes.GENERATORS, description["size"])
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in description.items()}
    values |= {"width": stack.width, "layers": stack.layers, "heads": stack.heads}
    values.pop("size")
    _check(values, [f.name for f in fields(GeneratorConfig)], "generator")
    return Generator(GeneratorConfig(**values))


def build_discriminator(
    geometry: Geometry,
    size: str,
    patch_logits: bool,
    dtype: str,
    remat: str,
    attention: str = "auto",
) -> TransformerDiscriminator:
    """LARP's discriminator by the name of its size."""
    stack = _size(sizes.DISCRIMINATORS, size)
    return TransformerDiscriminator(geometry, stack, patch_logits, dtype, remat, attention)


def describe_geometry(name: str) -> dict:
    """The fields of a named geometry, JSON-able: exports keep these, not the name."""
    if name not in GEOMETRIES:
        raise ValueError(f"unknown geometry {name!r}: {nearest(name, GEOMETRIES)}")
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(geometry(name)).items()}
