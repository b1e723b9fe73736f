"""Sampling: drives the generator over a cache, within the grammar of its sequences.

A sample depends on the parameters, the options, its class, the key and its own index, and on
nothing else in its batch (but for rounding, where batches differ in size).
"""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from evatok_jax.models import sequence
from evatok_jax.models.attention import Cache
from evatok_jax.models.generator import (
    Generator,
    check_condition,
    empty_caches,
    grow_caches,
    unstack_layers,
)
from evatok_jax.models.ragged import check_lengths
from evatok_jax.models.sequence import Progress
from evatok_jax.tokens import Tokens

# The caches start with this many positions and double as sequences grow, so that short sequences
# do not pay for the longest.
FIRST_CAPACITY = 256
MASKED = -1e30

read_sequences = jax.jit(sequence.from_sequence, static_argnums=1)


@flax.struct.dataclass
class Options:
    """How ids are drawn; what is not static may change without a new compilation.

    Attributes:
      guidance: classifier-free guidance scale s in uncond + s (cond - uncond); 1 is none.
      temperature: divides the logits; 0 takes the likeliest id.
      top_p: nucleus, in (0, 1]; 1 is off.
      top_k: only the k likeliest allowed ids; 0 is off.
      guided, greedy, nucleus: whether those three do anything.
      guidance_on_lengths: whether length tokens are guided too (EVATok does not say; default yes).
    """

    guidance: jax.Array | float
    temperature: jax.Array | float
    top_p: jax.Array | float
    top_k: int = flax.struct.field(pytree_node=False)
    guided: bool = flax.struct.field(pytree_node=False)
    greedy: bool = flax.struct.field(pytree_node=False)
    nucleus: bool = flax.struct.field(pytree_node=False)
    guidance_on_lengths: bool = flax.struct.field(pytree_node=False)


def options(
    guidance: float | int = 1.0,
    temperature: float | int = 1.0,
    top_k: int = 0,
    top_p: float | int = 1.0,
    guidance_on_lengths: bool = True,
) -> Options:
    """Checked options; the defaults are EVATok's where it states them, else LlamaGen's.

    Raises ValueError where a number is out of its range.
    """
    for name, value, fits, expected in (
        ("guidance", guidance, 0 <= guidance < np.inf, "a finite number, 0 or more"),
        ("temperature", temperature, 0 <= temperature < np.inf, "a finite number, 0 or more"),
        ("top_k", top_k, top_k >= 0, "a whole number, 0 (off) or more"),
        ("top_p", top_p, 0 < top_p <= 1, "more than 0 and at most 1 (off)"),
    ):
        if not fits:
            raise ValueError(f"{name} is {value}: it must be {expected}")
    return Options(
        guidance=float(guidance),
        temperature=float(temperature) or 1.0,
        top_p=float(top_p),
        top_k=int(top_k),
        guided=bool(guidance != 1),
        greedy=bool(temperature == 0),
        nucleus=bool(top_p < 1),
        guidance_on_lengths=guidance_on_lengths,
    )


def guide(
    cond: Float[Array, "b v"], uncond: Float[Array, "b v"], scale: Float[ArrayLike, ""]
) -> Float[Array, "b v"]:
    """Classifier-free guidance: uncond + scale (cond - uncond) (LlamaGen)."""
    return uncond + scale * (cond - uncond)


def choose(
    logits: Float[Array, "b v"], mask: Bool[Array, "b v"], keys: Key[Array, " b"], how: Options
) -> Int[Array, " b"]:
    """One allowed id per sample: temperature, then top-k, then top-p, then a draw by its own key.

    Ids that tie with the last one kept are kept.
    """
    logits = jnp.where(mask, logits, MASKED)
    if how.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = jnp.where(mask, logits / how.temperature, MASKED)
    if 0 < how.top_k < logits.shape[-1]:
        last = jax.lax.top_k(logits, how.top_k)[0][:, -1:]
        logits = jnp.where(logits >= last, logits, MASKED)
    if how.nucleus:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        p = jax.nn.softmax(ordered, axis=-1)
        # An id stays while those before it hold at most top_p together; the first always does.
        stays = jnp.cumsum(p, axis=-1) - p <= how.top_p
        last = jnp.min(jnp.where(stays, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= last, logits, MASKED)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


@flax.struct.dataclass
class State:
    """A batch of sequences being written; the guided half of its caches has no class.

    Attributes:
      ids: int32 [b, n], written so far; 0 elsewhere.
      feed: int32 [b], the id to be fed next, `step` positions after the class.
      step: int32, positions written.
      progress: where in the grammar each sample is.
      caches: of b samples, or of 2 b where guided (with class, then without).
    """

    ids: jax.Array
    feed: jax.Array
    step: jax.Array
    progress: Progress
    caches: tuple[Cache, ...]


def next_logits(
    model: Generator, params, state: State, alive: Bool[Array, " b"], how: Options
) -> tuple[Float[Array, "b v"], tuple[Cache, ...]]:
    """Guided logits of the next id of each sample, and the caches after them.

    `params` are those of `unstack_layers`.
    """
    config, grammar = model.config, model.config.grammar
    feed, batch = state.feed, state.feed.shape[0]
    if how.guided:
        null = config.class_token(jnp.int32(config.num_classes))
        feed = jnp.concatenate([feed, jnp.where(state.step == 0, null, feed)])
        alive = jnp.concatenate([alive, alive])
    logits, caches = model.apply(
        {"params": params},
        state.caches,
        feed[:, None],
        jnp.full((len(feed), 1), config.given + state.step),
        alive,
        method=Generator.decode_step,
    )
    if how.guided:
        cond, uncond = logits[:batch], logits[batch:]
        logits = guide(cond, uncond, how.guidance)
        if not how.guidance_on_lengths:
            begins = sequence.at_block_start(state.progress, grammar)
            logits = jnp.where(begins[:, None], cond, logits)
    return logits, caches


@partial(jax.jit, static_argnames=("model", "capacities"))
def sample_ids(
    model: Generator,
    params,
    classes: Int[Array, " b"],
    keys: Key[Array, " b"],
    how: Options,
    lengths: Int[Array, "b t"] | None,
    capacities: tuple[int, ...],
    condition: Int[Array, "b c"] | None = None,
) -> Int[Array, "b {capacities[-1]}"]:
    """Sequences of classes, one key per sample, 0 after their ends; may be called inside a jit.

    `lengths` forces the length tokens. `capacities` (`growing`) end with the positions that hold
    every sequence that can come. `condition` holds the codes of given frames.
    """
    config, grammar = model.config, model.config.grammar
    batch, params = classes.shape[0], unstack_layers(params)

    def body(state: State) -> State:
        progress = state.progress
        alive = ~sequence.finished(progress, grammar)
        logits, caches = next_logits(model, params, state, alive, how)
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, state.step)
        ids = choose(logits, sequence.allowed(progress, grammar), now, how)
        if lengths is not None:
            block = jnp.minimum(progress.announced, grammar.blocks - 1)
            forced = jnp.take_along_axis(grammar.length_ids(lengths), block[:, None], axis=1)[:, 0]
            ids = jnp.where(sequence.at_block_start(progress, grammar), forced, ids)
        ids = jnp.where(alive, ids, 0)
        return State(
            ids=state.ids.at[:, state.step].set(ids),
            feed=ids,
            step=state.step + 1,
            progress=sequence.advance(progress, ids, grammar),
            caches=caches,
        )

    state = State(
        ids=jnp.zeros((batch, capacities[-1]), jnp.int32),
        feed=config.class_token(classes).astype(jnp.int32),
        step=jnp.int32(0),
        progress=sequence.start(batch),
        caches=empty_caches(config, batch * (2 if how.guided else 1), 0),
    )
    if condition is not None:
        state = state.replace(caches=_fed(model, params, condition, capacities[0], how))
    for capacity in capacities:
        state = state.replace(caches=grow_caches(state.caches, config.given + capacity))

        def unfinished(state: State, capacity=capacity) -> Bool[Array, ""]:
            going = ~jnp.all(sequence.finished(state.progress, grammar))
            return going & (state.step < capacity)

        state = jax.lax.while_loop(unfinished, body, state)
    return state.ids


def _fed(model: Generator, params, condition, room: int, how: Options) -> tuple[Cache, ...]:
    """Caches that hold what is given, with room for so many positions more."""
    if how.guided:
        condition = jnp.concatenate([condition, condition])
    batch, given = condition.shape
    _, caches = model.apply(
        {"params": params},
        empty_caches(model.config, batch, given + room),
        condition,
        jnp.broadcast_to(jnp.arange(given), condition.shape),
        jnp.ones(batch, bool),
        method=Generator.decode_step,
    )
    return caches


def growing(size: int) -> tuple[int, ...]:
    """Capacities through which caches grow: doubling, and `size` at the end."""
    steps, capacity = [], FIRST_CAPACITY
    while 4 * capacity <= 3 * size:
        steps.append(capacity)
        capacity *= 2
    return (*steps, size)


def sample(
    model: Generator,
    params,
    classes,
    rng: Key[Array, ""],
    *,
    guidance: float | int = 1.0,
    temperature: float | int = 1.0,
    top_k: int = 0,
    top_p: float | int = 1.0,
    guidance_on_lengths: bool = True,
    lengths=None,
    condition=None,
    indices=None,
) -> Tokens:
    """Samples one clip's tokens for each class.

    Args:
      model, params: a generator and its parameters.
      classes: ints [b] in 0 .. num_classes; `num_classes` itself is the null class.
      rng: key of the whole set of samples.
      guidance, temperature, top_k, top_p, guidance_on_lengths: see `options`.
      lengths: ints [b, blocks], forces the tokens of each block; by default the model decides.
      condition: ints [b, config.given], the codes of given frames (frame prediction).
      indices: ints [b], each sample's number in the whole set (default 0 .. b - 1). The same rng,
        index and class give the same sample in whatever batch it is drawn.

    Raises ValueError where an option, class, length or shape does not fit.
    """
    how = options(guidance, temperature, top_k, top_p, guidance_on_lengths)
    config = model.config
    classes = check_whole("classes", classes)
    wrong = (classes < 0) | (classes > config.num_classes)
    if wrong.any():
        raise ValueError(
            f"class {classes[wrong][0]} is unknown: this generator has classes 0 to "
            f"{config.num_classes - 1}, and {config.num_classes} for none"
        )
    indices = check_whole("indices", np.arange(len(classes)) if indices is None else indices)
    if len(indices) != len(classes):
        raise ValueError(f"{len(indices)} indices do not fit {len(classes)} classes")
    if lengths is not None:
        lengths = check_lengths(lengths, config.levels, config.blocks)
        if len(lengths) != len(classes):
            raise ValueError(f"{len(lengths)} rows of lengths do not fit {len(classes)} classes")
        lengths = jnp.asarray(lengths)
    check_condition(condition, config)
    if condition is not None:
        condition = _check_codes(condition, len(classes), config.codebook_size)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.asarray(indices, jnp.uint32))
    classes, capacities = jnp.asarray(classes, jnp.int32), growing(config.grammar.longest)
    ids = sample_ids(model, params, classes, keys, how, lengths, capacities, condition)
    return read_sequences(ids, config.grammar)


def _check_codes(codes, count: int, size: int) -> Int[Array, "b c"]:
    codes = np.asarray(codes)
    if len(codes) != count:
        raise ValueError(f"{len(codes)} rows of given tokens do not fit {count} classes")
    if not np.issubdtype(codes.dtype, np.integer) or (codes < 0).any() or (codes >= size).any():
        raise ValueError(f"given tokens must be whole numbers from 0 to {size - 1}")
    return jnp.asarray(codes, jnp.int32)


def check_whole(name: str, values) -> np.ndarray:
    """A vector of whole numbers given by a user; ValueError for anything else."""
    values = np.asarray(values)
    if values.ndim != 1 or not len(values) or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"{name} must be a non-empty vector of whole numbers, not {values.dtype} "
            f"of shape {values.shape}"
        )
    return values
