"""Stage 2: LPIPS, PSNR and MSE of clips under every assignment (EVATok sec. 3.2.2).

    python -m evatok_jax.main --workdir=runs/scores \
        --config=configs/scores.py:data=DATASET,tokenizer=runs/proxy/export,windows=100000

The paper's: 100k WebVid clips x 625 assignments, 4 x 64 V100 x 12.5 h. All scores are kept, so
labels for other weights (w_q, w_l) cost nothing. `net` is the LPIPS network: vgg, or alex where
time is short. `search` walks the tree of beginnings; "brute_force" finds the same, clip by clip.
"""

from evatok_jax.config import parse_arguments
from evatok_jax.presets import scores_config


def get_config(arg=None):
    args = parse_arguments(
        arg,
        data="",
        split="train",
        tokenizer="",
        windows=100_000,
        net="vgg",
        batch=16,
        seed=0,
    )
    return scores_config(args)
