"""LPIPS v0.1 (Zhang et al. 2018) with VGG16 or AlexNet, linear layers included.

Plain functions of the weights, so that training passes them as an argument of its step and the
compiled program holds no constants. Features can be computed once and compared with many others,
as the search over assignments does with the features of the original.
"""

from collections.abc import Mapping
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from evatok_jax import assets

Net = Literal["vgg", "alex"]
Params = Mapping[str, Mapping[str, ArrayLike]]

# A tower is a list of stages, each of (channels, kernel, stride, padding) convolutions with ReLU;
# between stages stands a max pool of (window, stride), and the end of each stage is a feature.
_TOWERS = {
    "vgg": (
        [[(c, 3, 1, 1)] * n for c, n in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))],
        (2, 2),
        "VGG16_0",
    ),
    "alex": (
        [[(64, 11, 4, 2)], [(192, 5, 1, 2)], [(384, 3, 1, 1)], [(256, 3, 1, 1)], [(256, 3, 1, 1)]],
        (3, 2),
        "AlexNet_0",
    ),
}
_POOLED_STAGES = {"vgg": (1, 2, 3, 4), "alex": (1, 2)}  # stages that a max pool precedes
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_SMALLEST = {"vgg": 16, "alex": 31}  # pixels a side below which a pool or a convolution has nothing


def lpips_spec(net: Net) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Shapes and types of the weights of `net`, known without any file."""
    stages, _, _ = _TOWERS[net]
    spec, channels = {}, 3
    for out, size, _, _ in [layer for stage in stages for layer in stage]:
        spec[f"conv_{len(spec)}"] = {"kernel": (size, size, channels, out), "bias": (out,)}
        channels = out
    for index, stage in enumerate(stages):
        spec[f"linear_{index}"] = {"kernel": (stage[-1][0],)}
    return {
        layer: {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in leaves.items()}
        for layer, leaves in spec.items()
    }


def load_lpips(net: Net) -> dict[str, dict[str, np.ndarray]]:
    """The real weights, fp32, in the tree that `lpips_spec` describes.

    Raises assets.AssetMissing where they were not fetched.
    """
    arrays = assets.load_weights(f"lpips_{net}")
    params = {}
    for layer, leaves in lpips_spec(net).items():
        kind, index = layer.split("_")
        source = (
            f"{_TOWERS[net][2]}/Conv_{index}" if kind == "conv" else f"NetLinLayer_{index}/Conv_0"
        )
        params[layer] = {
            name: arrays[f"{source}/{name}"].reshape(leaf.shape) for name, leaf in leaves.items()
        }
    return params


def lpips_features(
    params: Params, images: Float[Array, "n h w 3"], net: Net, dtype: DTypeLike = jnp.float32
) -> list[Float[Array, "n _h _w _c"]]:
    """Features of five depths, each scaled to unit length over its channels.

    Args:
      params: the tree of `load_lpips(net)`.
      images: pixels in [-1, 1].
      dtype: type of the convolutions; the lengths are always taken in float32.

    Raises ValueError for images smaller than the network can pool (16 pixels a side for VGG16, 31
    for AlexNet).
    """
    if min(images.shape[1:3]) < _SMALLEST[net]:
        raise ValueError(
            f"LPIPS with {net!r} needs images of {_SMALLEST[net]} pixels a side or more, "
            f"got {images.shape[1]}x{images.shape[2]}"
        )
    stages, pool, _ = _TOWERS[net]
    x = ((images - jnp.asarray(_SHIFT)) / jnp.asarray(_SCALE)).astype(dtype)
    features, layer = [], 0
    for index, stage in enumerate(stages):
        if index in _POOLED_STAGES[net]:
            x = _max_pool(x, *pool)
        for _, _, stride, padding in stage:
            weights = params[f"conv_{layer}"]
            x = jax.nn.relu(
                _conv(x, weights["kernel"], stride, padding) + weights["bias"].astype(dtype)
            )
            layer += 1
        features.append(_unit_length(x.astype(jnp.float32)))
    return features


def lpips_distance(
    params: Params,
    features_a: list[Float[Array, "n _h _w _c"]],
    features_b: list[Float[Array, "n _h _w _c"]],
) -> Float[Array, " n"]:
    """LPIPS between images given by their `lpips_features`; 0 for equal ones, float32."""
    total = 0.0
    for index, (a, b) in enumerate(zip(features_a, features_b, strict=True)):
        weights = params[f"linear_{index}"]["kernel"].astype(jnp.float32)
        per_channel = jnp.mean(jnp.square(a - b), axis=(1, 2))
        total = total + jnp.sum(per_channel * weights, axis=-1)
    return total


def lpips(
    params: Params,
    a: Float[Array, "n h w 3"],
    b: Float[Array, "n h w 3"],
    net: Net,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, " n"]:
    """LPIPS v0.1 between images with pixels in [-1, 1], one number a pair."""
    features = partial(lpips_features, params, net=net, dtype=dtype)
    return lpips_distance(params, features(a), features(b))


def _unit_length(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """x / (|x| + 1e-10) over channels, with gradient 0 where all channels are 0 (not NaN)."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    empty = square == 0
    length = jnp.sqrt(jnp.where(empty, 1.0, square))
    return x / (jnp.where(empty, 0.0, length) + 1e-10)


def _conv(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """2-D convolution; float32 stays float32 on every machine."""
    kernel = kernel.astype(x.dtype)
    size = kernel.shape[0]
    if min(x.shape[1:3]) < size:  # on a CPU, XLA has only a plain loop for this
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        rows, columns = (side - size + 1 for side in x.shape[1:3])
        views = [x[:, i : i + rows, j : j + columns] for i in range(size) for j in range(size)]
        patches = jnp.concatenate(views, axis=-1)[:, ::stride, ::stride]
        return jnp.matmul(
            patches, kernel.reshape(-1, kernel.shape[-1]), precision=lax.Precision.HIGHEST
        )
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )


def _max_pool(x: Array, window: int, stride: int) -> Array:
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), "VALID"
    )
