"""Every stage, one after another, in one workdir: what the quickstart runs.

    python -m evatok_jax.main --workdir=runs/quickstart --config=configs/pipeline.py
    python -m evatok_jax.main --workdir=runs/mini64 \
        --config=configs/pipeline.py:scale=mini64,source=ucf_mini,videos=DIR

`scale=quick`: the four embedded clips, 32 x 32 pixels, 81 assignments, "tiny" models; 15 minutes
on two cores. `scale=mini64`: all 625 assignments and "mini" models on mini-UCF; some hours on two
cores. `source=folder` needs `classes=N`. A finished job is not run again, and an unfinished one
continues.
"""

from ml_collections import ConfigDict

from evatok_jax.config import parse_arguments
from evatok_jax.scales import pipeline_jobs


def get_config(arg=None):
    args = parse_arguments(arg, scale="quick", source="samples", videos="", classes=0)
    jobs = pipeline_jobs(args.scale, args.source, args.videos, args.classes)
    return ConfigDict(dict(job="pipeline", name="pipeline", jobs=jobs))
