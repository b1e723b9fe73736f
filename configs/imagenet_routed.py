"""ImageNet 256: the final tokenizer, routed (supplement, image variant).

    python -m evatok_jax.main --workdir=runs/imagenet_routed \
        --config=configs/imagenet_routed.py:data=IMAGENET,router=runs/imagenet_router/export

The paper's: 400k steps at batch 256; LPIPS 0.2455, rFID 1.46 at 205 tokens an image (uniform
0.2205, 1.22 at 256). The discriminator is as in `imagenet_proxy`.
"""

from evatok_jax.experiments import image_tokenizer_experiment


def get_config(arg=None):
    return image_tokenizer_experiment(arg, "imagenet_routed", "router")
