"""The Q-Former video tokenizer (EVATok sec. 3.1): patches -> ragged 1D tokens -> patches.

Encoder: 1D queries, pooled from the patches of their own block, read the patches. Decoder: 3D
queries, one for each patch, read the 1D tokens. Both halves are block-causal in self- and
cross-attention, so each also runs block by block over a cache, and the full pass equals its block
steps: search, streaming and the generator's decoder stand on that.
"""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from evatok_jax.geometry import Geometry
from evatok_jax.models.attention import TRUNCATED, Cache, MultiHeadAttention, Rows, empty_cache
from evatok_jax.models.positions import patch_places, query_places, sincos
from evatok_jax.models.pyramid import pyramid
from evatok_jax.models.quantizers import Quantized, make_quantizer
from evatok_jax.models.ragged import Layout, block_rows, layout, look_up, take_firsts, take_slots
from evatok_jax.models.sizes import CNNS, CnnConfig, StackConfig
from evatok_jax.models.stack import Stack
from evatok_jax.models.stems import make_stem


@dataclass(frozen=True)
class TokenizerConfig:
    """Everything that shapes a tokenizer's parameters and arithmetic.

    Attributes:
      geometry: clip, patch and token levels.
      encoder, decoder: the two Q-Former stacks ("S-B": 512/6/8 and 768/12/12).
      stem: "linear" (the paper's, for video) or "cnn" (GigaTok's hybrid, for images); see `stems`.
      cnn: the CNN of that stem.
      quantizer: "vq" (the paper's), or "svq", "fsq", "lfq", "kl" (`quantizers`).
      codebook_size, code_dim: the codebook (16384 x 8 by default, GigaTok).
      quantizer_levels: of each channel, for FSQ; sampling: the temperature of SVQ.
      bottleneck: width of the projection between the stacks and the codebook.
      entropy_temperature: of the soft assignment in the entropy loss.
      qk_norm: whether attention normalises queries and keys (GigaTok's option, off by default).
      position_init, position_std: how the learned positions start: "normal" with that std (GigaTok:
        0.02), or "sincos" (see `positions`) of that size. They are added to normalised features,
        and it takes thousands of steps until small random ones tell places apart: short runs use
        the second.
      dtype: compute type of the stacks; norms, softmax and codebook distances stay in fp32.
      attention: back end (`attention.BACKENDS`); "auto" takes what fits the device.
      unroll: layers of a scan that are unrolled (speed against compile time).
      remat: what of a layer the backward pass computes again (`remat.POLICIES`).
    """

    geometry: Geometry
    encoder: StackConfig
    decoder: StackConfig
    stem: str = "linear"
    cnn: CnnConfig = CNNS["S-B"]
    quantizer: str = "vq"
    codebook_size: int = 16384
    code_dim: int = 8
    quantizer_levels: tuple[int, ...] = ()
    sampling: float = 0.03
    bottleneck: int = 256
    entropy_temperature: float = 0.01
    qk_norm: bool = False
    position_init: str = "normal"
    position_std: float = 0.02
    dtype: str = "float32"
    attention: str = "auto"
    unroll: int = 1
    remat: str = "none"

    def __post_init__(self):
        if self.position_init not in ("normal", "sincos"):
            raise ValueError(
                f"position_init must be 'normal' or 'sincos', not {self.position_init!r}"
            )
        self.make_quantizer()  # raises where its settings do not fit

    def make_quantizer(self) -> nn.Module:
        """The quantiser that these settings describe."""
        return make_quantizer(
            self.quantizer,
            self.codebook_size,
            self.code_dim,
            self.quantizer_levels,
            self.entropy_temperature,
            self.sampling,
        )

    @property
    def continuous(self) -> bool:
        """Whether tokens are vectors without ids."""
        return self.quantizer == "kl"


@flax.struct.dataclass
class StepCache:
    """Self- and cross-attention caches of a stack, stacked over its layers."""

    self_attention: Cache
    cross_attention: Cache


@flax.struct.dataclass
class Side:
    """The fixed inputs of a stack: positions and descriptors of queries, and the references.

    Attributes:
      queries: Rows of the queries; positions: [b, n, d] added to their q and k.
      references: Rows of the references; reference_k: [b, m, d] with position, reference_v without.
      query_count, reference_count: int32 [b], real positions, for appending to caches.
    """

    queries: Rows
    positions: jax.Array
    references: Rows
    reference_k: jax.Array
    reference_v: jax.Array
    query_count: jax.Array
    reference_count: jax.Array


class QFormerLayer(nn.Module):
    """Self-attention over queries, cross-attention to references, MLP; pre-norm (GigaTok).

    Carries x, and what x was after layer `tap` if that is wanted.
    """

    stack: StackConfig
    dtype: jnp.dtype
    qk_norm: bool
    backend: str

    @nn.compact
    def __call__(self, carry, side: Side, tap, number, cache: StepCache | None):
        x, tapped = carry
        width, heads = self.stack.width, self.stack.heads

        def norm(name, x):
            return nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name=name)(x).astype(self.dtype)

        past = (None, None) if cache is None else (cache.self_attention, cache.cross_attention)
        h = norm("self_norm", x)
        placed = h + side.positions
        attention = partial(
            MultiHeadAttention, width, heads, self.dtype, self.qk_norm, self.backend
        )
        h, own = attention(name="self_attention")(
            placed, placed, h, side.queries, side.queries, past[0], side.query_count
        )
        x = x + h
        h = norm("cross_norm", x) + side.positions
        h, cross = attention(name="cross_attention")(
            h,
            side.reference_k,
            side.reference_v,
            side.queries,
            side.references,
            past[1],
            side.reference_count,
        )
        x = x + h
        h = norm("mlp_norm", x)
        h = nn.Dense(4 * width, dtype=self.dtype, kernel_init=TRUNCATED, name="mlp_in")(h)
        h = nn.gelu(h, approximate=False)
        h = nn.Dense(width, dtype=self.dtype, kernel_init=TRUNCATED, name="mlp_out")(h)
        x = x + h
        if tapped is not None:
            tapped = jnp.where(number == tap, x, tapped)
        return (x, tapped), None if cache is None else StepCache(own, cross)


class QFormer(nn.Module):
    """A stack of Q-Former layers, scanned over stacked parameters."""

    stack: StackConfig
    dtype: jnp.dtype
    qk_norm: bool = False
    unroll: int = 1
    remat: str = "none"
    backend: str = "auto"

    @nn.compact
    def __call__(self, x, side: Side, cache: StepCache | None = None, tap: int = 0):
        """x after all layers and after layer `tap` (None for 0), and the cache."""
        layers = Stack(
            QFormerLayer,
            (self.stack, self.dtype, self.qk_norm, self.backend),
            self.stack.layers,
            self.dtype,
            in_axes=(nn.broadcast, nn.broadcast, 0, 0),
            remat=self.remat,
            unroll=self.unroll,
            name="layers",
        )
        numbers = 1 + jnp.arange(self.stack.layers)
        carry, args = (x, x if tap else None), (side, jnp.asarray(tap), numbers, cache)
        (x, tapped), cache = layers(carry, *args, split=cache is None)
        return x, tapped, cache

    def empty_cache(self, batch: int, queries: int, references: int) -> StepCache:
        """A cache with room for that many queries and references."""

        def stacked(capacity):
            heads = self.stack.heads
            cache = empty_cache(batch, capacity, heads, self.stack.width // heads, self.dtype)
            return jax.tree.map(lambda x: jnp.stack([x] * self.stack.layers), cache)

        return StepCache(stacked(queries), stacked(references))


class Tokenizer(nn.Module):
    """Encoder, codebook and decoder. Pixels are floats in [-0.5, 0.5]."""

    config: TokenizerConfig

    def setup(self):
        c = self.config
        g = c.geometry
        dtype = jnp.dtype(c.dtype)

        def dense(width):
            return nn.Dense(width, dtype=dtype, kernel_init=TRUNCATED)

        def norm():
            return nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32)

        def table(name, places, width):
            init = nn.initializers.truncated_normal(c.position_std)
            if c.position_init == "sincos":

                def init(key, shape):
                    return c.position_std * jnp.asarray(sincos(places, *shape[::2]))

            return self.param(name, init, (g.blocks, len(places), width))

        patches, slots = patch_places(*g.grid), query_places(*g.grid)[: g.max_block]
        self.patch_in, self.pixel_out = make_stem(c.stem, c.encoder.width, g, c.cnn, dtype, c.remat)
        self.query_in = dense(c.encoder.width)
        self.encoder = QFormer(c.encoder, dtype, c.qk_norm, c.unroll, c.remat, c.attention)
        self.encoder_patch_positions = table("enc_pos3d", patches, c.encoder.width)
        self.encoder_token_positions = table("enc_pos1d", slots, c.encoder.width)
        self.quantizer = c.make_quantizer()
        self.latent_norm, self.latent_mid, self.latent_out = (
            norm(),
            dense(c.bottleneck),
            nn.Dense(self.quantizer.inputs, kernel_init=TRUNCATED),
        )
        self.code_in, self.code_norm, self.code_out = (
            dense(c.bottleneck),
            norm(),
            dense(c.decoder.width),
        )
        self.decoder = QFormer(c.decoder, dtype, c.qk_norm, c.unroll, c.remat, c.attention)
        self.decoder_patch_positions = table("dec_pos3d", patches, c.decoder.width)
        self.decoder_token_positions = table("dec_pos1d", slots, c.decoder.width)
        self.pixel_norm = norm()

    # ---- whole clips ---------------------------------------------------------------------------

    def __call__(
        self, video: Float[Array, "b f h w 3"], lengths: Int[Array, "b t"], size: int
    ) -> tuple[Float[Array, "b f h w 3"], Quantized]:
        """Reconstructs clips under an assignment, each in a row of `size` 1D tokens."""
        quantized = self.quantizer(self.encode(video, lengths, size), layout(lengths, size))
        return self.decode(quantized.vectors, lengths), quantized

    def training_pass(
        self,
        video: Float[Array, "b f h w 3"],
        rows: Layout,
        keys: Key[Array, " b"],
        tap: int = 0,
    ) -> tuple[Float[Array, "b f h w 3"], Quantized, Float[Array, "b n d"] | None]:
        """As a call, but quantisers that sample do so, by one key a clip, and features come along.

        They are those of the 3D queries after decoder layer `tap`, counted from 1; None for 0.
        Clips may share rows; each is treated as if it were alone.
        """
        z, _ = self._encode(video, rows, 0, None)
        quantized = self.quantizer(z, rows, keys)
        video, tapped, _ = self._decode(quantized.vectors, rows, 0, None, tap)
        return video, quantized, tapped

    def encode(
        self, video: Float[Array, "b f h w 3"], lengths: Int[Array, "b t"], size: int
    ) -> Float[Array, "b s c"]:
        """Latents before the quantiser, not yet normalised; [b, size, quantizer.inputs]."""
        z, _ = self._encode(video, layout(lengths, size), 0, None)
        return z

    def decode(
        self, vectors: Float[Array, "b s c"], lengths: Int[Array, "b t"]
    ) -> Float[Array, "b f h w 3"]:
        """Pixels from code vectors; not clamped."""
        video, _, _ = self._decode(vectors, layout(lengths, vectors.shape[1]), 0, None)
        return video

    def quantize(self, z: Float[Array, "b s c"], rows: Layout) -> Quantized:
        """Nearest codes of latents."""
        return self.quantizer(z, rows)

    def look_up(self, codes: Int[Array, "b s"]) -> Float[Array, "b s c"]:
        """Code vectors of ids, as `decode` wants them."""
        return self.quantizer.look_up(codes)

    # ---- block by block ------------------------------------------------------------------------

    def encoder_cache(self, batch: int) -> StepCache:
        """An empty cache for `encode_step`."""
        g = self.config.geometry
        return self.encoder.empty_cache(batch, g.max_length, g.blocks * g.block_patches)

    def decoder_cache(self, batch: int) -> StepCache:
        """An empty cache for `decode_step`."""
        g = self.config.geometry
        return self.decoder.empty_cache(batch, g.blocks * g.block_patches, g.max_length)

    def encode_step(
        self,
        cache: StepCache,
        frames: Float[Array, "b f h w 3"],
        lengths: Int[Array, " b"],
        block: Int[Array, ""],
        size: int,
    ) -> tuple[StepCache, Float[Array, "b s c"]]:
        """Latents of one block: `lengths` tokens in `size` positions, given earlier blocks."""
        rows = layout(lengths[:, None], size, first_block=block)
        z, cache = self._encode(frames, rows, block, cache)
        return cache, z

    def decode_step(
        self,
        cache: StepCache,
        vectors: Float[Array, "b s c"],
        lengths: Int[Array, " b"],
        block: Int[Array, ""],
    ) -> tuple[StepCache, Float[Array, "b f h w 3"]]:
        """Frames of one block from its tokens' vectors, given the earlier blocks."""
        rows = layout(lengths[:, None], vectors.shape[1], first_block=block)
        frames, _, cache = self._decode(vectors, rows, block, cache)
        return cache, frames

    # ---- shared by both: t blocks from `first` on ----------------------------------------------

    def _encode(self, video, rows: Layout, first, cache):
        features = self.patch_in(video)
        b, t, p = features.shape[:3]
        grid = features.reshape(b, t, *self.config.geometry.grid, -1)
        local = rows.replace(block=jnp.where(rows.valid, rows.block - first, 0))
        queries = self.query_in(take_slots(pyramid(grid), local))
        positions = _blocks(self.encoder_patch_positions, first, t).astype(features.dtype)
        placed = features + positions
        per_row = rows.clips * t * p
        side = Side(
            queries=rows.rows,
            positions=look_up(self.encoder_token_positions, rows).astype(queries.dtype),
            references=block_rows(b, t, p, first, rows.clips),
            reference_k=placed.reshape(-1, per_row, placed.shape[-1]),
            reference_v=features.reshape(-1, per_row, features.shape[-1]),
            query_count=rows.lengths.sum(axis=1),
            reference_count=jnp.full(b // rows.clips, per_row, jnp.int32),
        )
        x, _, cache = self.encoder(queries, side, cache)
        x = self.latent_mid(self.latent_norm(x))
        return self.latent_out(x.astype(jnp.float32)), cache

    def _decode(self, vectors, rows: Layout, first, cache, tap: int = 0):
        r, per_row = rows.lengths.shape
        b, t, p = r * rows.clips, per_row // rows.clips, self.config.geometry.block_patches
        tokens = self.code_out(self.code_norm(self.code_in(vectors)))
        # The 3D queries of a block all start as its first token; positions tell them apart.
        queries = jnp.repeat(take_firsts(tokens, rows), p, axis=1)
        positions = _blocks(self.decoder_patch_positions, first, t).astype(queries.dtype)
        places = look_up(self.decoder_token_positions, rows)
        side = Side(
            queries=block_rows(b, t, p, first, rows.clips),
            positions=jnp.tile(positions.reshape(1, t * p, -1), (1, rows.clips, 1)),
            references=rows.rows,
            reference_k=tokens + places.astype(tokens.dtype),
            reference_v=tokens,
            query_count=jnp.full(r, per_row * p, jnp.int32),
            reference_count=rows.lengths.sum(axis=1),
        )
        x, tapped, cache = self.decoder(queries, side, cache, tap)
        x, tapped = jax.tree.map(lambda x: x.reshape(b, t * p, -1), (x, tapped))
        return self.pixel_out(self.pixel_norm(x)), tapped, cache


def _blocks(table, first, count: int):
    """`count` entries of a per-block table from block `first` on."""
    return jax.lax.dynamic_slice_in_dim(table, first, count, 0)
