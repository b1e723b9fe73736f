"""Tokens: the one pytree that travels from the tokenizer to files, generators and decoders."""

import flax.struct
import jax
import numpy as np


@flax.struct.dataclass
class Tokens:
    """Tokens of a batch of clips, block after block without gaps, padded at the end.

    Attributes:
      codes: int32 [b, s] codebook ids (or float [b, s, c] for continuous latents).
      slot: int32 [b, s], which query of its block each token is; -1 on padding.
      lengths: int32 [b, blocks], tokens of each block.
    """

    codes: jax.Array | np.ndarray
    slot: jax.Array | np.ndarray
    lengths: jax.Array | np.ndarray
