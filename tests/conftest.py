"""Every annotated shape of the package is checked while the tests run."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

install_import_hook("evatok_jax", "beartype.beartype")
