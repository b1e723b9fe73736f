"""WebVid: the final tokenizer, routed, VideoMAE discriminator (Table 1, B2 + VideoMAE disc).

    python -m evatok_jax.main --workdir=runs/webvid_routed_videomae \
        --config=configs/webvid_routed_videomae.py:data=WEBVID,router=runs/webvid_router/export

The paper's: 400k steps at batch 128 (1000k are 64 V100 x 347 h); PSNR 26.90, LPIPS 0.1144, rFVD 9.2
at 721 tokens.
With steps=1000000 it is Table 6's: 27.37, 0.1063, 7.3.
"""

from evatok_jax.experiments import tokenizer_experiment


def get_config(arg=None):
    return tokenizer_experiment(
        arg, "webvid_routed_videomae", "router", adversary="videomae", fps=3.0
    )
