"""Stage 5: the autoregressive generator over length and visual tokens (EVATok sec. 3.4).

It trains on a table of token ids (`configs/tokens.py` makes it), so the tokenizer runs once a
clip.
"""

import jax
import jax.numpy as jnp
import numpy as np

from evatok_jax.config import to_plain
from evatok_jax.data.tables import read_table, table_batches
from evatok_jax.geometry import geometry
from evatok_jax.losses.next_token import next_token_loss
from evatok_jax.models.build import build_generator, build_tokenizer
from evatok_jax.models.ragged import static_size
from evatok_jax.models.sequence import to_sequence
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
        self._table = None

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

    def batches(self, start):
        return table_batches(
            self.table,
            self.config.batch_size,
            self.config.seed,
            start,
            jax.process_index(),
            jax.process_count(),
        )

    def batch_spec(self):
        rows, config = self.config.batch_size, self.model.config
        codes = np.min_scalar_type(config.codebook_size)
        shapes = {
            "codes": jax.ShapeDtypeStruct((rows, self.geometry.max_length), codes),
            "lengths": jax.ShapeDtypeStruct((rows, config.blocks), jnp.int32),
        }
        if config.given:
            shapes["condition"] = jax.ShapeDtypeStruct((rows, config.given), codes)
        return {**row_spec(rows), **shapes}

    def static_sizes(self):
        grammar, multiple = self.model.config.grammar, self.config.length_multiple
        shortest = grammar.blocks * (1 + grammar.levels[0])
        totals = range(shortest, grammar.longest + 1)
        return tuple(sorted({static_size(n, multiple, grammar.longest) for n in totals}))

    def prepare(self, frozen, batch, rng):
        """The static size of a batch follows its longest clip."""
        grammar = self.model.config.grammar
        longest = batch["lengths"].sum(axis=1).max() + grammar.blocks

        def size():
            return static_size(int(longest), self.config.length_multiple, grammar.longest)

        return batch, size

    def init(self, rng, batch):
        ids = jnp.zeros((1, 8), jnp.int32)
        given = self.model.config.given
        condition = jnp.zeros((1, given), jnp.int32) if given else None
        params = self.model.init(rng, jnp.zeros(1, jnp.int32), ids, None, condition)["params"]
        return {"generator": params}, {}

    def _given(self, batch):
        if not self.model.config.given:
            return None
        return batch["condition"].astype(jnp.int32)

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
            self._given(batch),
        )
        with jax.named_scope("loss"):
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
