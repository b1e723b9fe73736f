"""WebVid: the proxy tokenizer (stage 1; Table 1, rows A1 and B1).

    python -m evatok_jax.main --workdir=runs/webvid_proxy \
        --config=configs/webvid_proxy.py:data=WEBVID

The paper's: 400k steps at batch 128, 64 V100 x 116 h; discriminator of pixels and alignment.
Uniform at 1024 tokens PSNR 27.26, LPIPS 0.1178, rFVD 73; under its router at 721 tokens 27.05,
0.1182, 50.
"""

from evatok_jax.experiments import tokenizer_experiment


def get_config(arg=None):
    return tokenizer_experiment(arg, "webvid_proxy", "random", adversary="transformer", fps=3.0)
