"""What positions are for the purpose of attention: who sees whom, described and not spelled out.

Kernels work on tiles, some hundred positions at a time, and visit only the tiles of keys that a
tile of queries needs. `needed_tiles` finds them from the descriptions alone.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

LARGEST = jnp.iinfo(jnp.int32).max
MASKED = -1e30  # a logit that nobody sees; finite, as a difference of infinities is NaN


@flax.struct.dataclass
class Rows:
    """What each position of a batch of rows is, for the purpose of attention.

    Attributes:
      segment: int32 [b, n], which clip of the row; -1 for padding and unwritten cache.
      order: int32 [b, n], a query sees keys of its segment whose order is not later than its own.
      share: of pairs of positions, about how many see each other, as far as that is known without
        the descriptors; for estimates of what attention costs, nothing else.
    """

    segment: jax.Array
    order: jax.Array
    share: float = flax.struct.field(pytree_node=False, default=1.0)


def causal_share(steps: int, segments: int = 1) -> float:
    """`Rows.share` of as many equal segments, each of `steps` equal steps of its order."""
    return (steps + 1) / (2 * steps * segments)


def visible(queries: Rows, keys: Rows) -> Bool[Array, "*b n m"]:
    """The mask that descriptors of rows, or of tiles of them, describe: [..., queries, keys]."""
    same = queries.segment[..., :, None] == keys.segment[..., None, :]
    written = keys.segment[..., None, :] >= 0
    return same & written & (keys.order[..., None, :] <= queries.order[..., :, None])


def pad_positions(x: Array, multiple: int, value=0) -> Array:
    """`x` [b, n, ...] with n raised to a multiple."""
    widths = [(0, 0), (0, -x.shape[1] % multiple)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, widths, constant_values=value)


def pad_rows(rows: Rows, multiple: int) -> Rows:
    """Rows with padding up to a multiple of so many positions."""
    return jax.tree.map(lambda x: pad_positions(x, multiple, -1), rows)


def needed_tiles(queries: Rows, keys: Rows, query_tile: int, key_tile: int) -> Bool[Array, "b i j"]:
    """Which tiles of keys hold something that some query of a tile may see.

    Both numbers of positions must be multiples of their tiles. Compares (segment, order) pairs:
    a tile of keys is needed if its first pair is not behind the queries' last one and its last
    segment not before the queries' first one. Where positions are sorted by these pairs that is
    exact but for tiles in which segments meet; else it may name too many, never too few.
    """

    def tiled(rows: Rows, tile: int) -> Rows:
        return jax.tree.map(lambda x: x.reshape(x.shape[0], -1, tile), rows)

    q, k = tiled(queries, query_tile), tiled(keys, key_tile)
    first_query = jnp.where(q.segment >= 0, q.segment, LARGEST).min(-1)[:, :, None]
    last_query = q.segment.max(-1, keepdims=True)
    last_order = jnp.where(q.segment == last_query, q.order, -1).max(-1, keepdims=True)
    first_key = jnp.where(k.segment >= 0, k.segment, LARGEST).min(-1, keepdims=True)
    first_order = jnp.where(k.segment == first_key, k.order, LARGEST).min(-1)[:, None]
    last_key, first_key = k.segment.max(-1)[:, None], first_key[..., 0][:, None]
    met = (first_key < last_query) | ((first_key == last_query) & (first_order <= last_order))
    return met & (last_key >= first_query)


def span(needed: Bool[Array, "b i j"]) -> tuple[Int[Array, "b i"], Int[Array, "b i"]]:
    """The first needed tile of each row and the one behind the last; equal where none is."""
    first = jnp.argmax(needed, axis=-1)
    end = needed.shape[-1] - jnp.argmax(needed[..., ::-1], axis=-1)
    return first.astype(jnp.int32), jnp.where(needed.any(-1), end, first).astype(jnp.int32)
