"""Stage 4: the final tokenizer, from scratch under the router's lengths, or its uniform twin.

    python -m evatok_jax.main --workdir=runs/final \
        --config=configs/final.py:data=DATASET,router=runs/router/export,geometry=mini64,size=mini

Without `router` all blocks get `level` tokens (the twin). The paper's: paper128 and S-B, batch 128,
1000k steps (400k in the ablations), 64 V100 x 347 h; rFVD 9.7 at 774 tokens on UCF-101 (Table 6),
with the VideoMAE discriminator and alignment: `adversary` (transformer or videomae) and `alignment`
add them, and the experiments (`configs/webvid_routed_videomae.py`) have them.
"""

from evatok_jax.config import parse_arguments
from evatok_jax.presets import add_recipe, tokenizer_config


def get_config(arg=None):
    args = parse_arguments(
        arg,
        data="",
        router="",
        level=256,
        geometry="paper128",
        size="S-B",
        batch=128,
        steps=1_000_000,
        lr=1e-4,
        seed=0,
        init_from="",
        adversary="none",
        alignment=False,
    )
    config = tokenizer_config(args)
    add_recipe(config, args.adversary, args.alignment)
    config.run.init_from = args.init_from
    if args.router:
        config.name = "final"
        config.lengths.rule = "router"
        config.lengths.router = args.router
    else:
        config.name = "uniform"
        config.lengths.rule = "fixed"
        config.lengths.fixed = (args.level,) * len(config.lengths.fixed)
    return config
