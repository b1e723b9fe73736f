"""WebVid: the final tokenizer, 256 tokens a block, discriminator of pixels (Table 1, A2).

    python -m evatok_jax.main --workdir=runs/webvid_uniform \
        --config=configs/webvid_uniform.py:data=WEBVID

The paper's: 400k steps at batch 128 (1000k are 64 V100 x 347 h); PSNR 27.77, LPIPS 0.1056, rFVD 63
at 1024 tokens.
"""

from evatok_jax.experiments import tokenizer_experiment


def get_config(arg=None):
    return tokenizer_experiment(arg, "webvid_uniform", "fixed", adversary="transformer", fps=3.0)
