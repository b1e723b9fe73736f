"""ImageNet 256: the router at w_q 1.3, w_l 0.7 (stage 3; supplement, image variant).

    python -m evatok_jax.main --workdir=runs/imagenet_router \
        --config=configs/imagenet_router.py:data=IMAGENET,scores=runs/imagenet_scores/table

The paper's: 100k images, 25k steps at batch 256. It chooses 205 tokens an image on average.
"""

from evatok_jax.experiments import IMAGE_BATCH, router_experiment


def get_config(arg=None):
    return router_experiment(arg, w_q=1.3, steps=25_000, batch=IMAGE_BATCH, images=True)
