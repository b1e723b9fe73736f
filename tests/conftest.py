"""Every annotated shape of the package is checked while the tests run."""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parent))  # for needs, toy_stage, videos

from jaxtyping import install_import_hook

install_import_hook("evatok_jax", "beartype.beartype")
