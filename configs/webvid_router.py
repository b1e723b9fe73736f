"""WebVid: the router at w_q 1.2, w_l 0.8 (stage 3; Table 8).

    python -m evatok_jax.main --workdir=runs/webvid_router \
        --config=configs/webvid_router.py:data=WEBVID,scores=runs/webvid_scores/table

The paper's: 50k steps at batch 128, 32 V100 x 5 h. Proxy-reward percentile 96.96 % on WebVid (best
uniform of each clip 84.88 %), 96.19 % on UCF-101 (88.46 %). Its curves: `w_q` from 0.8 to 1.6.
"""

from evatok_jax.experiments import router_experiment


def get_config(arg=None):
    return router_experiment(arg, fps=3.0)
