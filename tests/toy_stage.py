"""A stage small enough to train in milliseconds, with two groups as a GAN has them."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from evatok_jax.optim import default_optim
from evatok_jax.presets import run_section
from evatok_jax.stages.stage import BaseStage, sample_keys


class ToyStage(BaseStage):
    """Group "model" regresses, group "critic" (every second step) learns the model's error.

    The next step's static size is computed on the device, as the real stages do.
    """

    def __init__(self, config):
        super().__init__(config)
        self.periods = {"model": 1, "critic": 2}

    def batches(self, start):
        size = self.config.batch_size
        while True:
            rows = np.random.default_rng(start).normal(size=(size, 4)).astype(np.float32)
            key = np.arange(start, start + size, dtype=np.uint32)
            batch = {"x": rows, "y": rows.sum(axis=1), "key": key, "window": key}
            own = np.array_split(np.arange(size), jax.process_count())[jax.process_index()]
            yield {name: column[own] for name, column in batch.items()}
            start += size

    def batch_spec(self):
        return jax.eval_shape(lambda: next(self.batches(0)))

    def static_sizes(self):
        return (False,)

    def prepare(self, frozen, batch, rng):
        longest = batch["key"].max()
        return batch, lambda: int(longest) < 0

    def init(self, rng, batch):
        kernel = jax.random.normal(rng, (4, 8))
        critic = {"kernel": jnp.ones((4, 1))}
        return {"model": {"kernel": kernel, "bias": jnp.zeros(8)}, "critic": critic}, {
            "seen": jnp.zeros(())
        }

    def losses(self, params, state, frozen, batch, rng, *, groups, waiting, static):
        noise = jax.vmap(lambda k: jax.random.normal(k))(sample_keys(rng, batch))
        hidden = jnp.tanh(batch["x"] @ params["model"]["kernel"] + params["model"]["bias"])
        error = (hidden.sum(axis=1) + 0.01 * noise - batch["y"]) ** 2
        stop = jax.lax.stop_gradient
        guess = (batch["x"] @ params["critic"]["kernel"])[:, 0]
        losses = {
            "model": self.config.weights.model * error.mean(),
            "critic": self.config.weights.critic * ((guess - stop(error)) ** 2).mean(),
        }
        seen = state["seen"] + len(batch["x"])
        return {g: losses[g] for g in groups}, {"seen": seen}, {"error": error.mean()}

    def export(self, params):
        return "toy", {"width": 8}, params["model"], {}


def toy_config(**changes) -> ConfigDict:
    """A config of the toy stage."""
    run = run_section(12, log_every=1, checkpoint_every=3)
    run.update({k: v for k, v in changes.items() if k in run})
    group = dict(lr=0.05, warmup=2, clip=1.0)
    return ConfigDict(
        dict(
            job="train",
            name="toy",
            stage="toy_stage:ToyStage",
            seed=0,
            batch_size=8,
            accumulate=changes.get("accumulate", 1),
            weights=dict(
                model=changes.get("model_weight", 1.0), critic=changes.get("critic_weight", 1.0)
            ),
            optim=dict(
                model=default_optim(**group, ema=0.9), critic=default_optim(**group, ema=0.0)
            ),
            run=run,
        )
    )


def get_config(arg=None):
    """As a config file, for runs in a process of their own."""
    return toy_config(steps=int(arg or 12))
