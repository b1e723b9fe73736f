"""The generator: a Llama-like decoder over a class, then length and visual tokens.

EVATok's AR model, with LlamaGen's shapes and choices: pre-norm RMSNorm, SwiGLU, no biases, learned
absolute positions, untied embeddings, an output head that starts at zero, and one class more than
there are, the null class of classifier-free guidance. Input ids number all of it in one row: codes,
levels (`models/sequence.py`), then classes (`GeneratorConfig.class_token`).

For frame prediction the codes of given frames stand before the class, which then is the separator;
the clip is written whole, given frames included (EVATok sec. 4.1, Kinetics-600).
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, Key

from evatok_jax.models.attention import Cache, append, attend, empty_cache
from evatok_jax.models.dropout import drop, split_keys
from evatok_jax.models.rows import Rows, causal_share
from evatok_jax.models.sequence import Grammar
from evatok_jax.models.stack import Stack

NORMAL = nn.initializers.normal(0.02)


@dataclass(frozen=True)
class GeneratorConfig:
    """Everything that shapes a generator's parameters and arithmetic.

    Attributes:
      codebook_size, levels, blocks: the grammar of its sequences.
      num_classes: classes, without the null class.
      width, layers, heads: of the transformer ("GPT-B": 768, 12, 12).
      ffn_multiple: the SwiGLU is 8/3 width wide, rounded up to a multiple of this.
      token_dropout, residual_dropout, ffn_dropout: rates in training.
      class_dropout: share of training samples that see the null class.
      condition: tokens of each block of given frames, which stand before the class; () is none.
      condition_frames: frames that are given; the last one fills up the blocks of `condition`.
      dtype: compute type; norms, softmax and logits stay in fp32.
      attention: back end (`attention.BACKENDS`); "auto" takes what fits the device.
      unroll: layers of the scan that are unrolled (speed against compile time).
      remat: what of a layer the backward pass computes again (`remat.POLICIES`).

    Raises ValueError where heads do not divide the width or the levels are not increasing.
    """

    codebook_size: int
    levels: tuple[int, ...]
    blocks: int
    num_classes: int
    width: int
    layers: int
    heads: int
    ffn_multiple: int = 256
    token_dropout: float = 0.1
    residual_dropout: float = 0.1
    ffn_dropout: float = 0.1
    class_dropout: float = 0.1
    condition: tuple[int, ...] = ()
    condition_frames: int = 0
    dtype: str = "float32"
    attention: str = "auto"
    unroll: int = 1
    remat: str = "none"

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.width}")
        if not self.levels or list(self.levels) != sorted(set(self.levels)) or self.levels[0] < 1:
            raise ValueError(f"levels must be positive and strictly increasing, not {self.levels}")

    @property
    def grammar(self) -> Grammar:
        """Of the sequences that the model knows."""
        return Grammar(self.codebook_size, self.levels, self.blocks)

    @property
    def given(self) -> int:
        """Tokens that stand before the class: 640 for Kinetics-600."""
        return sum(self.condition)

    @property
    def positions(self) -> int:
        """Of the longest sequence with its class: 2053 for paper128, and what is given."""
        return self.given + 1 + self.grammar.longest

    @property
    def ffn_width(self) -> int:
        """Hidden width of the SwiGLU."""
        return -(-(8 * self.width // 3) // self.ffn_multiple) * self.ffn_multiple

    def class_token(self, classes: Int[Array, "*b"]) -> Int[Array, "*b"]:
        """Input ids of classes; `num_classes` is the null class."""
        return self.grammar.vocab + classes


class Layer(nn.Module):
    """Causal self-attention and SwiGLU, each behind an RMSNorm and without biases."""

    config: GeneratorConfig

    def setup(self):
        config, dtype = self.config, jnp.dtype(self.config.dtype)

        def dense(features):
            return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=NORMAL)

        self.attention_norm = nn.RMSNorm(1e-5, jnp.float32)
        self.q, self.k, self.v = (dense(config.width) for _ in range(3))
        self.out = dense(config.width)
        self.ffn_norm = nn.RMSNorm(1e-5, jnp.float32)
        self.gate, self.up = dense(config.ffn_width), dense(config.ffn_width)
        self.down = dense(config.width)

    def project(self, x):
        x = self.attention_norm(x)
        parts = (project(x) for project in (self.q, self.k, self.v))
        return [part.reshape(*x.shape[:-1], self.config.heads, -1) for part in parts]

    @jax.named_scope("ffn")
    def ffn(self, x):
        x = self.ffn_norm(x)
        return self.down(nn.silu(self.gate(x)) * self.up(x))

    def attended(self, q, k, v, queries: Rows, keys: Rows):
        x = attend(q, k, v, queries, keys, backend=self.config.attention)
        return self.out(x.reshape(*x.shape[:-2], -1))

    def __call__(
        self,
        x: Float[Array, "b n d"],
        rows: Rows,
        keys: Key[Array, "2 b"] | None,
    ) -> tuple[Float[Array, "b n d"], None]:
        """The whole sequence at once; returns x and nothing, as `nn.scan` wants it."""
        residual_keys, ffn_keys = (None, None) if keys is None else keys
        out = self.attended(*self.project(x), rows, rows)
        x = x + drop(out, self.config.residual_dropout, residual_keys)
        return x + drop(self.ffn(x), self.config.ffn_dropout, ffn_keys), None

    def step(
        self, x: Float[Array, "b n d"], rows: Rows, cache: Cache, count: Int[Array, " b"]
    ) -> tuple[Float[Array, "b n d"], Cache]:
        """The next positions over a cache of the earlier ones (`empty_caches`)."""
        heads = self.config.heads
        q, k, v = self.project(x)
        # See `empty_caches` for why heads ride in the batch of a cache.
        k, v = (rearrange(part, "b n h d -> (b h) n 1 d") for part in (k, v))
        spread = jax.tree.map(lambda each: jnp.repeat(each, heads, 0), (rows, count))
        cache = append(cache, k, v, *spread)
        k, v = (rearrange(part, "(b h) m 1 d -> b m h d", h=heads) for part in (cache.k, cache.v))
        keys = jax.tree.map(lambda each: each[::heads], cache.rows)
        x = x + self.attended(q, k, v, rows, keys)
        return x + self.ffn(x), cache


class Generator(nn.Module):
    """Next-token logits for sequences of a grammar, given a class."""

    config: GeneratorConfig

    def setup(self):
        config = self.config
        dtype = jnp.dtype(config.dtype)
        self.token_embedding = self.param(
            "token_embedding", NORMAL, (config.grammar.vocab, config.width)
        )
        self.class_embedding = self.param(
            "class_embedding", NORMAL, (config.num_classes + 1, config.width)
        )
        self.position_embedding = self.param(
            "position_embedding", NORMAL, (config.positions, config.width)
        )
        self.layers = Stack(
            Layer,
            (config,),
            config.layers,
            dtype,
            in_axes=(nn.broadcast, 0),
            remat=config.remat,
            unroll=config.unroll,
        )
        self.norm = nn.RMSNorm(1e-5, jnp.float32)
        self.head = self.param("head", nn.initializers.zeros, (config.width, config.grammar.vocab))
        self.dtype = dtype

    @jax.named_scope("embed")
    def embed(self, ids: Int[Array, "b n"], positions: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        vocab = self.config.grammar.vocab
        token = self.token_embedding[jnp.minimum(ids, vocab - 1)]
        label = self.class_embedding[jnp.maximum(ids - vocab, 0)]
        x = jnp.where((ids >= vocab)[..., None], label, token)
        return (x + self.position_embedding[positions]).astype(self.dtype)

    @jax.named_scope("logits")
    def logits(self, x: Float[Array, "b n d"]) -> Float[Array, "b n v"]:
        x, head = self.norm(x).astype(self.dtype), self.head.astype(self.dtype)
        return jnp.einsum("bnd,dv->bnv", x, head, preferred_element_type=jnp.float32)

    def __call__(
        self,
        classes: Int[Array, " b"],
        ids: Int[Array, "b n"],
        keys: Key[Array, " b"] | None = None,
        condition: Int[Array, "b c"] | None = None,
    ) -> Float[Array, "b n v"]:
        """Logits in fp32 whose entry [:, i] predicts ids[:, i] from all that stands before it.

        `keys`, one per sample, switch the dropouts on (training); without them nothing is random.
        `condition` holds the codes of given frames. Padding at the end of a sequence reaches no
        earlier position.

        Raises ValueError for more positions than the longest sequence has, or another number of
        given tokens than the model is for.
        """
        config = self.config
        if config.given + ids.shape[1] > config.positions:
            raise ValueError(
                f"sequences of {ids.shape[1]} ids do not fit a generator with "
                f"{config.positions} positions"
            )
        check_condition(condition, config)
        before = [] if condition is None else [condition]
        label = config.class_token(classes)[:, None]
        inputs = jnp.concatenate([*before, label, ids[:, :-1]], axis=1)
        positions = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
        x = self._features(inputs, jnp.zeros_like(positions), positions, keys)
        return self.logits(x[:, config.given :])

    def packed(
        self,
        inputs: Int[Array, "r n"],
        segment: Int[Array, "r n"],
        position: Int[Array, "r n"],
        keys: Key[Array, " r"] | None = None,
    ) -> Float[Array, "r n v"]:
        """Logits in fp32 for what follows each input of rows that `models/packed.py` describes.

        Every clip of a row is predicted as if it were alone. `keys`, one a row, switch the dropouts
        on (training).
        """
        return self.logits(self._features(inputs, segment, position, keys))

    def _features(self, inputs, segment, position, keys):
        config = self.config
        token_keys = layer_keys = None
        if keys is not None:
            keys = split_keys(keys, 2 + 2 * config.layers)
            class_keys, token_keys = keys[0], keys[1]
            layer_keys = keys[2:].reshape(config.layers, 2, -1)
            shape = inputs.shape[1:]
            dropped = jax.vmap(lambda k: jax.random.bernoulli(k, config.class_dropout, shape))
            unlabelled = (inputs >= config.grammar.vocab) & dropped(class_keys)
            inputs = jnp.where(
                unlabelled, config.class_token(jnp.int32(config.num_classes)), inputs
            )
        x = drop(self.embed(inputs, position), config.token_dropout, token_keys)
        rows = Rows(segment, position, causal_share(inputs.shape[1]))
        x, _ = self.layers(x, rows, layer_keys)
        return x

    def decode_step(
        self,
        caches: tuple[Cache, ...],
        ids: Int[Array, "b n"],
        positions: Int[Array, "b n"],
        alive: Bool[Array, " b"],
    ) -> tuple[Float[Array, "b v"], tuple[Cache, ...]]:
        """Logits in fp32 for what follows the n next ids, which stand at `positions`.

        Takes the parameters of `unstack_layers` and the caches of `empty_caches`. Samples that are
        not `alive` write nothing, and their logits mean nothing.
        """
        x = self.embed(ids, positions)
        rows = Rows(jnp.where(alive[:, None], jnp.zeros_like(positions), -1), positions)
        count = alive * jnp.int32(ids.shape[1])
        layers = self.variables["params"]["layers"]
        layer, after = Layer(self.config, parent=None), []
        for index, cache in enumerate(caches):
            own = {"params": layers[str(index)]}
            with jax.named_scope("layers"):
                x, cache = layer.apply(own, x, rows, cache, count, method=Layer.step)
            after.append(cache)
        return self.logits(x[:, -1:])[:, 0], tuple(after)


def check_condition(condition, config: GeneratorConfig) -> None:
    """Raises ValueError unless as many tokens are given as the model is for."""
    count = 0 if condition is None else condition.shape[1]
    if count != config.given:
        raise ValueError(
            f"{count} given tokens: this generator is for {config.given}"
            + (f" ({config.condition_frames} frames)" if config.given else "")
        )


def unstack_layers(params: dict) -> dict:
    """Parameters for `Generator.decode_step`: a tree per layer instead of one with stacked arrays.

    A decoding loop would copy each layer's slice of the stack at every step; the barrier keeps the
    compiler from moving the slicing back into the loop.
    """
    stacked = params["layers"]
    depth = jax.tree.leaves(stacked)[0].shape[0]
    layers = {str(i): jax.tree.map(lambda p, i=i: p[i], stacked) for i in range(depth)}
    return {**params, "layers": jax.lax.optimization_barrier(layers)}


def empty_caches(config: GeneratorConfig, batch: int, capacity: int) -> tuple[Cache, ...]:
    """Caches for `Generator.decode_step`, one per layer, so that a loop updates each in place.

    Heads ride in the batch of a cache: each then reads one contiguous [capacity, head_dim] matrix,
    five times as fast on a CPU as picking its rows out of [capacity, heads, head_dim].
    """
    rows, head_dim = batch * config.heads, config.width // config.heads
    dtype = jnp.dtype(config.dtype)
    return tuple(empty_cache(rows, capacity, 1, head_dim, dtype) for _ in range(config.layers))


def grow_caches(caches: tuple[Cache, ...], capacity: int) -> tuple[Cache, ...]:
    """The same caches with room for `capacity` positions."""

    def grow(cache):
        more = capacity - cache.k.shape[1]

        def pad(x, value):
            return jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2), constant_values=value)

        rows = jax.tree.map(lambda x: pad(x, -1), cache.rows)
        return Cache(pad(cache.k, 0), pad(cache.v, 0), rows, cache.cursor)

    return tuple(map(grow, caches))
