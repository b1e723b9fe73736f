"""UCF-101 + K600: uniform, without the VideoMAE discriminator (that of pixels instead) (Table 5).

    python -m evatok_jax.main --workdir=runs/ucf_k600_uniform_no_videomae \
        --config=configs/ucf_k600_uniform_no_videomae.py:data=UCF_K600

The paper's: 400k steps at batch 128; PSNR 26.21, LPIPS 0.1097, rFVD 65, gFVD 155 (GPT-B).
"""

from evatok_jax.experiments import tokenizer_experiment


def get_config(arg=None):
    return tokenizer_experiment(
        arg, "ucf_k600_uniform_no_videomae", "fixed", codebook_size=8192, adversary="transformer"
    )
