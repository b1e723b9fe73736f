"""The router: one interface for both heads."""

import jax
import jax.numpy as jnp
import numpy as np

from evatok_jax.allocation.assignments import all_assignments
from evatok_jax.geometry import Geometry, geometry
from evatok_jax.models import router as routers
from evatok_jax.models.build import build_router


def test_scores_of_both_heads_are_distributions(monkeypatch):
    """log p of all assignments sums to one, and route() is their argmax, flat head or per block."""
    g = geometry("nano")
    table = all_assignments(g.levels, g.blocks)
    for limit, outputs in ((4096, 81), (10, 12)):
        monkeypatch.setattr(routers, "FLAT_HEAD_LIMIT", limit)
        logits = jax.random.normal(jax.random.key(limit), (5, outputs))
        log_p = np.asarray(routers.scores(logits, table, g))
        np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1.0, atol=1e-5)
        np.testing.assert_array_equal(table[log_p.argmax(axis=1)], routers.route(logits, g))


def test_many_assignments_take_one_head_a_block():
    """Eight blocks of five levels (390,625 assignments) build with 40 outputs."""
    g = Geometry(32, 32, 32, (4, 8, 8), (2, 4, 8, 16, 32))
    assert g.assignments > routers.FLAT_HEAD_LIMIT
    description = {
        "geometry": {k: getattr(g, k) for k in ("frames", "height", "width", "patch", "levels")},
        "size": "tiny",
    }
    model = build_router(description)
    video = jax.ShapeDtypeStruct((2, *g.clip_shape), jnp.float32)
    out, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), video)
    assert out.shape == (2, 40)
