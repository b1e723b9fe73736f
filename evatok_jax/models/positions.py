"""Where positions are and how their learned embeddings may start.

Queries and references have separate tables, so at a random start attention knows nothing of
nearness and must learn every pair of places. Tables that start as one sine-cosine code of (block,
row, column) let it learn "look near my place" once for all; they are learned from there on.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def patch_places(rows: int, columns: int) -> np.ndarray:
    """Centres of the patches of a block in patch units, float32 [rows * columns, 2]."""
    i, j = np.meshgrid(np.arange(rows) + 0.5, np.arange(columns) + 0.5, indexing="ij")
    return np.stack([i.ravel(), j.ravel()], axis=1).astype(np.float32)


def query_places(rows: int, columns: int) -> np.ndarray:
    """Centres of the pyramid's cells, in the order of `pyramid`, float32 [2 rows columns, 2]."""
    grids, (h, w) = [], (rows, columns)
    while True:
        grids.append(patch_places(h, w) * np.float32([rows / h, columns / w]))
        if h * w == 1:
            return np.concatenate([grids[-1], *reversed(grids)])  # the 1 x 1 scale stands twice
        h, w = (h, w // 2) if w > h else (h // 2, w)


def sincos(
    places: Float[np.ndarray, "n 2"], blocks: int, width: int
) -> Float[Array, "{blocks} n {width}"]:
    """Sine-cosine codes of (block, row, column), variance about 1.

    An eighth of the width is for the block (counted as four patches apart), the rest for the place.
    """
    own = width // 16 * 2
    parts = []
    times = jnp.broadcast_to(4.0 * jnp.arange(blocks)[:, None], (blocks, len(places)))
    rows, columns = (jnp.broadcast_to(places[:, a], times.shape) for a in (0, 1))
    left = (width - own) // 4 * 2
    for value, size in ((times, own), (rows, left), (columns, width - own - left)):
        half = -(-size // 2)
        angle = value[..., None] * 32.0 ** (-jnp.arange(half) / half)
        parts.append(jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)[..., :size])
    return jnp.sqrt(2.0) * jnp.concatenate(parts, axis=-1)
