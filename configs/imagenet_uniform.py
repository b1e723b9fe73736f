"""ImageNet 256: the final tokenizer, 256 tokens an image (supplement, image variant).

    python -m evatok_jax.main --workdir=runs/imagenet_uniform \
        --config=configs/imagenet_uniform.py:data=IMAGENET

The paper's: 400k steps at batch 256; LPIPS 0.2205, rFID 1.22. The discriminator is as in
`imagenet_proxy`.
"""

from evatok_jax.experiments import image_tokenizer_experiment


def get_config(arg=None):
    return image_tokenizer_experiment(arg, "imagenet_uniform", "fixed")
