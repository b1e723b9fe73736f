"""ImageNet 256: the generator GPT-B, by class.

    python -m evatok_jax.main --workdir=runs/gpt_b_imagenet \
        --config=configs/gpt_b_imagenet.py:tokenizer=FINAL/export,tokens=TOKENS/table

The paper's: 300 epochs, 1.5M steps at GigaTok's batch of 256 (and its rate, 1e-4; the paper gives
neither). gFID 4.51 at 197 tokens (uniform 4.72 at 256), guidance 1.5. FINAL is the run of
`imagenet_routed`, TOKENS that of `tokens` with it.
"""

from evatok_jax.experiments import image_generator_experiment


def get_config(arg=None):
    return image_generator_experiment(arg, "GPT-B", 1000, epochs=300, images=1_281_167)
