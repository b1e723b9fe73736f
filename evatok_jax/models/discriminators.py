"""Discriminators: LARP's transformer, and heads on the features of a frozen video network."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from evatok_jax.geometry import Geometry
from evatok_jax.models.attention import TRUNCATED
from evatok_jax.models.sizes import StackConfig
from evatok_jax.models.vit import ViT


class TransformerDiscriminator(nn.Module):
    """A 3D ViT that tells real clips from reconstructions (LARP; EVATok sec. 3.1).

    One logit a clip from [CLS], as LARP's code has it, or one a patch, as EVATok's word "PatchGAN"
    suggests.
    """

    geometry: Geometry
    stack: StackConfig
    patch_logits: bool = False
    dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"

    @nn.compact
    def __call__(self, video: Float[Array, "b f h w 3"]) -> Float[Array, "b n"]:
        """Logits; `video` is in [-0.5, 0.5]."""
        vit = ViT(
            self.geometry,
            self.stack,
            learned=False,
            dtype=self.dtype,
            remat=self.remat,
            attention=self.attention,
            name="vit",
        )
        x = vit(video)
        x = x[:, 1:] if self.patch_logits else x[:, :1]
        return nn.Dense(1, kernel_init=TRUNCATED, name="head")(x)[..., 0]


class VirtualBatchNorm(nn.Module):
    """Batch norm over groups of consecutive clips of the *global* batch, without running averages.

    A group is `group` clips, or the whole batch where that has fewer; it may span chips, so what is
    computed does not depend on how many there are. Statistics are over clips and tokens. Where
    gradients are accumulated, the batch is one part of a step's.
    """

    group: int = 8

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Raises ValueError where groups do not divide the batch."""
        b, n, c = x.shape
        size = check_groups(self.group, b)
        x = x.reshape(b // size, size * n, c).astype(jnp.float32)
        mean = x.mean(axis=1, keepdims=True)
        variance = jnp.square(x - mean).mean(axis=1, keepdims=True)
        x = (x - mean) / jnp.sqrt(variance + 1e-5)
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        return (x * scale + bias).reshape(b, n, c)


def check_groups(group: int, batch: int) -> int:
    """Clips of a virtual batch; ValueError where they do not divide the batch."""
    size = min(group, batch)
    if batch % size:
        raise ValueError(f"groups of {size} clips do not divide a batch of {batch}")
    return size


class FeatureHead(nn.Module):
    """Two convolutions over tokens and a third for logits, spectrally normalised (StyleGAN-T).

    Norms and logits are in fp32.
    """

    group: int = 8
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], update: bool) -> Float[Array, "b n"]:
        def conv(features, kernel, x, name):
            layer = nn.Conv(features, (kernel,), padding="CIRCULAR", dtype=self.dtype, name=name)
            return nn.SpectralNorm(layer, collection_name="spectral", name=f"{name}_norm")(
                x, update_stats=update
            )

        def block(kernel, x, name):
            x = conv(x.shape[-1], kernel, x, name)
            x = VirtualBatchNorm(self.group, name=f"{name}_batch")(x)
            return nn.leaky_relu(x, 0.2)

        x = block(1, x, "first")
        x = (block(9, x, "second") + x) / jnp.sqrt(2.0)
        return conv(1, 1, x, "out")[..., 0].astype(jnp.float32)


class FeatureDiscriminator(nn.Module):
    """A head for each tapped depth of a frozen network (EVATok sec. 3.4, supplement I).

    The largest singular values of the kernels are tracked in the collection "spectral", by one
    power iteration whenever `update` is true (the discriminator learns).
    """

    taps: int
    group: int = 8
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, features: list[Float[Array, "b n c"]], update: bool = False
    ) -> Float[Array, "b m"]:
        """Logits of all depths side by side."""
        heads = [FeatureHead(self.group, self.dtype, name=f"head_{i}") for i in range(self.taps)]
        logits = [head(x, update) for head, x in zip(heads, features, strict=True)]
        return jnp.concatenate(logits, axis=1)
