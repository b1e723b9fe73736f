"""NVIDIA's fused attention through JAX's own door, `jax.nn.dot_product_attention`.

That door knows causal masks and windows that are fixed when a program is traced; cuDNN's packed
sequences stand behind it and are not public. Our masks are data, so they go in as an array that all
heads share, which JAX turns into a bias of the queries' type; the backward pass writes a gradient
of it that nobody reads, as large. Logits of single heads are never stored.
"""

import jax
import jax.extend.backend
import jax.numpy as jnp
from jaxtyping import Array, Float

from evatok_jax.models.rows import Rows, pad_positions, pad_rows, visible
from evatok_jax.sharding import per_device

DTYPES = (jnp.bfloat16, jnp.float16)
LARGEST_HEAD = 128
OLDEST_GPU = 8.0  # compute capability: Ampere


def supports(dtype, head_dim: int) -> bool:
    """Whether this process's GPU has cuDNN's kernel for this type and size of heads."""
    return _has_kernel(dtype, head_dim) and _on_device()


def attend(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    queries: Rows,
    keys: Rows,
) -> Float[Array, "b n h d"]:
    """Softmax attention; forward and backward are cuDNN's, on each device for its own rows.

    Raises ValueError for a type or head size that it has no kernel for, RuntimeError where there
    is no GPU with cuDNN's attention.
    """
    if not _has_kernel(q.dtype, q.shape[-1]):
        raise ValueError(
            f"cuDNN's attention is for bfloat16 and float16 with heads of at most {LARGEST_HEAD} "
            f"channels, a multiple of 8: not for {q.dtype} with {q.shape[-1]}. Use a dtype of "
            "these, or attention='xla'"
        )
    if not _on_device():
        raise RuntimeError(
            "attention='cudnn' needs an NVIDIA GPU of compute capability "
            f"{OLDEST_GPU} (Ampere) or later and jax[cuda]: this process runs on "
            f"{jax.local_devices()[0].device_kind!r}. Leave attention='auto' to take what fits the "
            "device"
        )
    # JAX's partitioner would take the shardings of queries and mask as they come, and may refuse.
    return per_device(_attend)(q, k, v, queries, keys)


def _has_kernel(dtype, head_dim: int) -> bool:
    return dtype in DTYPES and head_dim % 8 == 0 and head_dim <= LARGEST_HEAD


def _on_device() -> bool:
    backend = jax.extend.backend.get_backend()
    if "cuda" not in backend.platform_version:
        return False
    return float(backend.local_devices()[0].compute_capability) >= OLDEST_GPU


def _attend(q, k, v, queries: Rows, keys: Rows) -> Float[Array, "b n h d"]:
    n = q.shape[1]
    # Its backward pass wants even lengths.
    q, k, v = (pad_positions(x, 2) for x in (q, k, v))
    mask = visible(pad_rows(queries, 2), pad_rows(keys, 2))[:, None]
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, scale=1.0, implementation="cudnn")
    return out[:, :n]
