"""Stage 5: the autoregressive generator over length and visual tokens (EVATok sec. 3.4).

It trains on a table of token ids (`configs/tokens.py` makes it), so the tokenizer runs once a
clip.
"""

import jax
import jax.numpy as jnp

from evatok_jax.config import to_plain
from evatok_jax.data.tables import read_table, table_batches
from evatok_jax.losses.next_token import next_token_loss
from evatok_jax.models.build import build_generator, build_tokenizer
from evatok_jax.models.ragged import static_size
from evatok_jax.models.sequence import to_sequence
from evatok_jax.stages.stage import BaseStage, sample_keys
from evatok_jax.storage.export import load_export


class GeneratorStage(BaseStage):
    """Trains a generator; its one group is "generator"."""

    def __init__(self, config):
        super().__init__(config)
        if not config.tokenizer:
            raise ValueError(
                "config.tokenizer is empty: a generator's vocabulary and blocks are its "
                "tokenizer's; give tokenizer=EXPORT, the folder of a tokenizer's export"
            )
        self.tokenizer = load_export(config.tokenizer)
        self.inputs = {"tokenizer": self.tokenizer.digest}
        tokenizer = build_tokenizer(self.tokenizer.config["tokenizer"]).config
        self.geometry = tokenizer.geometry
        self.description = to_plain(config.model) | {
            "codebook_size": tokenizer.codebook_size,
            "levels": list(self.geometry.levels),
            "blocks": self.geometry.blocks,
        }
        self.model = build_generator(self.description)
        self._table = None

    @property
    def table(self):
        """The token table; read when the first batch is asked for."""
        if self._table is None:
            self._table = read_table(self.config.data.tokens)
            if self._table["label"].max() >= self.model.config.num_classes:
                raise ValueError(
                    f"{self.config.data.tokens} has class {self._table['label'].max()}, the model "
                    f"only {self.model.config.num_classes}: set model.num_classes"
                )
        return self._table

    def batches(self, start):
        return table_batches(
            self.table,
            self.config.batch_size,
            self.config.seed,
            start,
            jax.process_index(),
            jax.process_count(),
        )

    def prepare(self, frozen, batch, rng):
        """The static size of a batch follows its longest clip."""
        grammar = self.model.config.grammar
        longest = batch["lengths"].sum(axis=1).max() + grammar.blocks

        def size():
            return static_size(int(longest), self.config.length_multiple, grammar.longest)

        return batch, size

    def init(self, rng, batch):
        ids = jnp.zeros((1, 8), jnp.int32)
        params = self.model.init(rng, jnp.zeros(1, jnp.int32), ids)["params"]
        return {"generator": params}, {}

    def losses(self, params, state, frozen, batch, rng, step, *, groups, static):
        """Plain next-token cross-entropy, length tokens included."""
        lengths = batch["lengths"].astype(jnp.int32)
        ids, kind = to_sequence(
            batch["codes"].astype(jnp.int32), lengths, self.model.config.grammar, static
        )
        logits = self.model.apply(
            {"params": params["generator"]},
            batch["label"].astype(jnp.int32),
            ids,
            sample_keys(rng, batch),
        )
        loss, metrics = next_token_loss(logits, ids, kind)
        metrics |= {
            "tokens": lengths.sum(axis=1).mean(dtype=jnp.float32),
            "padding": jnp.mean(kind < 0, dtype=jnp.float32),
        }
        return {"generator": loss}, state, metrics

    def export(self, params):
        """The generator with the tokenizer (and router) that it needs to make pixels."""
        description = {"generator": self.description, **self.tokenizer.config}
        tree = {"generator": params["generator"], **self.tokenizer.params}
        return "generator", description, tree, {}
