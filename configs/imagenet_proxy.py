"""ImageNet 256: the proxy tokenizer, one block of 32 to 512 tokens (supplement, image variant).

    python -m evatok_jax.main --workdir=runs/imagenet_proxy \
        --config=configs/imagenet_proxy.py:data=IMAGENET

IMAGENET is built once: `evatok data build images --source ILSVRC2012 --out IMAGENET --shards 128`.
The paper's: 400k steps at batch 256; its hardware is not stated. The discriminator is LARP's
transformer: the paper does not say which it had, GigaTok's are a hinge PatchGAN or DINO-S.
"""

from evatok_jax.experiments import image_tokenizer_experiment


def get_config(arg=None):
    return image_tokenizer_experiment(arg, "imagenet_proxy", "random")
