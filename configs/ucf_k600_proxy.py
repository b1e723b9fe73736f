"""UCF-101 + K600: the proxy tokenizer (it shows that WebVid's router carries over; Fig. 5).

    python -m evatok_jax.main --workdir=runs/ucf_k600_proxy \
        --config=configs/ucf_k600_proxy.py:data=UCF_K600

The paper's: 400k steps at batch 128, as on WebVid.
"""

from evatok_jax.experiments import tokenizer_experiment


def get_config(arg=None):
    return tokenizer_experiment(
        arg, "ucf_k600_proxy", "random", adversary="transformer", codebook_size=8192
    )
