"""The query pyramid: 1D queries pooled from the 2D features of their own block.

Averages over ever finer grids (1x1, 1x1, 1x2, 2x2, 2x4, ... h x w; width is split first) laid end
to end give 2 h w queries. On 16x16 patches that is exactly 512, and every level of 32..256 tokens
is exactly a prefix that ends with a whole scale (EVATok sec. 3.1 with GigaTok's pooling). A level
that ends inside a scale (96, 192, 384) holds the top rows of that scale.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def pyramid(features: Float[Array, "b t h w d"]) -> Float[Array, "b t k d"]:
    """Pools h x w features of each block into k = 2 h w queries, coarse to fine.

    The grid must be h x h or h x 2h with h a power of two (`Geometry` checks it).
    """
    b, t, h, w, d = features.shape
    scales = [features]
    while h * w > 1:
        if w > h:  # the width is split first on the way up, so it is joined last on the way down
            features = features.reshape(b, t, h, w // 2, 2, d).mean(axis=4)
        else:
            features = features.reshape(b, t, h // 2, 2, w, d).mean(axis=3)
        h, w = features.shape[2:4]
        scales.append(features)
    scales.append(features)  # the global mean stands twice: 1 + 1 + 2 + 4 + ... = 2 h w
    return jnp.concatenate([s.reshape(b, t, -1, d) for s in reversed(scales)], axis=2)
