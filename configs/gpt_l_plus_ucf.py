"""UCF-101: the generator GPT-L-plus, by class.

    python -m evatok_jax.main --workdir=runs/gpt_l_plus_ucf \
        --config=configs/gpt_l_plus_ucf.py:tokenizer=FINAL/export,tokens=TOKENS/table

The paper's: 3000 epochs, 223.5k steps at batch 128, 64 V100 x 88 h. Table 3:
gFVD 48 at 756 tokens, guidance 1.75. FINAL is the run of `ucf_k600_routed`.
"""

from evatok_jax.experiments import generator_experiment


def get_config(arg=None):
    return generator_experiment(arg, "GPT-L-plus", 101, 223_500)
