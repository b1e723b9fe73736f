"""What a stage is: it says what to do, and train.py says when."""

import importlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from evatok_jax.data.clips import Clips
from evatok_jax.data.faults import Quarantine
from evatok_jax.data.pipeline import train_clips
from evatok_jax.optim import optimizer

Tree = Any  # a pytree of arrays


@runtime_checkable
class Stage(Protocol):
    """One thing to train. Batches are dictionaries of arrays with a common first axis.

    Parameters come in groups ({"tokenizer": ..., "discriminator": ...}), each with an optimiser, an
    update count and a period of its own. `state` is what changes without gradients.
    """

    config: ConfigDict
    workdir: Path | None  # of the run, set by the loop: what cannot be read is listed there
    periods: Mapping[str, int]  # group -> every how many steps it learns
    starts: Mapping[str, int]  # group -> the step after which it may, for groups that wait
    ema: Mapping[str, float]  # group -> decay of its moving average, for groups that keep one
    SCOPES: tuple[str, ...]  # the parts of its step, as `jax.named_scope` calls them in `losses`
    INNER: tuple[str, ...]  # parts of those parts, in which costs are told apart

    def inputs(self) -> Mapping[str, str]:
        """Name -> digest of the trained models that a run works with.

        A stage builds without them, from the shapes that the config describes; this raises
        ValueError where one is not named.
        """

    def batches(self, start: int) -> Iterator[dict]:
        """This process's rows of the global batches, from global record `start` on."""

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a completed global batch, known without any data."""

    def static_sizes(self) -> tuple[Hashable, ...]:
        """The static sizes that a run may meet, the largest last."""

    def prepare(self, frozen: Tree, batch: dict, rng) -> tuple[dict, Callable[[], Hashable]]:
        """The batch, completed, and a call for its static sizes, which the host must know.

        The loop prepares the next batch before it starts a step, and makes the call while the step
        runs: what `prepare` itself computes is queued on the device and not waited for.
        """

    def init(self, rng, batch: dict) -> tuple[dict[str, Tree], Tree]:
        """Parameters by group, and the stage's state."""

    def frozen_spec(self) -> Tree:
        """Shapes of the frozen networks, known without any weight file."""

    def load_frozen(self) -> Tree:
        """The frozen networks: arguments of the step, never closed over."""

    def losses(
        self,
        params,
        state,
        frozen,
        batch,
        rng,
        *,
        groups: tuple[str, ...],
        waiting: tuple[str, ...],
        static: Hashable,
    ) -> tuple[dict[str, Any], Tree, dict[str, Any]]:
        """Losses by group (for the groups that learn now), the new state, and metrics.

        `waiting` are groups whose start has not come. A loss must stop its gradient towards the
        parameters of the other groups.
        """

    def after_update(self, train_state, metrics):
        """The train state after an update: dead-code revival and the like."""

    def optimizers(self, steps: int) -> dict[str, optax.GradientTransformation]:
        """One optimiser a group; `steps` is the number of steps of the run."""

    def export(self, params: dict[str, Tree]) -> tuple[str, dict, Tree, dict]:
        """What the trained model is for others: kind, configuration, parameters, notes."""


class BaseStage:
    """The defaults that most stages share."""

    SCOPES = INNER = ()

    def __init__(self, config: ConfigDict):
        self.config, self.workdir = config, None
        self.periods = dict.fromkeys(config.optim, 1)
        self.ema = {group: o.ema for group, o in config.optim.items() if o.ema}
        self.starts = {}

    def inputs(self):
        """It stands on no other model."""
        return {}

    def clips(self, start: int, **more) -> Iterator[dict]:
        """This process's clips of the config's data, at the size of `self.geometry`."""
        c, place = self.config, jax.process_index()
        # A run that goes on from another one's state takes the replacements that that one took.
        also = [Path(c.run.resume)] if c.run.resume else []
        return train_clips(
            Clips.of(c.data, "train", self.geometry),
            batch_size=c.batch_size,
            seed=c.seed,
            start_index=start,
            flip=c.data.flip,
            quarantine=Quarantine(self.workdir, c.data.max_bad, place, also),
            process_index=place,
            process_count=jax.process_count(),
            threads=c.run.threads,
            workers=c.run.workers,
            **more,
        )

    def clip_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of what `clips` yields, of all processes together."""
        rows = self.config.batch_size
        video = jax.ShapeDtypeStruct((rows, *self.geometry.clip_shape), jnp.uint8)
        return {"video": video, **row_spec(rows)}

    def static_sizes(self):
        """All batches have one shape."""
        return ((),)

    def prepare(self, frozen, batch, rng):
        """Batches are complete as they come."""
        return batch, tuple

    def frozen_spec(self):
        """Nothing is frozen."""
        return {}

    def load_frozen(self):
        """Nothing is frozen."""
        return {}

    def after_update(self, train_state, metrics):
        """Nothing follows an update."""
        return train_state

    def optimizers(self, steps):
        """The optimisers that the config describes, group by group."""

        def updates(group):
            every = self.periods[group]
            return max(steps // every - self.starts.get(group, 0) // every, 1)

        return {
            group: optimizer(settings, updates(group))
            for group, settings in self.config.optim.items()
        }


def row_spec(rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what every row of a batch has: its class, and which clip it is."""
    types = dict(label="int32", key="uint32", record="int32", window="int32", flip="bool")
    return {name: jax.ShapeDtypeStruct((rows,), kind) for name, kind in types.items()}


def sample_keys(rng, batch):
    """One key a sample, from the step's and the record's; its place in the batch has no say."""
    salt = jnp.stack([batch["key"].astype(jnp.uint32), batch["window"].astype(jnp.uint32)], axis=1)
    return jax.vmap(lambda s: jax.random.fold_in(jax.random.fold_in(rng, s[0]), s[1]))(salt)


def load_stage(config: ConfigDict) -> Stage:
    """The stage that `config.stage` names as "module:Class"."""
    module, _, name = config.stage.partition(":")
    return getattr(importlib.import_module(module), name)(config)
