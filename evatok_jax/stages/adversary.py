"""The adversary of a tokenizer: what it looks at, how it judges, and both sides' losses.

"transformer" is LARP's 3D ViT on pixels, "videomae" trains heads on the features of a frozen
VideoMAE (EVATok sec. 3.4). Both sides of a step share one reconstruction, and with "videomae" its
features too; gradients stop between them, so neither side's weight changes the other's update.
"""

import jax
import jax.numpy as jnp

from evatok_jax.losses.adversarial import (
    LecamAverages,
    accuracy,
    discriminator_loss,
    generator_loss,
    lecam,
)
from evatok_jax.losses.diffaug import diffaug
from evatok_jax.models.build import build_discriminator
from evatok_jax.models.discriminators import FeatureDiscriminator, check_groups
from evatok_jax.names import nearest
from evatok_jax.pretrained.preprocess import preprocess
from evatok_jax.pretrained.teachers import identity, load_vit, teacher
from evatok_jax.pretrained.vit import stored_as, vit_features, vit_spec

TAPS = (0, 3, 6, 9, 12)  # the embedding and blocks 2, 5, 8, 11, counted from 0


class Adversary:
    """Raises ValueError for an unknown kind, and where virtual batches do not fit.

    `batch` is the number of clips that are judged together, one of `parts` of a step.
    """

    def __init__(self, config, geometry, batch: int, parts: int = 1):
        self.config, self.geometry = config, geometry
        # State moves with every part of a step; together they forget as much as one step would.
        self._decay = config.lecam_decay ** (1.0 / parts)
        kinds = {"transformer": self._pixels, "videomae": self._features}
        if config.kind not in kinds:
            raise ValueError(
                f"unknown adversary.kind {config.kind!r}: {nearest(config.kind, kinds)}"
            )
        self.look = kinds[config.kind]
        self._vit = None
        if config.kind == "videomae":
            self._vit = teacher(config.teacher)
            if geometry.frames != self._vit.clip[0]:
                raise ValueError(
                    f"{config.teacher} judges clips of {self._vit.clip[0]} frames, these have "
                    f"{geometry.frames}: images need adversary.kind=transformer"
                )
            check_groups(config.virtual_batch, batch)
            self.model = FeatureDiscriminator(len(TAPS), config.virtual_batch, config.dtype)
        else:
            self.model = build_discriminator(
                geometry,
                config.size,
                config.patch_logits,
                config.dtype,
                config.remat,
                config.attention,
            )

    def frozen_spec(self):
        """Shapes of the frozen network, if it has one."""
        if self._vit is None:
            return {}
        return {"videomae": stored_as(vit_spec(self._vit), self.config.dtype)}

    def load_frozen(self):
        """Weights of the frozen network, if it has one."""
        if self._vit is None:
            return {}
        return {"videomae": stored_as(load_vit(self.config.teacher), self.config.dtype)}

    def inputs(self):
        """Which weights the frozen network has."""
        return {} if self._vit is None else {"videomae": identity(self.config.teacher)}

    def init(self, rng):
        """Parameters, and the state: LeCam's averages, tracked singular values."""
        if self._vit is None:
            example = jnp.zeros((1, *self.geometry.clip_shape))
        else:
            tokens = jnp.zeros((1, 16, self._vit.width))
            example = [tokens] * len(TAPS)
        variables = dict(self.model.init(rng, example))
        params = variables.pop("params")
        return params, {"lecam": LecamAverages.zeros(), "tracked": variables}

    # ---- what it looks at ----------------------------------------------------------------------

    def _pixels(self, frozen, video, keys):
        return video

    def _features(self, frozen, video, keys):
        video = preprocess(diffaug(video, keys), self._vit.clip[1:], "bicubic")
        return vit_features(
            frozen["videomae"],
            video,
            self._vit,
            TAPS,
            dtype=jnp.dtype(self.config.dtype),
            remat=self.config.remat,
            attention=self.config.attention,
        )

    def _logits(self, params, tracked, seen, learn: bool):
        variables = {"params": params, **tracked}
        if self._vit is None:
            return self.model.apply(variables, seen), tracked
        if not learn:
            return self.model.apply(variables, seen), tracked
        return self.model.apply(variables, seen, update=True, mutable=list(tracked))

    # ---- both sides ----------------------------------------------------------------------------

    def fool(self, params, state, seen):
        """The tokenizer's loss: its reconstructions before a judge that stands still."""
        logits, _ = self._logits(jax.lax.stop_gradient(params), state["tracked"], seen, False)
        return generator_loss(logits)

    def judge(self, params, state, real, fake, keys):
        """The discriminator's loss, its new state, and the metrics in which a collapse shows."""
        real, fake = jax.lax.stop_gradient((real, fake))
        on_fake, tracked = self._logits(params, state["tracked"], fake, True)
        on_real, tracked = self._logits(params, tracked, real, True)
        averages = state["lecam"]
        pulled = lecam(on_real, on_fake, averages)
        loss = discriminator_loss(on_real, on_fake, keys)
        state = {
            "lecam": averages.update(on_real, on_fake, self._decay),
            "tracked": tracked,
        }
        metrics = {
            "adversary/real": on_real.mean(),
            "adversary/fake": on_fake.mean(),
            "adversary/accuracy": accuracy(on_real, on_fake),
            "adversary/lecam": pulled,
        }
        loss = self.config.own_weight * (loss + self.config.lecam * pulled)
        return loss, state, metrics
