"""The lengths that a router gives all windows (and their mirror images).

    python -m evatok_jax.main --workdir=runs/assignments \
        --config=configs/assignments.py:data=DATASET,router=runs/router/export

The router then runs once a window, and not in every step of whatever learns from its lengths.
Without `router` it is the one in the export `tokenizer`.
"""

from evatok_jax.config import parse_arguments
from evatok_jax.presets import assignments_config


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
        seed=0,
    )
    return assignments_config(args)
