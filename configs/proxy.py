"""Stage 1: the proxy tokenizer, which reconstructs under any assignment (EVATok sec. 3.2.1).

    python -m evatok_jax.main --workdir=runs/proxy \
        --config=configs/proxy.py:data=DATASET,geometry=mini64,size=mini,batch=8,steps=2500,lr=1e-3

The paper's, and the default: paper128 and S-B on WebVid-10M, batch 128, 400k steps, 64 V100 x 116
h. `strata` draws the assignments of a batch from one part of the range of lengths (less padding).
`adversary` (transformer or videomae) and `alignment` add the rest of the recipe; the experiments
(`configs/webvid_proxy.py`) have them.
"""

from evatok_jax.config import parse_arguments
from evatok_jax.presets import add_recipe, tokenizer_config


def get_config(arg=None):
    args = parse_arguments(
        arg,
        data="",
        geometry="paper128",
        size="S-B",
        batch=128,
        steps=400_000,
        lr=1e-4,
        seed=0,
        strata=1,
        adversary="none",
        alignment=False,
    )
    config = tokenizer_config(args)
    add_recipe(config, args.adversary, args.alignment)
    config.name = "proxy"
    config.lengths.rule = "random"
    config.lengths.strata = args.strata
    return config
