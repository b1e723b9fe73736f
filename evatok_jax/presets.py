"""Plain functions that several configs share: the sections that every job of a kind has."""

from ml_collections import ConfigDict

from evatok_jax.geometry import geometry
from evatok_jax.optim import default_optim


def run_section(steps: int, **changes) -> ConfigDict:
    """Run settings: what may change between two starts of the same workdir.

    Attributes of note: `resume` continues another workdir's whole state, `init_from` starts from the
    parameters of an export (into the group `init_group`, the first by default).
    """
    return ConfigDict(
        dict(
            steps=steps,
            log_every=max(1, min(100, steps // 100)),
            checkpoint_every=max(1, min(5000, steps // 4)),
            checkpoint_minutes=10.0,
            keep=2,
            mesh=dict(data=-1, fsdp=1),
            resume="",
            init_from="",
            init_group="",
        )
        | changes
    )


def small(size: str) -> bool:
    """Whether a size is one of those for CPUs, which learn faster and average over fewer steps."""
    return size in ("tiny", "mini")


def tokenizer_config(args) -> ConfigDict:
    """A tokenizer's job, without its rule for lengths.

    `args` has data, geometry, size, batch, steps, lr and seed.
    """
    g = geometry(args.geometry)
    little = small(args.size)
    return ConfigDict(
        dict(
            job="train",
            name="tokenizer",
            stage="evatok_jax.stages.tokenizer:TokenizerStage",
            seed=args.seed,
            batch_size=args.batch,
            accumulate=1,
            data=dict(path=args.data, flip=True),
            model=dict(
                geometry=args.geometry,
                size=args.size,
                codebook_size=1024 if little else 16384,
                code_dim=8,
                dtype="float32" if little else "bfloat16",
                remat=not little,
            ),
            lengths=dict(
                rule="fixed",
                fixed=(g.levels[len(g.levels) // 2],) * g.blocks,
                router="",
                strata=1,
                multiple=g.max_length // 8,
            ),
            loss=dict(
                l1=1.0,
                lpips=1.0,
                codebook=1.0,
                commitment=0.25,
                entropy=0.02,
                lpips_net="vgg",
                lpips_frames=1 if little else 0,
            ),
            optim=dict(
                tokenizer=default_optim(
                    lr=args.lr,
                    warmup=100 if little else 5000,
                    ema=0.995 if little else 0.9999,
                    clip=1.0 if little else 10.0,
                )
            ),
            run=run_section(args.steps),
        )
    )
