"""What the backward pass computes again instead of keeping it."""

import jax
from jax.ad_checkpoint import checkpoint_name

from evatok_jax.names import nearest

# A layer's products with weights, and what attention's backward pass needs of its forward one.
_DOTS = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names("attention"),
)
# "none" keeps all; "layer" only what goes into a layer; "dots" also what costs most to compute.
POLICIES = {"none": None, "layer": jax.checkpoint_policies.nothing_saveable, "dots": _DOTS}


def rematerialised(transform, layer, remat: str, **more):
    """`layer`, transformed by `nn.remat` or `jax.checkpoint` as the policy wants it.

    Raises ValueError for an unknown policy.
    """
    if remat not in POLICIES:
        raise ValueError(f"unknown remat policy {remat!r}: {nearest(remat, POLICIES)}")
    return layer if remat == "none" else transform(layer, policy=POLICIES[remat], **more)


def attention_result(x):
    """Marks what the policy "dots" keeps of attention."""
    return checkpoint_name(x, "attention")
