"""Stage 3: the router, a ViT that predicts the best assignment of a clip (EVATok sec. 3.2.3).

    python -m evatok_jax.main --workdir=runs/router \
        --config=configs/router.py:data=DATASET,scores=runs/scores/table,geometry=mini64,size=mini

The paper's, and the default: 19.9M parameters, labels of 100k clips at w_q 1.2 and w_l 0.8, batch
128, 50k steps, 32 V100 x 5 h; proxy-reward percentile 96.96 % on WebVid, 96.19 % on UCF-101 (Table
8). `temperature` above 0 softens the labels (see `RouterStage`).
"""

from evatok_jax.config import parse_arguments
from evatok_jax.presets import router_config


def get_config(arg=None):
    args = parse_arguments(
        arg,
        data="",
        scores="",
        w_q=1.2,
        temperature=0.0,
        geometry="paper128",
        size="S",
        batch=128,
        steps=50_000,
        lr=1e-4,
        seed=0,
    )
    return router_config(args)
