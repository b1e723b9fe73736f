"""The health of a codebook: its start, how much of it is used, what becomes of dead codes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from evatok_jax.models.quantizers import Quantized, normalize
from evatok_jax.models.ragged import Layout
from evatok_jax.names import nearest

STARTS = ("uniform", "data", "kmeans")
SPARE = 256  # latents of a batch that are kept, from which dead codes can start anew
ROUNDS = 10  # of k-means


class CodebookHealth:
    """Follows a learnt codebook of unit vectors through training.

    How often each code is used is counted with exponential forgetting over `window` tokens
    (GigaTok: 65,536). Every `revive_every` steps (0: never) codes with a count below
    `revive_below` move to latents of the batch at hand, at most `SPARE` of them, the least used
    first. Counts start at an equal share of a window, so that no code is dead before it had its
    chance.

    Raises ValueError for an unknown `start`.
    """

    def __init__(self, config, size: int, dim: int, seed: int):
        if config.start not in STARTS:
            known = nearest(config.start, STARTS)
            raise ValueError(f"unknown codebook.start {config.start!r}: {known}")
        self.config, self._size, self._dim, self._seed = config, size, dim, seed
        self._share = config.window / size

    def init(self) -> dict:
        """The state: counts, and spare latents."""
        return {
            "seen": jnp.full(self._size, self._share),
            "spare": jnp.zeros((SPARE, self._dim)),
        }

    def start(self, z: Float[Array, "n c"], rng) -> Float[Array, "k c"]:
        """Codes that start among the latents z of a batch: at random ones, or at their k-means.

        An untrained encoder's latents lie in a narrow cone, where a codebook spread over the whole
        sphere has a handful of codes: hardly anything would reach the decoder for a long time.
        """
        z = normalize(z)
        picked = z[jax.random.choice(rng, len(z), (self._size,), replace=len(z) < self._size)]
        spread = 0.1 * z.std(axis=0) * jax.random.normal(jax.random.fold_in(rng, 1), picked.shape)
        book = normalize(picked + spread)
        if self.config.start == "kmeans":
            book = jax.lax.fori_loop(0, ROUNDS, lambda _, book: _lloyd(z, book), book)
        return book

    def observe(self, state: dict, quantized: Quantized, rows: Layout, rng) -> tuple[dict, dict]:
        """The state after a batch, and metrics."""
        count = quantized.usage.sum()
        seen = jnp.exp(-count / self.config.window) * state["seen"] + quantized.usage
        valid = rows.valid.reshape(-1)
        picked = jax.random.choice(rng, len(valid), (SPARE,), p=valid / valid.sum())
        latents = jax.lax.stop_gradient(quantized.latents).reshape(len(valid), -1)
        state = {"seen": seen, "spare": latents[picked]}
        # A code that is used once in a window has a count of about one.
        return state, {"code_usage_window": jnp.mean(seen >= 1.0, dtype=jnp.float32)}

    def revive(self, books: list[Array], state: dict, step) -> tuple[list[Array], dict, Array]:
        """The books (parameters, averages) with dead codes moved, the state, and how many moved."""
        count, places = jax.lax.top_k(-state["seen"], min(SPARE, self._size))
        dead = (-count < self.config.revive_below) & (step % self.config.revive_every == 0)
        key = jax.random.fold_in(jax.random.key(self._seed), step)
        new = jax.random.permutation(key, state["spare"])[: len(places)]  # each latent once
        moved = [book.at[places].set(jnp.where(dead[:, None], new, book[places])) for book in books]
        seen = state["seen"].at[places].set(jnp.where(dead, self._share, -count))
        return moved, {**state, "seen": seen}, dead.sum()


def _lloyd(z, book):
    """One round of spherical k-means; a code without latents stays where it is."""
    closest = jnp.argmax(jnp.matmul(z, book.T, precision="highest"), axis=1)
    total = jnp.zeros_like(book).at[closest].add(z)
    return jnp.where(jnp.any(total != 0, axis=1, keepdims=True), normalize(total), book)
