"""Stage 3: the router learns the best assignment of a clip from its pixels (EVATok sec. 3.2.3)."""

import jax
import jax.numpy as jnp
import numpy as np

from evatok_jax.allocation.assignments import all_assignments
from evatok_jax.allocation.reward import Normalizer, proxy_reward
from evatok_jax.config import to_plain
from evatok_jax.data.clips import Clips
from evatok_jax.data.tables import check_origin, grid, read_table
from evatok_jax.models.build import build_router, describe_geometry
from evatok_jax.models.router import scores
from evatok_jax.pixels import to_model
from evatok_jax.stages.stage import BaseStage, sample_keys


class RouterStage(BaseStage):
    """Trains a router on a table of scores; its one group is "router".

    The weights w_q and w_l are baked into the labels. With `labels.temperature` = 0 the target is
    the best assignment alone (the paper); above 0 it is softmax(reward / temperature), which tells
    more about each clip and so needs fewer of them. The logits then start as the table's mean
    reward: a router that knows nothing about a clip gives it the best single assignment.
    """

    SCOPES = ("router", "loss")
    INNER = ("attend",)

    def __init__(self, config):
        super().__init__(config)
        self.description = to_plain(config.model) | {
            "geometry": describe_geometry(config.model.geometry)
        }
        self.model = build_router(self.description)
        g = self.geometry = self.model.config.geometry
        self.assignments = all_assignments(g.levels, g.blocks)
        self._targets = None

    @property
    def targets(self):
        """(windows, rewards) of the table of scores; read when the first batch is asked for."""
        if self._targets is None:
            table, weights = read_table(self.config.data.scores), self.config.labels
            if table["lpips"].shape[1] != len(self.assignments):
                raise ValueError(
                    f"{self.config.data.scores} scores {table['lpips'].shape[1]} assignments, "
                    f"geometry {self.config.model.geometry} has {len(self.assignments)}"
                )
            norm = Normalizer.of(table["lpips"], self.assignments)
            reward = proxy_reward(table["lpips"], self.assignments, norm, weights.w_q, weights.w_l)
            windows = np.stack([table["record"], table["window"]], axis=1)
            self._targets = windows, reward.astype(np.float32)
        return self._targets

    def batch_spec(self):
        reward = (self.config.batch_size, len(self.assignments))
        return {**self.clip_spec(), "reward": jax.ShapeDtypeStruct(reward, jnp.float32)}

    def batches(self, start):
        data = self.config.data
        check_origin(data.scores, grid(Clips.of(data, "train", self.geometry)))
        windows, reward = self.targets
        for batch in self.clips(start, windows=windows):
            yield {**batch, "reward": reward[batch["row"]]}

    def init(self, rng, batch):
        video = jnp.zeros((1, *self.geometry.clip_shape))
        params = self.model.init(rng, video)["params"]
        temperature = self.config.labels.temperature
        head = params["head"]
        if temperature and self.config.data.scores and head["bias"].size == len(self.assignments):
            bias = jnp.asarray(self.targets[1].mean(axis=0) / temperature)
            params = {**params, "head": {"kernel": jnp.zeros_like(head["kernel"]), "bias": bias}}
        return {"router": params}, {}

    def losses(self, params, state, frozen, batch, rng, *, groups, waiting, static):
        """Cross-entropy with the best assignment, or with the softened rewards."""
        with jax.named_scope("router"):
            logits = self.model.apply(
                {"params": params["router"]}, to_model(batch["video"]), sample_keys(rng, batch)
            )
        reward, temperature = batch["reward"], self.config.labels.temperature
        best = jnp.argmax(reward, axis=1)
        with jax.named_scope("loss"):
            log_p = scores(logits, self.assignments, self.geometry)
            if temperature:
                target = jax.nn.softmax(reward / temperature, axis=1)
            else:
                target = jax.nn.one_hot(best, reward.shape[1])
            loss = -jnp.sum(target * log_p, axis=1).mean()
        top = jax.lax.top_k(log_p, min(5, log_p.shape[1]))[1]
        chosen = jnp.take_along_axis(reward, top[:, :1], axis=1)
        worst = reward.min(axis=1).mean()
        metrics = {
            "top1": jnp.mean(top[:, 0] == best, dtype=jnp.float32),
            "top5": jnp.mean((top == best[:, None]).any(axis=1), dtype=jnp.float32),
            "percentile": (chosen.mean() - worst) / (reward.max(axis=1).mean() - worst),
            "tokens": jnp.asarray(self.assignments.sum(axis=1))[top[:, 0]].mean(dtype=jnp.float32),
        }
        return {"router": loss}, state, metrics

    def export(self, params):
        return "router", {"router": self.description}, {"router": params["router"]}, {}
