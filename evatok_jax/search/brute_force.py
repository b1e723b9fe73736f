"""Brute force over all assignments (EVATok sec. 3.2.2): every one is reconstructed and scored.

Assignments are taken in order of total length and in chunks, so that a chunk shares one static size
with little padding. The features of the original clip are computed once for all assignments. This
asks nothing of the tokenizer; `prefix_tree` finds the same faster where both halves are causal.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from evatok_jax.allocation.assignments import all_assignments
from evatok_jax.models.ragged import static_size
from evatok_jax.models.tokenizer import Tokenizer
from evatok_jax.pixels import to_model, to_uint8
from evatok_jax.pretrained.lpips import lpips_distance, lpips_features
from evatok_jax.search.scores import Scores


class BruteForce:
    """Scores every assignment of every clip with a tokenizer in hand.

    `batch` assignments of one clip are reconstructed together, in one of eight static sizes, each
    of which is compiled once.
    """

    def __init__(self, model: Tokenizer, params, lpips_params, net: str, batch: int):
        self._params, self._lpips_params, self._net = params, lpips_params, net
        g = model.config.geometry
        self.assignments = all_assignments(g.levels, g.blocks)
        totals = self.assignments.sum(axis=1)
        order = np.argsort(totals, kind="stable")
        self._chunks = []
        for first in range(0, len(order), batch):
            rows = order[first : first + batch]
            rows = np.pad(rows, (0, batch - len(rows)), mode="edge")
            size = static_size(int(totals[rows].max()), max(g.max_length // 8, 1), g.max_length)
            self._chunks.append((rows, size))
        self._original = jax.jit(self._features)
        self._score = jax.jit(partial(self._reconstruct, model), static_argnames="size")

    def _features(self, lpips_params, clip):
        return lpips_features(lpips_params, 2.0 * to_model(clip), self._net)

    def _reconstruct(self, model, params, lpips_params, clip, original, lengths, size):
        n = len(lengths)
        video = jnp.broadcast_to(to_model(clip), (n, *clip.shape))
        fake, _ = model.apply({"params": params}, video, lengths, size=size)
        # Scored is what a viewer gets: eight bits a value.
        fake = to_uint8(fake)
        mse = jnp.mean(
            (fake.astype(jnp.float32) - clip.astype(jnp.float32)) ** 2, axis=(1, 2, 3, 4)
        )
        mse = mse / 255.0**2

        def distance(one):
            features = lpips_features(lpips_params, 2.0 * to_model(one), self._net)
            return lpips_distance(lpips_params, original, features).mean()

        return jax.lax.map(distance, fake), mse

    def __call__(self, clips: UInt8[np.ndarray, "n f h w 3"]) -> Scores:
        """Scores of clips, in the order of `all_assignments`."""
        shape = (len(clips), len(self.assignments))
        lpips, mse = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for n, clip in enumerate(clips):
            original = self._original(self._lpips_params, clip)
            pending = [
                (
                    rows,
                    self._score(
                        self._params,
                        self._lpips_params,
                        clip,
                        original,
                        self.assignments[rows],
                        size=size,
                    ),
                )
                for rows, size in self._chunks
            ]
            for rows, (distance, error) in pending:
                lpips[n, rows], mse[n, rows] = distance, error
        return Scores.of(lpips, mse)
