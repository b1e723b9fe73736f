"""What some tests need beyond the package: fetched assets, reference values beside the real clips.

Where one is absent its tests are skipped, and the summary says why. After `launch/test.sh` has
fetched the assets (EVATOK_FETCHED is set) they cannot be absent, and nothing is skipped for them.
"""

import importlib.util
import os
from pathlib import Path

import pytest

from evatok_jax import assets

PARITY = Path(os.environ.get("EVATOK_DATA", "/nowhere")).parent / "parity"
needs_parity = pytest.mark.skipif(
    not PARITY.is_dir(), reason="no reference values: EVATOK_DATA names no folder beside parity/"
)

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="no TPU compiler: pip install 'evatok_jax[tpu]'",
)


def needs_assets(*names: str):
    """Skips a test where one of these assets was not fetched."""
    reason = ""
    for name in names:
        try:
            assets.path(name)
        except assets.AssetMissing as error:
            reason = str(error)
    return pytest.mark.skipif(bool(reason) and "EVATOK_FETCHED" not in os.environ, reason=reason)
