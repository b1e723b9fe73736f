"""WebVid: the final tokenizer, routed, discriminator of pixels (Table 1, B2).

    python -m evatok_jax.main --workdir=runs/webvid_routed \
        --config=configs/webvid_routed.py:data=WEBVID,router=runs/webvid_router/export

The paper's: 400k steps at batch 128 (1000k are 64 V100 x 347 h); PSNR 27.68, LPIPS 0.1068, rFVD 33
at 721 tokens.
With steps=1000000 it is Table 6's: 28.18, 0.0983, 32.
"""

from evatok_jax.experiments import tokenizer_experiment


def get_config(arg=None):
    return tokenizer_experiment(arg, "webvid_routed", "router", adversary="transformer", fps=3.0)
