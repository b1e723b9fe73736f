"""Kinetics-600: token ids for frame prediction, five frames given (EVATok sec. 4.1).

    python -m evatok_jax.main --workdir=runs/k600_tokens \
        --config=configs/k600_tokens.py:data=K600,tokenizer=FINAL/export

The given frames, the last one repeated to fill two blocks, become 512 + 128 tokens; the clip itself
has the router's likeliest assignment among the 25 that begin so. FINAL is the run of
`ucf_k600_routed`.
"""

from evatok_jax.experiments import tokens_experiment


def get_config(arg=None):
    return tokens_experiment(arg, first=5)
