"""Token ids of all windows (and their mirror images), which the generator trains on.

    python -m evatok_jax.main --workdir=runs/tokens \
        --config=configs/tokens.py:data=DATASET,tokenizer=runs/final/export

The lengths are the router's that the export holds.
"""

from evatok_jax.config import parse_arguments
from evatok_jax.presets import curation_config


def get_config(arg=None):
    args = parse_arguments(
        arg, data="", split="train", tokenizer="", windows=0, batch=16, flip=True, seed=0
    )
    config = curation_config(args, "tokens")
    config.name = f"tokens-{args.split}"
    config.fixed = (0,)  # or the lengths of every clip's blocks
    config.data.flip = args.flip
    config.shard_size = 256
    return config
