"""docs/formats.md names every tensor of an export, and none that there is not."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

from evatok_jax.config import load_config
from evatok_jax.describe import abstract_params
from evatok_jax.stages.stage import load_stage
from evatok_jax.storage.tensors import flatten

DOCS = Path(__file__).parent.parent.parent / "docs/formats.md"
SAVED = ("tokenizer", "router", "generator")
CONFIGS = ("proxy.py", "webvid_router.py", "imagenet_uniform.py", "gpt_b_ucf.py")


def documented() -> set[str]:
    """The patterns in the table of names, each with its model in front."""
    text = DOCS.read_text().partition("### Names")[2].partition("###")[0]
    found = set()
    for row in re.findall(r"^\| (`.*?`) \|", text, re.M):
        first, *others = re.findall(r"`(.+?)`", row)
        found |= {first, *(f"{first.partition('/')[0]}/{other}" for other in others)}
    return found


def test_every_tensor_has_its_row_and_every_row_a_tensor():
    names = set()
    for config in CONFIGS:
        params = abstract_params(load_stage(load_config(f"configs/{config}")))
        names |= set(flatten({group: params[group] for group in params if group in SAVED}))
    rows = documented()
    assert {n for n in names if not any(fnmatchcase(n, row) for row in rows)} == set()
    assert {row for row in rows if not any(fnmatchcase(n, row) for n in names)} == set()
