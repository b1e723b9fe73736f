"""The same search as brute force, each shared beginning computed once (EVATok sec. 3.2.2).

Both halves of the tokenizer are block-causal, so what a block becomes depends only on the lengths
up to it: 625 assignments of four blocks have 5 + 25 + 125 + 625 = 780 beginnings, not 4 x 625. The
tree is walked depth first, one block step for a node, with all clips of a batch at once; no node
has padding, and only the caches along one path are alive.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from evatok_jax.allocation.assignments import all_assignments
from evatok_jax.chunks import in_chunks
from evatok_jax.models.ragged import layout
from evatok_jax.models.tokenizer import Tokenizer
from evatok_jax.pixels import to_model, to_uint8
from evatok_jax.pretrained.lpips import lpips_distance, lpips_features
from evatok_jax.search.scores import Scores


class PrefixTree:
    """Scores every assignment of every clip with a block-causal tokenizer in hand.

    `batch` clips go through together. Two programs for each level are compiled (the last block
    leaves no caches behind), and one for the features of the original.
    """

    def __init__(self, model: Tokenizer, params, lpips_params, net: str, batch: int):
        self._model, self._params, self._lpips_params = model, params, lpips_params
        self._net, self._batch = net, batch
        self._geometry = g = model.config.geometry
        self.assignments = all_assignments(g.levels, g.blocks)
        self._original = jax.jit(self._features)
        self._step = jax.jit(self._node, static_argnames=("level", "last"))

    def _features(self, lpips_params, frames):
        """Features of blocks, [blocks, n, frames, ...] for each depth of the network."""
        maps = jax.lax.map(
            lambda block: lpips_features(lpips_params, 2.0 * to_model(block), self._net),
            frames.reshape(-1, *frames.shape[2:]),
        )
        return [m.reshape(*frames.shape[:2], *m.shape[1:]) for m in maps]

    def _node(self, params, lpips_params, caches, clips, original, block, level, last):
        """Caches, LPIPS and MSE [n] of one block that has `level` tokens, given its beginning.

        Nothing follows the `last` block: its caches are not kept. Most nodes are such (625 of 780),
        and most of what they would write are caches.
        """
        model, n = self._model, clips.shape[1]
        frames, features = clips[block], [f[block] for f in original]
        lengths = jnp.full(n, level, jnp.int32)

        def apply(method, *args):
            return model.apply({"params": params}, *args, method=method)

        encoder, z = apply(
            Tokenizer.encode_step, caches[0], to_model(frames), lengths, block, level
        )
        vectors = apply(Tokenizer.quantize, z, layout(lengths[:, None], level)).vectors
        decoder, fake = apply(Tokenizer.decode_step, caches[1], vectors, lengths, block)
        # Scored is what a viewer gets: eight bits a value.
        fake = to_uint8(fake)
        error = (fake.astype(jnp.float32) - frames.astype(jnp.float32)) / 255.0

        found = lpips_features(
            lpips_params, 2.0 * to_model(fake.reshape(-1, *fake.shape[2:])), self._net
        )
        own = [f.reshape(-1, *f.shape[2:]) for f in features]
        lpips = lpips_distance(lpips_params, own, found).reshape(n, -1).mean(axis=1)
        caches = None if last else (encoder, decoder)
        return caches, lpips, jnp.mean(error**2, axis=(1, 2, 3, 4))

    def __call__(self, clips: UInt8[np.ndarray, "n f h w 3"]) -> Scores:
        """Scores of clips, in the order of `all_assignments`."""
        lpips, mse = np.moveaxis(in_chunks(self._walk, self._batch, clips), 1, 0)
        return Scores.of(lpips, mse)

    def _walk(self, clips: np.ndarray) -> np.ndarray:
        """LPIPS and MSE, [n, 2, assignments]."""
        g, n = self._geometry, len(clips)
        blocks = clips.reshape(n, g.blocks, g.block_frames, *clips.shape[2:]).swapaxes(0, 1)
        blocks = jax.device_put(blocks)
        original = self._original(self._lpips_params, blocks)
        found = []

        step = partial(self._step, self._params, self._lpips_params)

        def visit(caches, block, beginning):
            last = block + 1 == g.blocks
            for level in g.levels:
                below, *scores = step(caches, blocks, original, block, level=level, last=last)
                path = [*beginning, scores]
                if last:  # an assignment: the means over its blocks
                    found.append(np.mean(jax.device_get(path), axis=0))
                else:
                    visit(below, block + 1, path)

        model = self._model.bind({"params": self._params})
        visit((model.encoder_cache(n), model.decoder_cache(n)), 0, [])
        return np.stack(found, axis=-1).swapaxes(0, 1)
