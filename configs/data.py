"""Builds a data set from a source of videos (`evatok data build` is the same by hand).

python -m evatok_jax.main --workdir=runs/data --config=configs/data.py:source=ucf_mini,videos=DIR
"""

from ml_collections import ConfigDict

from evatok_jax.config import parse_arguments


def get_config(arg=None):
    args = parse_arguments(arg, source="samples", videos="", shards=1, max_bad=0.05)
    return ConfigDict(dict(job="data", name="data", **args))
