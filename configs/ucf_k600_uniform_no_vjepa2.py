"""UCF-101 + K600: uniform, without alignment (Table 5).

    python -m evatok_jax.main --workdir=runs/ucf_k600_uniform_no_vjepa2 \
        --config=configs/ucf_k600_uniform_no_vjepa2.py:data=UCF_K600

The paper's: 400k steps at batch 128; PSNR 25.30, LPIPS 0.1253, rFVD 18, gFVD 144 (GPT-B).
"""

from evatok_jax.experiments import tokenizer_experiment


def get_config(arg=None):
    return tokenizer_experiment(
        arg, "ucf_k600_uniform_no_vjepa2", "fixed", codebook_size=8192, alignment=False
    )
