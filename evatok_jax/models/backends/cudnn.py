"""NVIDIA's fused attention through JAX's own door, `jax.nn.dot_product_attention`.

That door knows causal masks and windows that are fixed when a program is traced; cuDNN's packed
sequences stand behind it and are not public. Our masks are data, so they go in as an array, one
number for each pair of positions that all heads share. Logits are never stored.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from evatok_jax.models.rows import Rows, pad_positions, pad_rows, visible

DTYPES = (jnp.bfloat16, jnp.float16)
LARGEST_HEAD = 128


def supports(dtype, head_dim: int) -> bool:
    """Whether cuDNN has a kernel for this type and size of heads."""
    return dtype in DTYPES and head_dim % 8 == 0 and head_dim <= LARGEST_HEAD


def attend(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    queries: Rows,
    keys: Rows,
) -> Float[Array, "b n h d"]:
    """Softmax attention; forward and backward are cuDNN's.

    Raises ValueError for a type or head size that it has no kernel for, RuntimeError where there
    is no GPU with cuDNN.
    """
    if not supports(q.dtype, q.shape[-1]):
        raise ValueError(
            f"cuDNN's attention is for bfloat16 and float16 with heads of at most {LARGEST_HEAD} "
            f"channels, a multiple of 8: not for {q.dtype} with {q.shape[-1]}. Use a dtype of "
            "these, or attention='xla'"
        )
    if jax.default_backend() != "gpu":
        raise RuntimeError(
            "attention='cudnn' needs an NVIDIA GPU with cuDNN and jax[cuda]: this process runs on "
            f"{jax.default_backend()!r}. Leave attention='auto' to take what fits the device"
        )
    n = q.shape[1]
    # Its backward pass wants even lengths.
    q, k, v = (pad_positions(x, 2) for x in (q, k, v))
    mask = visible(pad_rows(queries, 2), pad_rows(keys, 2))[:, None]
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, scale=1.0, implementation="cudnn")
    return out[:, :n]
