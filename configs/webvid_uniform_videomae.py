"""WebVid: the final tokenizer, uniform, VideoMAE discriminator (Table 1, A2 + VideoMAE).

    python -m evatok_jax.main --workdir=runs/webvid_uniform_videomae \
        --config=configs/webvid_uniform_videomae.py:data=WEBVID

The paper's: 400k steps at batch 128 (1000k are 64 V100 x 347 h); PSNR 26.68, LPIPS 0.1197, rFVD 13
at 1024 tokens.
"""

from evatok_jax.experiments import tokenizer_experiment


def get_config(arg=None):
    return tokenizer_experiment(
        arg, "webvid_uniform_videomae", "fixed", adversary="videomae", fps=3.0
    )
