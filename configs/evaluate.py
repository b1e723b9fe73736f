"""Evaluation of what a pipeline made; `task` is curves, final or generation.

`windows` above 0 takes that many, evenly spread. The pipeline fills in the paths:
`scales.pipeline_jobs` shows what each task needs.
"""

from ml_collections import ConfigDict

from evatok_jax.config import parse_arguments
from evatok_jax.presets import data_section


def get_config(arg=None):
    args = parse_arguments(
        arg, task="curves", data="", split="test", windows=0, fvd=True, batch=16, seed=0
    )
    return ConfigDict(
        dict(
            job="evaluate",
            name=f"evaluate-{args.task}",
            task=args.task,
            seed=args.seed,
            data=data_section(args.data, split=args.split),
            windows=args.windows,
            batch_size=args.batch,
            fvd=args.fvd,
            resamples=50,
            tokenizer="",
            # curves
            w_q=(1.2,),
            routers=("",),
            scores_train="",
            scores_test="",
            scores_vgg="",  # of the windows of scores_test, where those are not of LPIPS-VGG
            # final: one row for each export; a level of 0 means the lengths of its router
            names=("",),
            exports=("",),
            fixed=(0,),
            router="",
            strips=12,
            # generation
            generator="",
            tokens_train="",
            tokens_test="",
            samples=64,
            shown=24,
            guidance=1.0,
            fvd_side=0,  # 64 for frame prediction on Kinetics-600; 0 is the clips' own
        )
    )
