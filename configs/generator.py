"""The generator: class -> length and visual tokens, block after block (EVATok sec. 3.4).

    python -m evatok_jax.main --workdir=runs/generator \
        --config=configs/generator.py:tokenizer=runs/final/export,tokens=runs/tokens/table,classes=101

A batch is so many rows, each with room for two of the longest clips: 24 hold about 128 clips of
756 tokens. The paper's on UCF-101: GPT-B (99M, ablations), L (327M) and L-plus (633M), batch 128,
3000 epochs (223.5k steps), constant rate with the last 20 % annealed, 64 V100 x 88 h (633M); gFVD
48 at 756 tokens (Table 3). On Kinetics-600 (first=5, classes=1) the first frames are given.
"""

from evatok_jax.config import parse_arguments
from evatok_jax.presets import generator_config


def get_config(arg=None):
    args = parse_arguments(
        arg,
        tokenizer="",
        tokens="",
        classes=101,
        first=0,
        size="GPT-B",
        batch=24,
        steps=223_500,
        lr=3e-4,
        seed=0,
    )
    return generator_config(args)
