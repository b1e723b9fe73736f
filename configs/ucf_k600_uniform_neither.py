"""UCF-101 + K600: uniform, with neither VideoMAE nor alignment (Table 5).

    python -m evatok_jax.main --workdir=runs/ucf_k600_uniform_neither \
        --config=configs/ucf_k600_uniform_neither.py:data=UCF_K600

The paper's: 400k steps at batch 128; PSNR 26.41, LPIPS 0.1095, rFVD 80, gFVD 230 (GPT-B).
"""

from evatok_jax.experiments import tokenizer_experiment


def get_config(arg=None):
    return tokenizer_experiment(
        arg,
        "ucf_k600_uniform_neither",
        "fixed",
        codebook_size=8192,
        adversary="transformer",
        alignment=False,
    )
