"""Stages 1 and 4: the tokenizer, as proxy (random assignments), final (routed) or uniform twin.

The three differ only in who decides the lengths: `config.lengths.rule` is "random", "router" or
"fixed" (EVATok sec. 3.2.1 and 3.3).
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from evatok_jax import sharding
from evatok_jax.allocation.assignments import fixed_lengths, random_lengths
from evatok_jax.config import to_plain
from evatok_jax.losses.perceptual import frame_lpips
from evatok_jax.models.build import build_router, build_tokenizer, describe_geometry
from evatok_jax.models.dropout import split_keys
from evatok_jax.models.ragged import check_lengths, deal, layout, static_size
from evatok_jax.models.router import route
from evatok_jax.pixels import to_model
from evatok_jax.pretrained.lpips import load_lpips, lpips_spec
from evatok_jax.stages.adversary import Adversary
from evatok_jax.stages.aligner import Aligner
from evatok_jax.stages.codebook import CodebookHealth
from evatok_jax.stages.stage import BaseStage, sample_keys
from evatok_jax.storage.export import load_export


class TokenizerStage(BaseStage):
    """Trains a tokenizer, alone or with an adversary and an aligner.

    Groups are "tokenizer", "discriminator" where `adversary.kind` names one, and "alignment" (phi)
    where `alignment.weight` is above 0. The alignment's loss teaches phi and the tokenizer.
    """

    def __init__(self, config):
        super().__init__(config)
        self.description = to_plain(config.model) | {
            "geometry": describe_geometry(config.model.geometry)
        }
        self.model = build_tokenizer(self.description)
        self.geometry = self.model.config.geometry
        self.adversary = self.aligner = self.codebook = None
        if config.model.quantizer in ("vq", "svq"):
            size, dim = config.model.codebook_size, config.model.code_dim
            self.codebook = CodebookHealth(config.codebook, size, dim, config.seed)
        if config.adversary.kind != "none":
            parts = config.accumulate
            clips = config.batch_size // parts
            self.adversary = Adversary(config.adversary, self.geometry, clips, parts)
            self.periods["discriminator"] = config.adversary.every
            self.starts["discriminator"] = config.adversary.start
        if config.alignment.weight:
            decoder = self.model.config.decoder
            self.aligner = Aligner(config.alignment, self.geometry, decoder)
        self._check_groups()
        self._router_export = None
        rule = config.lengths.rule
        if rule == "random":
            self._lengths = self._random
        elif rule == "fixed":
            fixed = [config.lengths.fixed]
            check_lengths(fixed, self.geometry.levels, self.geometry.blocks)
            self._lengths = self._fixed
        elif rule == "router":
            description = {
                "geometry": self.description["geometry"],
                "size": config.lengths.router_size,
            }
            if config.lengths.router:
                self._router_export = load_export(config.lengths.router)
                description = self._router_export.config["router"]
            self._router = build_router(description)
            self._lengths = self._routed
        else:
            raise ValueError(f"unknown lengths.rule {rule!r}: random, fixed or router")
        self._arrange = jax.jit(self._arranged, static_argnums=3)

    def _check_groups(self):
        groups = {"tokenizer"}
        groups |= {"discriminator"} if self.adversary else set()
        groups |= {"alignment"} if self.aligner else set()
        if groups != set(self.config.optim):
            raise ValueError(
                f"this tokenizer learns {', '.join(sorted(groups))}, config.optim has "
                f"{', '.join(sorted(self.config.optim))}: adversary=KIND and alignment, arguments "
                "of the config, add a part together with its optimiser"
            )

    def inputs(self):
        """The teachers, and the router that decides; ValueError where that is not named."""
        found = {}
        for part in filter(None, (self.adversary, self.aligner)):
            found |= part.inputs()
        if self.config.lengths.rule == "router":
            if not self._router_export:
                raise ValueError(
                    "config.lengths.router is empty: give router=EXPORT, the folder of a router's "
                    "export"
                )
            found["router"] = self._router_export.digest
        return found

    def batches(self, start):
        return iter(self.clips(start))

    # ---- who decides the lengths ---------------------------------------------------------------

    def _random(self, frozen, batch, rng):
        g = self.geometry
        keys = sample_keys(rng, batch)
        return random_lengths(rng, keys, g.levels, g.blocks, self.config.lengths.strata)

    def _fixed(self, frozen, batch, rng):
        return fixed_lengths(tuple(self.config.lengths.fixed), len(batch["key"]))

    def _routed(self, frozen, batch, rng):
        logits = self._router.apply({"params": frozen["router"]}, to_model(batch["video"]))
        return route(logits, self.geometry)

    # ---- and how clips share rows --------------------------------------------------------------

    def _clips_of_row(self) -> int:
        """Clips whose tokens share a row: of those that a device works on at once, a divisor."""
        clips, devices = self.config.batch_size // self.config.accumulate, sharding.ways()
        return math.gcd(self.config.lengths.row, clips if clips % devices else clips // devices)

    def _arranged(self, frozen, batch, rng, clips):
        """The batch with its lengths, dealt to rows of `clips`, and the tokens of the fullest."""
        lengths = self._lengths(frozen, batch, rng)
        tokens, parts = lengths.sum(axis=1), self.config.accumulate
        mean = jnp.full(tokens.shape, tokens.mean(dtype=jnp.float32))
        batch = {**batch, "lengths": lengths, "mean_tokens": mean}
        rows = len(tokens) // clips
        if 1 < rows < len(tokens):
            order = deal(tokens, rows)
            # The loop cuts a batch into every k-th clip; a row must be of one such part.
            order = order.reshape(-1, parts, clips).swapaxes(1, 2).ravel()
            batch = sharding.cut(jax.tree.map(lambda x: x[order], batch))
        held = batch["lengths"].sum(axis=1).reshape(-1, clips, parts).sum(axis=1)
        return batch, held.max()

    def batch_spec(self):
        shape, floats = (self.config.batch_size, self.geometry.blocks), jnp.float32
        lengths = jax.ShapeDtypeStruct(shape, jnp.int32)
        mean = jax.ShapeDtypeStruct(shape[:1], floats)
        return {**self.clip_spec(), "lengths": lengths, "mean_tokens": mean}

    def static_sizes(self):
        g, lengths = self.geometry, self.config.lengths
        clips = self._clips_of_row()
        totals = range(clips * g.blocks * g.levels[0], clips * g.max_length + 1)
        if lengths.rule == "fixed":
            totals = [clips * sum(lengths.fixed)]
        return tuple(sorted(set(map(self._size, totals))))

    def _size(self, fullest: int) -> int:
        most = self._clips_of_row() * self.geometry.max_length
        return static_size(fullest, self.config.lengths.multiple, most)

    def prepare(self, frozen, batch, rng):
        """Decides the lengths ahead of the step, for its static size depends on them."""
        batch, fullest = self._arrange(frozen, batch, rng, self._clips_of_row())
        return batch, lambda: self._size(int(fullest))

    # ---- what is learnt ------------------------------------------------------------------------

    def init(self, rng, batch):
        g = self.geometry
        video = jnp.zeros((1, *g.clip_shape))
        lengths = jnp.full((1, g.blocks), g.levels[0], jnp.int32)
        init = partial(self.model.init, size=g.blocks * g.levels[0])
        params = init(rng, video, lengths)["params"]
        if self.config.model.position_init == "sincos":
            params = _keys_like_queries(params)
        if self.codebook and self.config.codebook.start != "uniform":
            params = self._codes_from_data(params, batch, rng)
        groups, state = {"tokenizer": params}, {}
        if self.codebook:
            state["codebook"] = self.codebook.init()
        if self.adversary:
            made = self.adversary.init(jax.random.fold_in(rng, 2))
            groups["discriminator"], state["adversary"] = made
        if self.aligner:
            groups["alignment"] = self.aligner.init(jax.random.fold_in(rng, 3))
        return groups, state

    def _codes_from_data(self, params, batch, rng):
        g = self.geometry
        lengths = jnp.full((len(batch["video"]), g.blocks), g.max_block, jnp.int32)
        video = to_model(batch["video"])
        z = self.model.apply({"params": params}, video, lengths, g.max_length, method="encode")
        book = self.codebook.start(z.reshape(-1, z.shape[-1]), jax.random.fold_in(rng, 1))
        return {**params, "quantizer": {"codebook": book}}

    def frozen_spec(self):
        spec = {"lpips": lpips_spec(self.config.loss.lpips_net)}
        if self.config.lengths.rule == "router":
            video = jnp.zeros((1, *self.geometry.clip_shape))
            router = jax.eval_shape(self._router.init, jax.random.key(0), video)
            spec["router"] = router["params"]
        for part in filter(None, (self.adversary, self.aligner)):
            spec |= part.frozen_spec()
        return spec

    def load_frozen(self):
        frozen = {"lpips": load_lpips(self.config.loss.lpips_net)}
        if self._router_export:
            frozen["router"] = self._router_export.params["router"]
        for part in filter(None, (self.adversary, self.aligner)):
            frozen |= part.load_frozen()
        return frozen

    SCOPES = ("autoencoder", "perceptual", "alignment", "fooling", "judging")
    INNER = ("encoder", "decoder", "quantizer", "attend")

    def losses(self, params, state, frozen, batch, rng, *, groups, waiting, static):
        """L_vqgan + 0.7 L_align + 0.02 L_entropy (EVATok Eq. 1), and the discriminator's."""
        weights, learns = self.config.loss, "discriminator" in groups
        video, keys = to_model(batch["video"]), sample_keys(rng, batch)
        keys = split_keys(keys, 5)
        with jax.named_scope("autoencoder"):
            rows = layout(batch["lengths"], static, clips=self._clips_of_row())
            rows = rows.replace(total=batch["mean_tokens"].sum())
            fake, q, features = self.model.apply(
                {"params": params["tokenizer"]},
                video,
                rows,
                keys[0],
                tap=self.config.alignment.layer if self.aligner else 0,
                method="training_pass",
            )
        scored = max(weights.lpips_clips // self.config.accumulate, 1)
        scored = scored if weights.lpips_clips else len(video)
        with jax.named_scope("perceptual"):
            lpips = frame_lpips(
                frozen["lpips"],
                video[:scored],
                fake[:scored],
                keys[1, :scored],
                weights.lpips_frames,
                weights.lpips_net,
                jnp.dtype(weights.lpips_dtype),
            )
        parts = {"l1": jnp.abs(fake - video).mean(), "lpips": lpips, **q.losses}
        loss = sum(weights[name] * value for name, value in parts.items())
        losses, metrics = {}, parts
        if self.aligner:
            with jax.named_scope("alignment"):
                seen = self.aligner.look(frozen, video)
                metrics["alignment"] = self.aligner.loss(params["alignment"], features, seen)
            # Of both groups, phi's and the tokenizer's: it stands under one name, and counts once.
            losses["alignment"] = self.config.alignment.weight * metrics["alignment"]
        if self.adversary:
            judge, memory = params["discriminator"], state["adversary"]
            fooled = jnp.zeros(())
            if "discriminator" not in waiting:
                with jax.named_scope("fooling"):
                    seen = self.adversary.look(frozen, fake, keys[2])
                    fooled = self.adversary.fool(judge, memory, seen)
            metrics["adversarial"] = fooled
            loss = loss + self.config.adversary.weight * fooled
        if learns:
            with jax.named_scope("judging"):
                real = self.adversary.look(frozen, video, keys[3])
                losses["discriminator"], memory, more = self.adversary.judge(
                    judge, memory, real, seen, keys[4]
                )
            state, metrics = {**state, "adversary": memory}, metrics | more
        if self.codebook:
            health, more = self.codebook.observe(state["codebook"], q, rows, rng)
            state, metrics = {**state, "codebook": health}, metrics | more
        usage = q.usage / jnp.maximum(q.usage.sum(), 1.0)
        metrics |= {
            "psnr": -10.0 * jnp.log10(jnp.mean((fake - video) ** 2, axis=(1, 2, 3, 4))).mean(),
            "tokens": batch["lengths"].sum(axis=1).mean(dtype=jnp.float32),
            "padding": 1.0 - jnp.mean(rows.valid, dtype=jnp.float32),
            "code_perplexity": jnp.exp(-jnp.sum(usage * jnp.log(usage + 1e-10))),
            "code_usage": jnp.mean(q.usage > 0, dtype=jnp.float32),
        }
        return {"tokenizer": loss, **losses}, state, metrics

    def after_update(self, train_state, metrics):
        """Moves dead codes to latents of this batch, in the parameters and in their average."""
        if not (self.codebook and self.config.codebook.revive_every):
            return train_state
        trees = [train_state.params["tokenizer"], *filter(None, [train_state.ema.get("tokenizer")])]
        books, health, moved = self.codebook.revive(
            [tree["quantizer"]["codebook"] for tree in trees],
            train_state.state["codebook"],
            train_state.step,
        )
        metrics["codes_revived"] = moved
        trees = [
            {**tree, "quantizer": {"codebook": book}}
            for tree, book in zip(trees, books, strict=True)
        ]
        return train_state.replace(
            params={**train_state.params, "tokenizer": trees[0]},
            ema={**train_state.ema, **({"tokenizer": trees[1]} if len(trees) > 1 else {})},
            state={**train_state.state, "codebook": health},
        )

    def export(self, params):
        """The tokenizer, with the router that decides its lengths if there is one."""
        description, tree = {"tokenizer": self.description}, {"tokenizer": params["tokenizer"]}
        if self._router_export:
            description["router"] = self._router_export.config["router"]
            tree["router"] = self._router_export.params["router"]
        return "tokenizer", description, tree, {}


def _keys_like_queries(params):
    """Key projections that start equal to the query projections.

    Between random ones, equal positions mean nothing. Between equal ones, and with sine-cosine
    positions on both sides, each query starts by looking at its own place.
    """
    flat = flatten_dict(params)
    start = {path: flat[(*path[:-2], "q", path[-1])] for path in flat if "k" in path[-2:-1]}
    return unflatten_dict(flat | start)
