"""WebVid: scores of 100k clips under all 625 assignments (stage 2).

    python -m evatok_jax.main --workdir=runs/webvid_scores \
        --config=configs/webvid_scores.py:data=WEBVID,tokenizer=runs/webvid_proxy/export

The paper's: 62.5M reconstructions, 4 x 64 V100 x 12.5 h.
"""

from evatok_jax.experiments import scores_experiment


def get_config(arg=None):
    return scores_experiment(arg, fps=3.0)
