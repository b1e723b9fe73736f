"""Optimisers and schedules by name, one for each group of parameters."""

import jax
import optax
from ml_collections import ConfigDict


def default_optim(**changes) -> ConfigDict:
    """The settings of one group: AdamW (0.9, 0.95), cosine (EVATok sec. 4.1; GigaTok's optimiser).

    `schedule` is "cosine" (to `end_lr`), "wsd" (constant, then 1 - sqrt over the last
    `decay_share` of the steps, to 0) or "constant". `clip` bounds the global norm of the group's
    gradient.
    """
    return ConfigDict(
        dict(
            lr=1e-4,
            end_lr=1e-6,
            schedule="cosine",
            warmup=5000,
            decay_share=0.2,
            betas=(0.9, 0.95),
            weight_decay=1e-4,
            clip=10.0,
            ema=0.9999,
        )
        | changes
    )


def schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate by update count; `steps` is the total number of updates."""
    warmup = min(config.warmup, steps // 2)
    if config.schedule == "cosine":
        rest = optax.cosine_decay_schedule(
            config.lr, max(steps - warmup, 1), config.end_lr / config.lr
        )
    elif config.schedule == "wsd":
        decay = max(int(steps * config.decay_share), 1)
        start = steps - warmup - decay

        def rest(count):
            progress = jax.numpy.clip((count - start) / decay, 0.0, 1.0)
            return config.lr * (1.0 - jax.numpy.sqrt(progress))
    elif config.schedule == "constant":
        rest = optax.constant_schedule(config.lr)
    else:
        raise ValueError(f"unknown schedule {config.schedule!r}: cosine, wsd or constant")
    if not warmup:
        return rest
    return optax.join_schedules([optax.linear_schedule(0.0, config.lr, warmup), rest], [warmup])


def decays(params) -> dict:
    """Which parameters decay: matrices and tables, not biases and norm scales."""

    def is_matrix(path, _):
        return path[-1].key not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW under the schedule."""
    b1, b2 = config.betas
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            schedule(config, steps), b1=b1, b2=b2, weight_decay=config.weight_decay, mask=decays
        ),
    )
