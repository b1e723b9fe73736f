"""Kinetics-600: the generator GPT-L (327M) predicts a clip from its first five frames.

    python -m evatok_jax.main --workdir=runs/gpt_l_k600 \
        --config=configs/gpt_l_k600.py:tokenizer=FINAL/export,tokens=TOKENS/table

The paper's: 75 epochs at batch 128, here 230k steps (392,622 published clips), no guidance.
Tables 3 and 4: gFVD 4.6 at 862 tokens on average. FINAL is the run of `ucf_k600_routed`,
TOKENS that of `k600_tokens`; evaluation: 50,000 clips of the validation split, 64 x 64 pixels.
"""

from evatok_jax.experiments import generator_experiment


def get_config(arg=None):
    return generator_experiment(arg, "GPT-L", classes=1, steps=230_000, first=5)
