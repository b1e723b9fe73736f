"""UCF-101 + K600: the final tokenizer at 256 tokens a block (Tables 2 and 5, full recipe).

    python -m evatok_jax.main --workdir=runs/ucf_k600_uniform \
        --config=configs/ucf_k600_uniform.py:data=UCF_K600

The paper's: 400k steps at batch 128; PSNR 25.05, LPIPS 0.1303, rFVD 13, gFVD 98 (GPT-B), 1024
tokens.
"""

from evatok_jax.experiments import tokenizer_experiment


def get_config(arg=None):
    return tokenizer_experiment(arg, "ucf_k600_uniform", "fixed", codebook_size=8192)
