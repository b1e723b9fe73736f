"""Every annotated shape of the package is checked while the tests run."""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parent))  # for needs, toy_stage, videos

from jaxtyping import install_import_hook

install_import_hook("evatok_jax", "beartype.beartype")

# In this order before all others: the last files to end must not be the long ones.
LONG = ("test_experiments.py", "test_recipe.py", "test_train.py")


def pytest_collection_modifyitems(items):
    names = [item.path.name for item in items]
    order = {name: LONG.index(name) if name in LONG else len(LONG) for name in names}
    items.sort(key=lambda item: order[item.path.name])
