"""I3D (Carreira and Zisserman 2017) trained on Kinetics-400: the TF-Hub network that FVD uses.

Plain functions of the weights. Batch norm (epsilon 1e-3, no scale) is folded into the convolution
before it when the weights are loaded. Padding is TensorFlow's SAME, as XLA has it too.
"""

from collections.abc import Mapping, Sequence

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from evatok_jax import assets

Params = Mapping[str, Mapping[str, ArrayLike]]

CLASSES = 400
MIN_FRAMES = 9  # fewer leave one frame after the three halvings, and the average pool takes two
SIDE = 224
_EPSILON = 1e-3

# Output channels of each module's branches: 1x1; 1x1 and 3x3; 1x1 and 3x3; pool and 1x1.
_MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


def i3d_spec() -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Shapes and types of the folded weights, known without any file."""
    units = {
        "Conv3d_1a_7x7": (7, 3, 64),
        "Conv3d_2b_1x1": (1, 64, 64),
        "Conv3d_2c_3x3": (3, 64, 192),
    }
    channels = 192
    for name, (a, b, c, d, e, f) in _MIXED.items():
        units[f"{name}/Branch_0/Conv3d_0a_1x1"] = (1, channels, a)
        units[f"{name}/Branch_1/Conv3d_0a_1x1"] = (1, channels, b)
        units[f"{name}/Branch_1/Conv3d_0b_3x3"] = (3, b, c)
        units[f"{name}/Branch_2/Conv3d_0a_1x1"] = (1, channels, d)
        units[f"{name}/Branch_2/Conv3d_0b_3x3"] = (3, d, e)
        units[f"{name}/Branch_3/Conv3d_0b_1x1"] = (1, channels, f)
        channels = a + c + e + f
    units["Logits/Conv3d_0c_1x1"] = (1, channels, CLASSES)
    return {
        unit: {
            "kernel": jax.ShapeDtypeStruct((size,) * 3 + (into, out), jnp.float32),
            "bias": jax.ShapeDtypeStruct((out,), jnp.float32),
        }
        for unit, (size, into, out) in units.items()
    }


def load_i3d() -> dict[str, dict[str, np.ndarray]]:
    """The real weights, fp32, batch norm folded in, in the tree that `i3d_spec` describes.

    Raises assets.AssetMissing where they were not fetched.
    """
    arrays = assets.load_weights("i3d")
    params = {}
    for unit, leaves in i3d_spec().items():
        kernel = arrays[f"params/{unit}/Conv_0/kernel"].astype(np.float64)
        if unit.startswith("Logits"):
            bias = arrays[f"params/{unit}/Conv_0/bias"]
        else:
            norm = f"{unit}/BatchNorm_0"
            scale = 1 / np.sqrt(arrays[f"batch_stats/{norm}/var"].astype(np.float64) + _EPSILON)
            mean = arrays[f"batch_stats/{norm}/mean"]
            bias = arrays[f"params/{norm}/bias"] - (mean * scale).reshape(-1)
            kernel = kernel * scale
        params[unit] = {
            "kernel": kernel.astype(np.float32).reshape(leaves["kernel"].shape),
            "bias": bias.astype(np.float32).reshape(leaves["bias"].shape),
        }
    return params


def i3d_logits(
    params: Params, video: Float[Array, "n t h w 3"], dtype: DTypeLike = jnp.float32
) -> Float[Array, "n 400"]:
    """Kinetics-400 logits, the features of FVD.

    Args:
      params: the tree of `load_i3d()`.
      video: pixels in [-1, 1]; frames are resized to 224x224, bilinearly, without antialias.
      dtype: type of the convolutions.

    Raises ValueError for clips of fewer than 9 frames.
    """
    frames = video.shape[1]
    if frames < MIN_FRAMES:
        raise ValueError(f"I3D needs clips of {MIN_FRAMES} frames or more, got {frames}")

    def unit(x: Array, name: str, stride: int = 1) -> Array:
        kernel, bias = params[name]["kernel"].astype(dtype), params[name]["bias"].astype(dtype)
        return jax.nn.relu(_conv3d(x, kernel, stride) + bias)

    shape = (*video.shape[:2], SIDE, SIDE, 3)
    x = jax.image.resize(video, shape, "linear", antialias=False).astype(dtype)
    x = unit(x, "Conv3d_1a_7x7", 2)
    x = _max_pool(x, (1, 3, 3), (1, 2, 2))
    x = unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3")
    x = _max_pool(x, (1, 3, 3), (1, 2, 2))
    for name in _MIXED:
        if name == "Mixed_4b":
            x = _max_pool(x, (3, 3, 3), (2, 2, 2))
        elif name == "Mixed_5b":
            x = _max_pool(x, (2, 2, 2), (2, 2, 2))
        branches = (
            unit(x, f"{name}/Branch_0/Conv3d_0a_1x1"),
            unit(unit(x, f"{name}/Branch_1/Conv3d_0a_1x1"), f"{name}/Branch_1/Conv3d_0b_3x3"),
            unit(unit(x, f"{name}/Branch_2/Conv3d_0a_1x1"), f"{name}/Branch_2/Conv3d_0b_3x3"),
            unit(_max_pool(x, (3, 3, 3), (1, 1, 1)), f"{name}/Branch_3/Conv3d_0b_1x1"),
        )
        x = jnp.concatenate(branches, axis=-1)
    # The mean over windows of two frames, taken before the last linear layer rather than after it.
    x = jnp.mean(x.astype(jnp.float32), axis=(2, 3))
    x = jnp.mean((x[:, :-1] + x[:, 1:]) / 2, axis=1)
    last = params["Logits/Conv3d_0c_1x1"]
    kernel = last["kernel"].astype(jnp.float32).reshape(-1, CLASSES)
    return jnp.matmul(x, kernel, precision=lax.Precision.HIGHEST) + last["bias"]


def _conv3d(x: Array, kernel: Array, stride: int) -> Array:
    """A 3-D convolution with SAME padding; on a CPU by the shorter of two equal sums."""
    if kernel.shape[0] != 3 or x.shape[1] < 8 or x.dtype != jnp.float32:
        return _stacked_conv3d(x, kernel, stride)
    return lax.platform_dependent(x, kernel, cpu=_winograd_conv3d, default=_stacked_conv3d)


def _stacked_conv3d(x: Array, kernel: Array, stride: int = 1) -> Array:
    """As a 2-D convolution that finds the frames under the kernel stacked in its channels.

    XLA's 2-D convolutions run two to nine times as fast as its 3-D ones on a CPU.
    """
    taps = kernel.shape[0]
    (pad,) = lax.padtype_to_pads(x.shape[1:2], (taps,), (stride,), "SAME")
    x = jnp.pad(x, ((0, 0), pad, (0, 0), (0, 0), (0, 0)))
    last = x.shape[1] - taps
    x = jnp.concatenate([x[:, i : last + i + 1 : stride] for i in range(taps)], axis=-1)
    return _conv2d(x, einops.rearrange(kernel, "t h w i o -> h w (t i) o"), stride)


# Winograd's F(4, 3): four outputs of a filter of three taps by six products (Lavin and Gray 2016).
_INPUT = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0))
_INPUT += ((0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1))
_FILTER = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6))
_FILTER += ((1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def _winograd_conv3d(x: Array, kernel: Array) -> Array:
    """By six 2-D convolutions for every four frames, where the plain sum has twelve."""

    def combine(rows: tuple, parts: Sequence[Array]) -> list[Array]:
        return [sum(c * part for c, part in zip(row, parts, strict=True) if c) for row in rows]

    frames = x.shape[1]
    fours = -(-frames // 4)
    x = jnp.pad(x, ((0, 0), (1, 4 * fours + 1 - frames), (0, 0), (0, 0), (0, 0)))
    inputs = combine(_INPUT, [x[:, i : i + 4 * fours - 3 : 4] for i in range(6)])
    products = map(_conv2d, inputs, combine(_FILTER, list(kernel)))
    y = jnp.stack(combine(_OUTPUT, list(products)), axis=2)
    return einops.rearrange(y, "n fours four h w c -> n (fours four) h w c")[:, :frames]


def _conv2d(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolves every frame of [n, t, h, w, c] alone; float32 stays float32 on every machine."""
    y = lax.conv_general_dilated(
        x.reshape(-1, *x.shape[2:]),
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _max_pool(x: Array, window: tuple[int, int, int], stride: tuple[int, int, int]) -> Array:
    """Max pool with SAME padding, one axis after the other: 3 + 3 + 3 comparisons, not 27."""
    for axis in (1, 2, 3):
        size, step = [1] * 5, [1] * 5
        size[axis], step[axis] = window[axis - 1], stride[axis - 1]
        if size[axis] > 1:
            x = lax.reduce_window(x, -jnp.inf, lax.max, size, step, "SAME")
    return x
