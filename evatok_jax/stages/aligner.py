"""Alignment of the decoder's features with a frozen ViT (EVATok Eq. 1, L_align).

V-JEPA 2 for video, DINOv3 for images (supplement, image variant).
"""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from evatok_jax.losses.alignment import alignment_loss
from evatok_jax.models.attention import TRUNCATED
from evatok_jax.pretrained.preprocess import preprocess
from evatok_jax.pretrained.teachers import identity, load_vit, teacher
from evatok_jax.pretrained.vit import stored_as, vit_features, vit_spec


class Phi(nn.Module):
    """A three-layer MLP between the two feature spaces (GigaTok)."""

    hidden: int
    outputs: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n {self.outputs}"]:
        """Features in fp32."""
        for i, width in enumerate((self.hidden, self.hidden)):
            dense = nn.Dense(width, dtype=self.dtype, kernel_init=TRUNCATED, name=f"hidden_{i}")
            x = nn.silu(dense(x))
        out = nn.Dense(self.outputs, dtype=self.dtype, kernel_init=TRUNCATED, name="out")(x)
        return out.astype(jnp.float32)


class Aligner:
    """What the teacher sees of a clip, and the loss against it.

    The teacher gets the clip at such a size that its grid in space is the tokenizer's. In time its
    patches are shorter, so a decoder position answers for `slots` of them; a network for images
    gets the frames one by one. `side` says where phi stands: on the decoder (default), or on the
    teacher, as Eq. 1 is printed, where a constant is a trivial solution.

    Raises ValueError where the grids do not fit, for another side, or a layer that is none.
    """

    def __init__(self, config, geometry, decoder):
        self.config = config
        f, (rows, columns) = geometry.block_frames, geometry.grid
        vit = teacher(config.teacher)
        if f % vit.patch[0]:
            raise ValueError(
                f"blocks of {f} frames are not made of the {vit.patch[0]} that a patch of "
                f"{config.teacher} has: images align with dinov3_b"
            )
        if config.side not in ("decoder", "teacher"):
            raise ValueError(f"alignment.side must be decoder or teacher, not {config.side!r}")
        if not 1 <= config.layer <= decoder.layers:
            raise ValueError(f"alignment.layer is {config.layer}: layers are 1 to {decoder.layers}")
        self.name = config.teacher.split("_")[0]  # "vjepa2", "dinov3"
        self.slots, width = f // vit.patch[0], decoder.width
        frames = 1 if vit.planar else geometry.frames
        clip = (frames, rows * vit.patch[1], columns * vit.patch[2])
        self.vit = replace(vit, clip=clip)
        outputs = self.slots * self.vit.width if config.side == "decoder" else width
        self._inputs = width if config.side == "decoder" else self.slots * self.vit.width
        self._phi = Phi(config.hidden, outputs, config.dtype)

    def inputs(self):
        """Which weights the teacher has."""
        return {self.name: identity(self.config.teacher)}

    def init(self, rng):
        """Parameters of phi."""
        return self._phi.init(rng, jnp.zeros((1, 1, self._inputs)))["params"]

    def frozen_spec(self):
        """Shapes of the teacher."""
        return {self.name: stored_as(vit_spec(self.vit), self.config.dtype)}

    def load_frozen(self):
        """Weights of the teacher."""
        return {self.name: stored_as(load_vit(self.config.teacher), self.config.dtype)}

    def look(self, frozen, video: Float[Array, "b f h w 3"]) -> Float[Array, "b n d"]:
        """The teacher's features, one row for each decoder position: its slots side by side."""
        vit, b = self.vit, len(video)
        video = preprocess(video, vit.clip[1:], "bilinear")
        video = rearrange(video, "b (n f) h w c -> (b n) f h w c", f=vit.clip[0])
        dtype = jnp.dtype(self.config.dtype)
        (x,) = vit_features(frozen[self.name], video, vit, [vit.layers + 1], dtype)
        x = rearrange(x[:, vit.prefix :], "(b n) p d -> b (n p) d", b=b)
        patches = vit.grid[1] * vit.grid[2]
        x = rearrange(x, "b (t s p) d -> b (t p) (s d)", s=self.slots, p=patches)
        return jax.lax.stop_gradient(x)

    def loss(self, params, features: Float[Array, "b n c"], seen) -> Float[Array, ""]:
        """Minus the mean cosine similarity over positions and slots."""
        if self.config.side == "teacher":
            return alignment_loss(features, self._phi.apply({"params": params}, seen))
        split = {"pattern": "b n (s d) -> b (n s) d", "s": self.slots}
        predicted = self._phi.apply({"params": params}, features)
        return alignment_loss(rearrange(predicted, **split), rearrange(seen, **split))
