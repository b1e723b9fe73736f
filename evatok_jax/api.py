"""The door for code: `load()`, `Tokenizer`, `Generator`, on NumPy uint8 video.

tokenizer = evatok_jax.load("runs/final")
tokens = tokenizer.encode(clips)          # clips: uint8 [n, frames, height, width, 3]
video = tokenizer.decode(tokens)
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from evatok_jax import engine
from evatok_jax.allocation.assignments import all_assignments
from evatok_jax.chunks import in_chunks
from evatok_jax.losses.next_token import next_token_loss
from evatok_jax.models.build import build_generator, build_router, build_tokenizer
from evatok_jax.models.ragged import check_lengths, layout, static_size
from evatok_jax.models.router import scores
from evatok_jax.pixels import check_clips, to_model, to_uint8
from evatok_jax.storage.export import Export, load_export
from evatok_jax.tokens import Tokens


def load(directory: str | Path) -> "Tokenizer | Generator":
    """What an export directory, or the workdir of a finished job, holds.

    Raises ValueError where it holds neither a tokenizer nor a generator, or anything in it is off.
    """
    export = open_export(directory)
    if export.kind == "tokenizer":
        return Tokenizer(export)
    if export.kind == "generator":
        return Generator(export)
    raise ValueError(f"{directory} holds a {export.kind}: load() opens tokenizers and generators")


def open_export(directory: str | Path) -> Export:
    """The export in a directory, or in the workdir of a finished job."""
    directory = Path(directory)
    if not (directory / "export.json").exists() and (directory / "export").is_dir():
        directory = directory / "export"
    return load_export(directory)


class Router:
    """Decides the lengths of clips from their pixels. `digest` names it, wherever it is saved."""

    def __init__(self, export: Export, batch: int = 16):
        if "router" not in export.params:
            raise ValueError(f"an export of kind {export.kind!r} has no router")
        model = build_router(export.config["router"])
        self.digest, self.batch = export.part_digest("router"), batch
        self.geometry = g = model.config.geometry
        self.assignments = all_assignments(g.levels, g.blocks)
        self._params = jax.device_put(export.params["router"])

        def score(params, video):
            logits = model.apply({"params": params}, to_model(video))
            return scores(logits, self.assignments, g)

        self._score = jax.jit(score)

    def scores(self, clips: np.ndarray) -> Float[np.ndarray, "n a"]:
        """log p of every assignment, in the order of `assignments`.

        Raises ValueError for clips of another shape.
        """
        clips = check_clips(clips, self.geometry.clip_shape)
        return in_chunks(lambda part: self._score(self._params, part), self.batch, clips)

    def route(
        self, clips: np.ndarray, budget: int | None = None, first: tuple[int, ...] = ()
    ) -> Int[np.ndarray, "n t"]:
        """The most likely assignment of each clip, among those that may be.

        `budget` is the most tokens that a clip may have, `first` are the lengths that its first
        blocks must have. Raises ValueError for clips of another shape, or where none may be.
        """
        totals = self.assignments.sum(axis=1)
        may = (self.assignments[:, : len(first)] == np.asarray(first, int)).all(axis=1)
        if budget is not None:
            may &= totals <= budget
        if not may.any():
            raise ValueError(
                f"no assignment has budget={budget} and first={tuple(first)}: a clip has at least "
                f"{totals.min()} tokens, and blocks have {self.geometry.levels}"
            )
        return self.assignments[np.where(may, self.scores(clips), -np.inf).argmax(axis=1)]


class Tokenizer:
    """Video to tokens and back.

    Clips go through in batches of `batch`, fewer than that in the next power of two; tokens are
    padded to one of eight sizes. So at most eight programs are compiled for encoding and as many
    for decoding, for each of these few sizes of a batch.

    Attributes of note: `digest` names the tokenizer, wherever it is saved; `.evt` files keep it.
    """

    def __init__(self, export: Export, batch: int = 16):
        self.digest, self.batch = export.part_digest("tokenizer"), batch
        self.model = build_tokenizer(export.config["tokenizer"])
        self.config = self.model.config
        self.geometry = g = self.config.geometry
        self.params = jax.device_put(export.params["tokenizer"])
        self.router = Router(export, batch) if "router" in export.params else None
        self.multiple = max(g.max_length // 8, 1)
        self._encode = jax.jit(partial(_encode, self.model), static_argnames="size")
        self._decode = jax.jit(partial(_decode, self.model))

    def use_router(self, export: Export | str | Path) -> None:
        """Takes the router of an export, or of what `load` opens; ValueError if it does not fit."""
        router = Router(export if isinstance(export, Export) else open_export(export), self.batch)
        if router.geometry != self.geometry:
            raise ValueError(f"the router is for {router.geometry}, the tokenizer {self.geometry}")
        self.router = router

    def route(
        self, clips: np.ndarray, budget: int | None = None, first: tuple[int, ...] = ()
    ) -> Int[np.ndarray, "n t"]:
        """The router's lengths (see `Router.route`). Raises ValueError without a router."""
        if self.router is None:
            raise ValueError(
                "this tokenizer has no router: give lengths, or call use_router() first"
            )
        return self.router.route(clips, budget, first)

    # ---- clips ---------------------------------------------------------------------------------

    def encode(
        self,
        clips: np.ndarray,
        lengths: np.ndarray | None = None,
        budget: int | None = None,
    ) -> Tokens:
        """Tokens of clips, under lengths of one's own, or the router's within an optional budget.

        Args:
          clips: uint8 [n, *geometry.clip_shape]; `cut` makes clips of a video of any length.
          lengths: tokens of each block, each one a level; the router decides by default.
          budget: at most this many tokens a clip, when the router decides.

        Raises ValueError for pixels, shapes or lengths that do not fit.
        """
        clips = check_clips(clips, self.geometry.clip_shape)
        if lengths is None:
            lengths = self.route(clips, budget)
        elif budget is not None:
            raise ValueError("give lengths or a budget, not both")
        lengths = check_lengths(lengths, self.geometry.levels, self.geometry.blocks)
        if len(lengths) != len(clips):
            raise ValueError(f"{len(lengths)} rows of lengths for {len(clips)} clips")
        size = int(lengths.sum(axis=1).max(initial=1))
        codes = self._no_codes(len(clips), size)
        slot = np.full((len(clips), size), -1, np.int32)
        for rows, part in self._parts(lengths):
            own, slots = self._encode(self.params, clips[rows], lengths[rows], size=part)
            width = min(part, size)
            codes[rows, :width], slot[rows, :width] = own[:, :width], slots[:, :width]
        return Tokens(codes, slot, lengths)

    def decode(self, tokens: Tokens) -> UInt8[np.ndarray, "n f h w 3"]:
        """Clips from tokens; ValueError for ids outside the codebook and lengths that are none.

        Continuous latents (a KL bottleneck) are float codes [n, tokens, channels].
        """
        lengths = check_lengths(tokens.lengths, self.geometry.levels, self.geometry.blocks)
        codes = np.asarray(tokens.codes)
        form = self._no_codes(len(lengths), 1).shape
        if codes.ndim != len(form) or codes.shape[::2] != form[::2]:
            kind = f"tokens, {form[2]}]" if self.config.continuous else "tokens]"
            raise ValueError(f"codes must be [{len(lengths)} clips, {kind}, not {codes.shape}")
        totals = lengths.sum(axis=1)
        if totals.max(initial=0) > codes.shape[1]:
            raise ValueError(f"lengths sum to {totals.max()}, codes hold {codes.shape[1]} a clip")
        codes = codes.copy()
        codes[np.arange(codes.shape[1]) >= totals[:, None]] = 0
        if self.config.continuous and not np.isfinite(codes).all():
            raise ValueError("latents must be finite numbers")
        size = self.config.codebook_size
        outside = (codes < 0) | (codes >= size)
        if not self.config.continuous and outside.any():
            raise ValueError(f"id {codes[outside][0]} is outside the codebook of {size}")
        out = np.zeros((len(codes), *self.geometry.clip_shape), np.uint8)
        for rows, part in self._parts(lengths):
            own = self._no_codes(len(rows), part)
            width = min(part, codes.shape[1])
            own[:, :width] = codes[rows, :width]
            out[rows] = self._decode(self.params, own, lengths[rows])
        return out

    def _no_codes(self, clips: int, size: int) -> np.ndarray:
        if self.config.continuous:
            return np.zeros((clips, size, self.config.code_dim), np.float32)
        return np.zeros((clips, size), np.int32)

    def reconstruct(self, clips, lengths=None, budget=None) -> UInt8[np.ndarray, "n f h w 3"]:
        """`decode(encode(...))`."""
        return self.decode(self.encode(clips, lengths, budget))

    def condition(self, frames: np.ndarray, lengths: tuple[int, ...]) -> Int[np.ndarray, "n c"]:
        """Codes of a clip's first frames, for a generator that predicts the others.

        Args:
          frames: uint8 [n, f, height, width, 3]; the last one is repeated to fill the blocks.
          lengths: tokens of each of these blocks.

        Raises ValueError where the frames do not fit the blocks, or a length is no level.
        """
        g = self.geometry
        room, frames = len(lengths) * g.block_frames, np.asarray(frames)
        if frames.ndim != 5 or not 0 < frames.shape[1] <= room <= g.frames:
            raise ValueError(
                f"frames {frames.shape} do not fit {len(lengths)} of {g.blocks} blocks of "
                f"{g.block_frames}"
            )
        # What follows the blocks changes nothing in them: any frames, and the fewest tokens.
        filled = np.minimum(np.arange(g.frames), frames.shape[1] - 1)
        rest = (g.levels[0],) * (g.blocks - len(lengths))
        tokens = self.encode(frames[:, filled], np.tile([*lengths, *rest], (len(frames), 1)))
        return tokens.codes[:, : sum(lengths)]

    def cut(self, video: np.ndarray) -> UInt8[np.ndarray, "n f h w 3"]:
        """A video of any length as clips; the last one is filled by its last frame.

        Raises ValueError unless the pictures have the tokenizer's size.
        """
        g = self.geometry
        video = np.asarray(video)
        if video.ndim != 4 or video.shape[1:] != g.clip_shape[1:] or not len(video):
            raise ValueError(
                f"video must be [frames, {g.height}, {g.width}, 3] with a frame or more, not "
                f"{video.shape}; evatok_jax.storage.framing.fit_frame resizes"
            )
        missing = -len(video) % g.frames
        video = np.concatenate([video, np.repeat(video[-1:], missing, axis=0)])
        return video.reshape(-1, *g.clip_shape)

    # ---- batches of few shapes -----------------------------------------------------------------

    def _parts(self, lengths):
        """Rows of similar length, filled up to a batch, with the static size of each."""
        totals = lengths.sum(axis=1)
        order = np.argsort(totals, kind="stable")
        for first in range(0, len(order), self.batch):
            rows = _filled(order[first : first + self.batch], len(order), self.batch)
            longest = int(totals[rows].max())
            yield rows, static_size(longest, self.multiple, self.geometry.max_length)


def _filled(rows: np.ndarray, total: int, batch: int) -> np.ndarray:
    """The last row repeated, since filling costs less than compiling for one more shape.

    Up to `batch`; up to the next power of two where `total` rows do not fill a batch at all.
    """
    size = batch if total > batch else min(batch, 1 << (len(rows) - 1).bit_length())
    return np.pad(rows, (0, size - len(rows)), mode="edge")


def _encode(model, params, clips, lengths, size):
    rows = layout(lengths, size)
    variables = {"params": params}
    z = model.apply(variables, to_model(clips), lengths, size, method="encode")
    made = model.apply(variables, z, rows, method="quantize")
    codes = made.vectors if model.config.continuous else made.codes
    return codes, jnp.where(rows.valid, rows.slot, -1)


def _decode(model, params, codes, lengths):
    variables = {"params": params}
    vectors = codes if model.config.continuous else model.apply(variables, codes, method="look_up")
    return to_uint8(model.apply(variables, vectors, lengths, method="decode"))


class Generator:
    """Samples clips by class. `tokenizer` is the one whose tokens it learned."""

    def __init__(self, export: Export, batch: int = 16):
        self.digest, self.batch = export.digest, batch
        self.model = build_generator(export.config["generator"])
        self.config = self.model.config
        self._params = jax.device_put(export.params["generator"])
        self.tokenizer = Tokenizer(export, batch)

        def token_loss(params, classes, ids, kind, condition):
            logits = self.model.apply({"params": params}, classes, ids, condition=condition)
            return next_token_loss(logits, ids, kind)

        self._loss = jax.jit(token_loss)

    def known(self, classes: np.ndarray) -> np.ndarray:
        """Class numbers as this generator has them: all 0 where it knows only one."""
        return np.zeros_like(classes) if self.config.num_classes == 1 else classes

    def token_loss(self, classes, ids, kind, condition=None):
        """Mean next-token loss in nats and its parts, of sequences as `to_sequence` makes them."""
        return self._loss(self._params, classes, ids, kind, condition)

    def sample_tokens(
        self, classes, seed: int = 0, guidance: float = 1.0, frames=None, start=0, **options
    ) -> Tokens:
        """Tokens of one clip for each class number; `options` are those of `engine.sample`.

        A generator for frame prediction also takes `frames`, uint8 [n, condition_frames, height,
        width, 3], the first ones of each clip. `start` is the number of the first sample in the
        whole set: a sample depends on (seed, its number, its class and frames) alone, not on
        batches.
        """
        if (frames is None) == bool(self.config.given):
            raise ValueError(
                f"this generator takes {self.config.condition_frames} first frames of each clip"
                + (": give frames" if frames is None else ", none was expected")
            )
        given = None
        if frames is not None:
            if np.shape(frames)[:2] != (len(classes), self.config.condition_frames):
                raise ValueError(
                    f"frames {np.shape(frames)}: expected are {len(classes)} clips of "
                    f"{self.config.condition_frames} frames"
                )
            given = self.tokenizer.condition(frames, self.config.condition)
        classes = engine.check_whole("classes", classes)
        rng, parts = jax.random.key(seed), []
        for first in range(0, len(classes), self.batch):
            index = np.arange(first, min(first + self.batch, len(classes)))
            own = _filled(index, len(classes), self.batch)
            tokens = engine.sample(
                self.model,
                self._params,
                classes[own],
                rng,
                guidance=guidance,
                indices=start + own,
                condition=None if given is None else given[own],
                **options,
            )
            count = len(index)
            parts.append(jax.tree.map(lambda x, n=count: np.asarray(x)[:n], tokens))
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def sample(
        self, classes, seed: int = 0, guidance: float = 1.0, frames=None, **options
    ) -> UInt8[np.ndarray, "n f h w 3"]:
        """One clip for each class number; arguments are those of `sample_tokens`."""
        tokens = self.sample_tokens(classes, seed, guidance, frames, **options)
        return self.tokenizer.decode(tokens)
