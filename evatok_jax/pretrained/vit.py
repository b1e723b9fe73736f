"""The frozen ViTs: VideoMAE-B (discriminator), V-JEPA 2 and, for images, DINOv3 (alignment).

All cut a clip into patches and run pre-norm layers over them. The two for video have tubelets of
2 x 16 x 16: VideoMAE adds a fixed sine-cosine table to them, V-JEPA 2 rotates queries and keys by
the tubelet's place instead. DINOv3 has patches of one frame, rotates by their place in the picture,
puts [CLS] and registers before them and scales what a layer adds. VideoMAE and DINOv3 have no bias
on their keys. Plain functions of the weights, which a step takes as an argument.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from evatok_jax.models.attention import attend
from evatok_jax.models.ragged import block_rows
from evatok_jax.models.remat import rematerialised

Params = Mapping[str, object]


@dataclass(frozen=True)
class VitConfig:
    """The shape of a ViT.

    Attributes:
      width, layers, heads: of the transformer; its MLP is four times as wide.
      clip: frames, height and width that its positions are for.
      rotary: whether places rotate queries and keys (V-JEPA 2, DINOv3) or add a table (VideoMAE).
      eps: of the layer norms.
      patch: frames, rows and columns of a patch; one of a single frame belongs to an image network.
      prefix: learned tokens before the patches ([CLS], registers), which nothing rotates.
      scaled: whether what a layer adds is scaled by channel.
    """

    width: int
    layers: int
    heads: int
    clip: tuple[int, int, int]
    rotary: bool
    eps: float
    patch: tuple[int, int, int] = (2, 16, 16)
    prefix: int = 0
    scaled: bool = False

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches of a clip: in time, rows, columns."""
        return tuple(n // p for n, p in zip(self.clip, self.patch, strict=True))

    @property
    def planar(self) -> bool:
        """Whether it is a network for images."""
        return self.patch[0] == 1


PICTURE = dict(rotary=True, eps=1e-5, patch=(1, 16, 16), prefix=5, scaled=True)
VIDEOMAE_B = VitConfig(768, 12, 12, (16, 224, 224), rotary=False, eps=1e-6)
VJEPA2_L = VitConfig(1024, 24, 16, (16, 256, 256), rotary=True, eps=1e-6)
DINOV3_B = VitConfig(768, 12, 12, (1, 256, 256), **PICTURE)
# For tests and `runlocal`, where no weights are: as deep as the taps want it, and no more.
VIDEOMAE_TINY = VitConfig(32, 12, 2, (16, 32, 32), rotary=False, eps=1e-6)
VJEPA2_TINY = VitConfig(48, 2, 2, (16, 64, 64), rotary=True, eps=1e-6)
DINOV3_TINY = VitConfig(32, 2, 2, (1, 64, 64), **PICTURE)


def vit_spec(config: VitConfig) -> dict:
    """Shapes and types of the weights, known without any file; layers are stacked."""
    d, n = config.width, int(np.prod(config.grid))

    def leaf(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def dense(a, b):
        return {"kernel": leaf(config.layers, a, b), "bias": leaf(config.layers, b)}

    def norm(*stack):
        return {"scale": leaf(*stack, d), "bias": leaf(*stack, d)}

    spec = {
        "patch": {"kernel": leaf(int(np.prod(config.patch)) * 3, d), "bias": leaf(d)},
        "layers": {
            "attention_norm": norm(config.layers),
            **{name: dense(d, d) for name in ("query", "key", "value", "out")},
            "mlp_norm": norm(config.layers),
            "mlp_in": dense(d, 4 * d),
            "mlp_out": dense(4 * d, d),
        },
        "norm": norm(),
    }
    if not config.rotary:
        spec["positions"] = leaf(n, d)
    if config.prefix:
        spec["prefix"] = leaf(config.prefix, d)
    if config.scaled:
        spec["layers"] |= {name: leaf(config.layers, d) for name in ("out_scale", "mlp_scale")}
    return spec


def random_vit(config: VitConfig, seed: int = 0) -> dict:
    """Random weights in the tree of `vit_spec`: kernels of std 1 / sqrt(inputs), neutral norms."""
    rng = np.random.default_rng(seed)

    def leaf(path, spec):
        name = path[-1].key
        if name.endswith("scale"):
            return np.ones(spec.shape, np.float32)
        if name == "bias":
            return np.zeros(spec.shape, np.float32)
        if name == "positions":
            return sine_table(*spec.shape)
        return rng.standard_normal(spec.shape, np.float32) / np.sqrt(spec.shape[-2])

    return jax.tree_util.tree_map_with_path(leaf, vit_spec(config))


def stored_as(tree: dict, dtype: DTypeLike) -> dict:
    """Weights, or their spec, with the kernels in the type of the products: nothing to cast."""
    dtype = jnp.dtype(dtype)

    def leaf(path, x):
        if path[-1].key != "kernel":
            return x
        abstract = isinstance(x, jax.ShapeDtypeStruct)
        return jax.ShapeDtypeStruct(x.shape, dtype) if abstract else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def vit_features(
    params: Params,
    video: Float[Array, "b f h w 3"],
    config: VitConfig,
    taps: Sequence[int],
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
    attention: str = "auto",
) -> list[Float[Array, "b n d"]]:
    """Tokens at some depths, in the order of `taps`: `config.prefix` learned ones, then patches.

    Args:
      video: pixels as the network wants them (`preprocess`), [b, *config.clip, 3].
      taps: increasing; 0 is after the embedding, i after i layers, layers + 1 after the last norm.
      dtype: of the products; norms, softmax and the residual stream stay in fp32.
      remat: what of a layer the backward pass computes again (`models/remat.POLICIES`).
      attention: back end (`models/attention.BACKENDS`).

    Raises ValueError for a clip of another size, or taps that are out of order.
    """
    if tuple(video.shape[1:4]) != config.clip:
        raise ValueError(f"this ViT takes clips of {config.clip}, not {video.shape[1:4]}")
    if list(taps) != sorted(set(taps)) or not 0 <= taps[0] <= taps[-1] <= config.layers + 1:
        raise ValueError(f"taps {list(taps)} must increase from 0 to at most {config.layers + 1}")
    f, h, w = config.patch
    x = rearrange(video, "b (t f) (i h) (j w) c -> b (t i j) (f h w c)", f=f, h=h, w=w)
    x = _dense(params["patch"], x, dtype)
    if not config.rotary:
        x = x + params["positions"]
    if config.prefix:
        prefix = jnp.broadcast_to(params["prefix"], (len(x), *params["prefix"].shape))
        x = jnp.concatenate([prefix, x], axis=1)
    rows = block_rows(len(x), 1, x.shape[1])
    layer = partial(_layer, rows=rows, config=config, dtype=dtype, attention=attention)
    layer = rematerialised(jax.checkpoint, layer, remat)
    features, done = [], 0
    for tap in taps:
        depth = min(tap, config.layers)
        part = jax.tree.map(lambda a, i=done, j=depth: a[i:j], params["layers"])
        x, _ = jax.lax.scan(lambda x, p: (layer(p, x), None), x, part)
        done = depth
        features.append(_norm(params["norm"], x, config.eps) if tap > config.layers else x)
    return features


def _layer(p, x, rows, config: VitConfig, dtype, attention: str):
    h = _norm(p["attention_norm"], x, config.eps)
    q, k, v = (
        rearrange(_dense(p[name], h, dtype), "b n (h d) -> b n h d", h=config.heads)
        for name in ("query", "key", "value")
    )
    if config.rotary:
        q, k = (_rotated(x, config) for x in (q, k))
    h = attend(*(a.astype(dtype) for a in (q, k, v)), rows, rows, backend=attention)
    h = _dense(p["out"], rearrange(h, "b n h d -> b n (h d)"), dtype)
    x = x + (h * p["out_scale"] if config.scaled else h)
    h = _dense(p["mlp_in"], _norm(p["mlp_norm"], x, config.eps), dtype)
    h = _dense(p["mlp_out"], jax.nn.gelu(h, approximate=False), dtype)
    return x + (h * p["mlp_scale"] if config.scaled else h)


def _dense(p, x, dtype):
    # The product leaves in `dtype`, so that the backward pass's products are of that type too.
    product = jnp.matmul(x.astype(dtype), p["kernel"].astype(dtype))
    return product.astype(jnp.float32) + p["bias"]


def _norm(p, x, eps: float):
    mean = x.mean(axis=-1, keepdims=True)
    variance = jnp.square(x - mean).mean(axis=-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + eps) * p["scale"] + p["bias"]


def _rotated(x: Float[Array, "b n h d"], config: VitConfig) -> Float[Array, "b n h d"]:
    if not config.planar:
        return _rotate(x, config.grid)
    prefix, patches = x[:, : config.prefix], x[:, config.prefix :]
    return jnp.concatenate([prefix, _rotate_in_plane(patches, config.grid[1:])], axis=1)


def _rotate_in_plane(x: Float[Array, "b n h d"], grid: tuple[int, int]) -> Float[Array, "b n h d"]:
    """DINOv3's rotary embedding: half of the angles for rows, half for columns.

    The two of a pair are half a head apart. Places count from the middle of a picture whose sides
    have length 2, so that one network serves every size.
    """
    size = x.shape[-1] // 4
    omega = 100.0 ** (-jnp.arange(size) / size)
    places = jnp.meshgrid(*(2.0 * (jnp.arange(n) + 0.5) / n - 1.0 for n in grid), indexing="ij")
    angles = [2.0 * math.pi * place.reshape(-1, 1) * omega for place in places]
    angle = jnp.tile(jnp.concatenate(angles, axis=-1), 2)[:, None]
    left, right = jnp.split(x, 2, axis=-1)
    return x * jnp.cos(angle) + jnp.concatenate([-right, left], axis=-1) * jnp.sin(angle)


def _rotate(x: Float[Array, "b n h d"], grid: tuple[int, int, int]) -> Float[Array, "b n h d"]:
    """V-JEPA 2's rotary embedding: a third of a head for time, rows and columns each.

    Pairs are neighbours, but the angles of a third stand twice in a row (0 1 2 ... 0 1 2 ...), so
    the two of a pair turn by different angles: the weights were trained so.
    """
    size = 2 * (x.shape[-1] // 3 // 2)
    omega = 10000.0 ** (-jnp.arange(size // 2) / (size / 2))
    places = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in grid), indexing="ij")
    parts = []
    for axis, place in enumerate(places):
        part = x[..., axis * size : (axis + 1) * size]
        angle = jnp.tile(place.reshape(-1, 1) * omega, 2)[:, None]
        even, odd = part[..., ::2], part[..., 1::2]
        turned = jnp.stack([-odd, even], axis=-1).reshape(part.shape)
        parts.append(part * jnp.cos(angle) + turned * jnp.sin(angle))
    return jnp.concatenate([*parts, x[..., 3 * size :]], axis=-1)


def sine_table(count: int, width: int) -> Float[np.ndarray, "{count} {width}"]:
    """VideoMAE's fixed positions: sines on even, cosines on odd places of the width."""
    exponent = 2 * (np.arange(width) // 2) / width
    angle = np.arange(count)[:, None] / 10000.0**exponent
    angle[:, 0::2], angle[:, 1::2] = np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])
    return angle.astype(np.float32)
