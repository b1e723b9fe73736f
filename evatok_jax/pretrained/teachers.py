"""The frozen ViTs by name, and where their weights lie.

Their weights are on no package index: `evatok assets --convert NAME=FILE` makes the asset from a
published file (`convert` knows the layouts); a workdir remembers the hash of what it learnt from.
"""

from pathlib import Path

import numpy as np

from evatok_jax import assets
from evatok_jax.names import nearest
from evatok_jax.pretrained.convert import (
    HF_DINOV3,
    HF_VIDEOMAE,
    HF_VJEPA2,
    INTERNVIDEO,
    Names,
    convert_vit,
    read_weights,
)
from evatok_jax.pretrained.vit import (
    DINOV3_B,
    DINOV3_TINY,
    VIDEOMAE_B,
    VIDEOMAE_TINY,
    VJEPA2_L,
    VJEPA2_TINY,
    VitConfig,
    random_vit,
)
from evatok_jax.storage.tensors import dump_tensors, flatten, load_tensors, params_from_flat

# Each name with the layouts in which it is published. The tiny ones are published nowhere: their
# weights are random, the same every time, so that every part of the recipe runs on a laptop.
TEACHERS: dict[str, tuple[VitConfig, tuple[Names, ...]]] = {
    "videomae_b": (VIDEOMAE_B, (INTERNVIDEO, HF_VIDEOMAE)),
    "vjepa2_l": (VJEPA2_L, (HF_VJEPA2,)),
    "dinov3_b": (DINOV3_B, (HF_DINOV3,)),
    "videomae_tiny": (VIDEOMAE_TINY, ()),
    "vjepa2_tiny": (VJEPA2_TINY, ()),
    "dinov3_tiny": (DINOV3_TINY, ()),
}


def teacher(name: str) -> VitConfig:
    """The shape of a teacher; ValueError for an unknown name."""
    if name not in TEACHERS:
        raise ValueError(f"unknown teacher {name!r}: {nearest(name, TEACHERS)}")
    return TEACHERS[name][0]


def convert(name: str, source: str | Path) -> Path:
    """Makes the asset `name` from a published file; returns where it lies.

    Raises ValueError where the file fits no layout in which this network is published.
    """
    config, layouts = teacher(name), TEACHERS[name][1]
    if not layouts:
        raise ValueError(f"{name} has random weights: there is nothing to convert")
    flat, reasons = read_weights(source), []
    for names in layouts:
        try:
            tree = convert_vit(flat, config, names)
        except ValueError as error:
            reasons.append(str(error))
            continue
        return assets.keep(f"{name}.safetensors", dump_tensors(flatten(tree)))
    raise ValueError(f"{source} is no {name}: " + "; or ".join(reasons))


def load_vit(name: str) -> dict:
    """The weights of a teacher, fp32, in the tree of `vit_spec`.

    Raises assets.AssetMissing, naming the command to run, where there are none.
    """
    config = teacher(name)
    if not TEACHERS[name][1]:
        return random_vit(config)
    return params_from_flat(load_tensors(np.fromfile(_path(name), np.uint8)))


def identity(name: str) -> str:
    """The hash of a teacher's weights; raises assets.AssetMissing where there are none."""
    teacher(name)
    return assets.file_hash(_path(name)) if TEACHERS[name][1] else "random, seed 0"


def _path(name: str) -> Path:
    path = assets.asset_dir() / f"{name}.safetensors"
    if not path.exists():
        raise assets.AssetMissing(
            f"the weights of {name} are not in {path.parent}: download them as docs/teachers.md "
            f"says and run `evatok assets --convert {name}=FILE`"
        )
    return path
