"""Stage 5: the autoregressive generator over length and visual tokens (EVATok sec. 3.4).

It trains on a table of token ids (`configs/tokens.py` makes it), so the tokenizer runs once a
clip. Clips lie packed in rows, whole, and a batch is so many rows.
"""

import jax
import jax.numpy as jnp
import numpy as np

from evatok_jax.config import to_plain
from evatok_jax.data.plans import Packing, host_indices
from evatok_jax.data.tables import read_table
from evatok_jax.geometry import geometry
from evatok_jax.losses.next_token import next_token_loss
from evatok_jax.models.build import build_generator, build_tokenizer
from evatok_jax.models.packed import pack, packed_lengths, row_positions
from evatok_jax.models.sequence import LENGTH, PADDING, VISUAL
from evatok_jax.stages.stage import BaseStage, row_spec, sample_keys
from evatok_jax.storage.export import load_export


class GeneratorStage(BaseStage):
    """Trains a generator; its one group is "generator"."""

    SCOPES = ("embed", "layers", "logits", "loss")
    INNER = ("attend", "ffn")

    def __init__(self, config):
        super().__init__(config)
        self.tokenizer = load_export(config.tokenizer) if config.tokenizer else None
        self.geometry, codes = geometry(config.grammar.geometry), config.grammar.codebook_size
        if self.tokenizer:
            tokenizer = build_tokenizer(self.tokenizer.config["tokenizer"]).config
            if tokenizer.continuous:
                raise ValueError(
                    f"{config.tokenizer}: its tokens are vectors, a generator needs ids"
                )
            self.geometry, codes = tokenizer.geometry, tokenizer.codebook_size
        self.description = to_plain(config.model) | {
            "codebook_size": codes,
            "levels": list(self.geometry.levels),
            "blocks": self.geometry.blocks,
        }
        self.model = build_generator(self.description)
        self.capacity = config.row_positions or row_positions(self.model.config.positions)
        self._table = self._plan = None

    def inputs(self):
        """The tokenizer whose tokens it learns; ValueError where none is named."""
        if not self.tokenizer:
            raise ValueError(
                "config.tokenizer is empty: a generator's grammar is its tokenizer's, and its "
                "export holds it; give tokenizer=EXPORT, the folder of a tokenizer's export"
            )
        return {"tokenizer": self.tokenizer.digest}

    @property
    def table(self):
        """The token table; read when the first batch is asked for."""
        if self._table is None:
            self._table = self._checked(read_table(self.config.data.tokens))
        return self._table

    def _checked(self, table):
        config, path = self.model.config, self.config.data.tokens
        if config.num_classes == 1:  # all are one: the token is a separator
            table["label"] = np.zeros_like(table["label"])
        if table["label"].max() >= config.num_classes:
            raise ValueError(
                f"{path} has class {table['label'].max()}, the model only {config.num_classes}: "
                "set model.num_classes"
            )
        given = table["condition"].shape[1] if "condition" in table else 0
        if given != config.given:
            raise ValueError(
                f"{path} has {given} tokens of given frames for a clip, the model takes "
                f"{config.given}: make the table with first={config.condition_frames} and "
                f"config.condition.lengths={config.condition}"
            )
        return table

    @property
    def plan(self) -> Packing:
        """Which clips of the table share a row."""
        if self._plan is None:
            self._plan = Packing(packed_lengths(self.table), self.capacity, self.config.seed)
        return self._plan

    def batches(self, start):
        grammar, processes = self.model.config.grammar, (jax.process_index(), jax.process_count())
        for rows in host_indices(self.config.batch_size, start, *processes):
            # Random numbers of a row come from its place in the endless stream.
            key, window = np.divmod(rows, 2**32)[::-1]
            names = {"key": key.astype(np.uint32), "window": window.astype(np.int32)}
            yield {**pack(self.table, self.plan.take(rows), grammar), **names}

    def batch_spec(self):
        rows = self.config.batch_size
        names = ("inputs", "targets", "kind", "segment", "position")
        shapes = dict.fromkeys(names, jax.ShapeDtypeStruct((rows, self.capacity), jnp.int32))
        own = row_spec(rows)
        mean = jax.ShapeDtypeStruct((rows,), jnp.float32)
        return {**shapes, "key": own["key"], "window": own["window"], "mean_tokens": mean}

    def prepare(self, frozen, batch, rng):
        """Tokens are counted over the whole batch, of which a step may see a part at a time."""
        return {**batch, "mean_tokens": _mean_tokens(batch["kind"])}, tuple

    def init(self, rng, batch):
        ids = jnp.zeros((1, 8), jnp.int32)
        given = self.model.config.given
        condition = jnp.zeros((1, given), jnp.int32) if given else None
        params = self.model.init(rng, jnp.zeros(1, jnp.int32), ids, None, condition)["params"]
        return {"generator": params}, {}

    def losses(self, params, state, frozen, batch, rng, *, groups, waiting, static):
        """Plain next-token cross-entropy, length tokens included."""
        kind, config = batch["kind"], self.model.config
        logits = self.model.apply(
            {"params": params["generator"]},
            batch["inputs"],
            batch["segment"],
            batch["position"],
            sample_keys(rng, batch),
            method="packed",
        )
        with jax.named_scope("loss"):
            total = batch["mean_tokens"].sum()
            loss, metrics = next_token_loss(logits, batch["targets"], kind, total)
        clips = jnp.sum(kind == LENGTH) / config.blocks
        metrics |= {
            "clips": self.config.accumulate * clips,
            "tokens": jnp.sum(kind == VISUAL) / clips,
            "padding": jnp.mean(batch["segment"] < 0, dtype=jnp.float32),
        }
        return {"generator": loss}, state, metrics

    def export(self, params):
        """The generator with the tokenizer (and router) that it needs to make pixels."""
        description = {"generator": self.description, **self.tokenizer.config}
        tree = {"generator": params["generator"], **self.tokenizer.params}
        return "generator", description, tree, {}


@jax.jit
def _mean_tokens(kind):
    """Tokens to be predicted, of a row in the mean; for every row."""
    return jnp.full(len(kind), jnp.mean(jnp.sum(kind != PADDING, axis=1), dtype=jnp.float32))
