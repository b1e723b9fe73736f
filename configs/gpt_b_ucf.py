"""UCF-101: the generator GPT-B, by class.

    python -m evatok_jax.main --workdir=runs/gpt_b_ucf \
        --config=configs/gpt_b_ucf.py:tokenizer=FINAL/export,tokens=TOKENS/table

The paper's: 3000 epochs, 223.5k steps at batch 128. Table 2: gFVD 96 at 740
tokens (uniform 98 at 1024), guidance 2.5. FINAL is the run of `ucf_k600_routed`.
"""

from evatok_jax.experiments import generator_experiment


def get_config(arg=None):
    return generator_experiment(arg, "GPT-B", 101, 223_500)
