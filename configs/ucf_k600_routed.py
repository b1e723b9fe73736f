"""UCF-101 + K600: the final tokenizer under WebVid's router (Tables 2, 3 and 6).

    python -m evatok_jax.main --workdir=runs/ucf_k600_routed \
        --config=configs/ucf_k600_routed.py:data=UCF_K600,router=runs/webvid_router/export

The paper's: 400k steps at batch 128: LPIPS 0.1212, rFVD 13, gFVD 96 (GPT-B) at 774 tokens. With
steps=1000000 (64 V100 x 347 h): PSNR 25.75, LPIPS 0.1140, rFVD 9.7.
"""

from evatok_jax.experiments import tokenizer_experiment


def get_config(arg=None):
    return tokenizer_experiment(arg, "ucf_k600_routed", "router", codebook_size=8192)
