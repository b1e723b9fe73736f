"""ImageNet 256: scores of 100k images under all eight assignments (stage 2).

    python -m evatok_jax.main --workdir=runs/imagenet_scores \
        --config=configs/imagenet_scores.py:data=IMAGENET,tokenizer=runs/imagenet_proxy/export

The paper's: 100k images, 800k reconstructions; its hardware is not stated.
"""

from evatok_jax.experiments import scores_experiment


def get_config(arg=None):
    return scores_experiment(arg)
