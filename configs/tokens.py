"""Token ids of all windows (and their mirror images), which the generator trains on.

    python -m evatok_jax.main --workdir=runs/tokens \
        --config=configs/tokens.py:data=DATASET,tokenizer=runs/final/export

The lengths are the router's that the export holds, or those of the export `router`. For frame
prediction `first` frames are given, in blocks of config.condition.lengths (EVATok on Kinetics-600:
first=5, 512 and 128 tokens).
"""

from evatok_jax.config import parse_arguments
from evatok_jax.presets import tokens_config


def get_config(arg=None):
    args = parse_arguments(
        arg,
        data="",
        split="train",
        tokenizer="",
        router="",
        windows=0,
        batch=16,
        flip=True,
        first=0,
        seed=0,
    )
    return tokens_config(args)
