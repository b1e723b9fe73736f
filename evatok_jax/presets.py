"""Plain functions that several configs share: the sections that every job of a kind has."""

from ml_collections import ConfigDict

from evatok_jax.geometry import geometry
from evatok_jax.names import nearest
from evatok_jax.optim import default_optim

K600_LENGTHS = 512, 128  # tokens of the two blocks of given frames (EVATok sec. 4.1)
ADVERSARIES = "transformer", "videomae"
CACHE = 2**30  # a split that fits is decoded once and kept in memory


def run_section(steps: int, **changes) -> ConfigDict:
    """Run settings: what may change between two starts of the same workdir.

    Attributes of note: `resume` continues another workdir's whole state, `init_from` starts from
    the parameters of an export (into the group `init_group`, by default the one that both have).
    Data are read by `workers` processes (0: in this one) of `threads` threads; any number gives the
    same bits.
    """
    # Multiples of 5 from 5 on: a discriminator that learns in every fifth step is in the log.
    log_every = max(1, min(100, steps // 100))
    log_every -= log_every % 5 if log_every > 5 else 0
    return ConfigDict(
        dict(
            steps=steps,
            log_every=log_every,
            checkpoint_every=max(1, min(5000, steps // 4)),
            checkpoint_minutes=10.0,
            keep=2,
            threads=2,
            workers=0,
            mesh=dict(data=-1, fsdp=1),
            resume="",
            init_from="",
            init_group="",
        )
        | changes
    )


def data_section(path: str, **more) -> ConfigDict:
    """How a job reads its clips.

    `fps` is frames a second of a clip, 0 the video's own; `short` what a video is for that is too
    short ("skip" or "hold", `data.clips.Clips`); `time_limit` seconds for decoding a window. With
    `cache_dir`, shards are copied into that folder, `cache_gb` gigabytes of them at most.
    """
    reading = dict(fps=0.0, short="skip", time_limit=10.0, cache_dir="", cache_gb=0.0)
    return ConfigDict(dict(path=path) | reading | more)


def learning_section(path: str, **more) -> ConfigDict:
    """How a job that learns reads its clips: `max_bad` is the share of them that may be damaged."""
    return data_section(path, flip=True, cache_bytes=CACHE, max_bad=0.01, **more)


def small(size: str) -> bool:
    """Whether a size is one of those for CPUs, which learn faster and average over fewer steps."""
    return size in ("tiny", "mini")


def mesh(little: bool) -> dict:
    """Data parallel; large models split their parameters too (docs/compile_check.md)."""
    return dict(data=-1, fsdp=1 if little else 0)


def tokenizer_config(args) -> ConfigDict:
    """A tokenizer's job, without its rule for lengths.

    `args` has data, geometry, size, batch, steps, lr and seed.
    """
    g = geometry(args.geometry)
    little = small(args.size)
    # A run of minutes gains more from it at such weights, in PSNR and in LPIPS. And what small
    # models make is so easily told apart that an adversary spoils it at the paper's weight
    # (docs/recipe.md).
    perceptual = {"tiny": 0.02, "mini": 0.05}.get(args.size, 1.0)
    return ConfigDict(
        dict(
            job="train",
            name="tokenizer",
            stage="evatok_jax.stages.tokenizer:TokenizerStage",
            seed=args.seed,
            batch_size=args.batch,
            accumulate=1,
            data=learning_section(args.data),
            model=dict(
                geometry=args.geometry,
                size=args.size,
                stem="linear",  # or cnn: the hybrid of the image variant
                quantizer="vq",  # svq, fsq, lfq, kl
                quantizer_levels=(),  # of fsq
                sampling=0.03,  # temperature of svq
                codebook_size={"tiny": 256, "mini": 1024}.get(args.size, 16384),
                code_dim=8,
                qk_norm=little,  # at their learning rates logits grew to 80, and gradients burst
                position_init="sincos" if little else "normal",
                position_std=1.0 if little else 0.02,
                dtype="float32" if little else "bfloat16",
                attention="auto",  # back end: docs/attention.md
                remat="none" if little else "layer",
                unroll=8 if little else 1,  # on a CPU a quarter faster than the scan
            ),
            codebook=dict(
                start="data" if little else "uniform",  # or kmeans
                window=65_536,  # tokens
                revive_every=0,  # steps; 0 is never
                revive_below=0.1,  # uses in a window
            ),
            adversary=dict(
                kind="none",  # transformer (LARP's), videomae (the headline models), none
                weight=0.06 * perceptual if little else 0.3,
                own_weight=1.0,  # of the discriminator's own loss
                start=0 if little else 20_000,
                every=5,
                size=args.size if little else "LARP",
                patch_logits=False,
                teacher="videomae_b",
                virtual_batch=8,
                lecam=0.001,
                lecam_decay=0.999,
                dtype="float32" if little else "bfloat16",
                attention="auto",
                remat="none" if little else "layer",
            ),
            alignment=dict(
                weight=0.0,  # the paper's: 0.7
                teacher="vjepa2_l",
                layer=3,
                side="decoder",
                hidden=3072,
                dtype="float32" if little else "bfloat16",
            ),
            lengths=dict(
                rule="fixed",
                fixed=(g.levels[len(g.levels) // 2],) * g.blocks,
                router="",  # an export; without one only abstract builds, of `router_size`
                router_size="tiny" if little else "S",
                strata=1,
                # Clips that share a row of tokens, at most, and the steps in which rows grow:
                # docs/ragged.md.
                row=1 if little else 8,
                multiple=g.max_length // 8,
            ),
            loss=dict(
                l1=1.0,
                lpips=perceptual,
                codebook=1.0,
                commitment=0.25,
                entropy=0.02,
                kl=1e-6,
                lpips_net="vgg",
                lpips_dtype="float32" if little else "bfloat16",  # of its convolutions
                lpips_frames=1 if little else 0,  # random frames of a clip; 0 is all
                lpips_clips=max(args.batch // 4, 1) if little else 0,  # clips of a batch; 0 is all
            ),
            optim=dict(
                tokenizer=default_optim(
                    lr=args.lr,
                    warmup=20 if little else 5000,
                    ema=0.995 if little else 0.9999,
                    clip=0.5 if little else 10.0,
                )
            ),
            run=run_section(args.steps, mesh=mesh(little)),
        )
    )


def add_recipe(config: ConfigDict, adversary: str, alignment: bool) -> None:
    """The rest of the paper's recipe, as far as it is asked for; adversary "none" adds none."""
    if adversary != "none":
        add_adversary(config, adversary)
    if alignment:
        add_alignment(config)


def add_adversary(config: ConfigDict, kind: str) -> None:
    """Lets a tokenizer learn against a discriminator, "transformer" (LARP's) or "videomae".

    The paper gives no settings: rates, betas and decay are those of LARP and of V-RAE's port.
    Raises ValueError for another kind.
    """
    if kind not in ADVERSARIES:
        raise ValueError(f"unknown adversary {kind!r}: {nearest(kind, ADVERSARIES)}")
    config.adversary.kind = kind
    config.adversary.own_weight = 0.3 if kind == "videomae" else 1.0
    little = config.model.position_init == "sincos"
    config.optim.discriminator = default_optim(
        lr={"transformer": 3e-5, "videomae": 2e-5}[kind] * (2 if little else 1),
        schedule="constant" if kind == "videomae" else "cosine",
        end_lr=3e-7,
        betas=(0.9, 0.95) if kind == "videomae" else (0.5, 0.9),
        warmup=20 if little else 1000,
        weight_decay=1e-4 if kind == "videomae" else 0.0,
        clip=1.0 if little else 10.0,
        ema=0.0,
    )
    if little:
        config.adversary.teacher = "videomae_tiny"


def add_alignment(config: ConfigDict, teacher: str = "vjepa2_l") -> None:
    """Aligns a tokenizer's decoder with a frozen ViT (EVATok Eq. 1, weight 0.7)."""
    config.alignment.update(dict(weight=0.7, teacher=teacher))
    config.optim.alignment = config.optim.tokenizer.copy_and_resolve_references()
    config.optim.alignment.ema = 0.0
    if config.model.position_init == "sincos":
        tiny = f"{teacher.split('_')[0]}_tiny"
        config.alignment.update(dict(teacher=tiny, layer=1, hidden=64))


def curation_config(args, kind: str) -> ConfigDict:
    """A map over windows: "scores", "tokens" or "assignments" (see `evatok_jax.curate`)."""
    return ConfigDict(
        dict(
            job="curate",
            name=f"{kind}-{args.split}",
            map=kind,
            seed=args.seed,
            tokenizer=args.tokenizer,
            router=args.get("router", ""),  # in place of the tokenizer's own
            data=data_section(args.data, split=args.split, flip=False),
            windows=args.windows,
            batch_size=args.batch,
            shard_size=16,
        )
    )


def scores_config(args) -> ConfigDict:
    """Scores of all assignments, from which a router's labels are made."""
    config = curation_config(args, "scores")
    config.lpips_net = args.net
    config.search = "prefix_tree"
    return config


def tokens_config(args) -> ConfigDict:
    """The table on which a generator trains; for frame prediction with `first` frames given."""
    config = curation_config(args, "tokens")
    config.fixed = (0,)  # or the lengths of every clip's blocks
    config.condition = dict(frames=args.first, lengths=K600_LENGTHS if args.first else ())
    config.data.flip = args.flip
    config.shard_size = 256
    return config


def assignments_config(args) -> ConfigDict:
    """The lengths that a router gives each window."""
    config = curation_config(args, "assignments")
    config.data.flip = args.flip
    config.shard_size = 4096
    return config


CURATION = {"scores": scores_config, "tokens": tokens_config, "assignments": assignments_config}


def router_config(args) -> ConfigDict:
    """The router's job; w_q + w_l = 2."""
    return ConfigDict(
        dict(
            job="train",
            name=f"router-{args.w_q}",
            stage="evatok_jax.stages.router:RouterStage",
            seed=args.seed,
            batch_size=args.batch,
            accumulate=1,
            data=learning_section(args.data, scores=args.scores),
            labels=dict(w_q=args.w_q, w_l=2.0 - args.w_q, temperature=args.temperature),
            model=dict(
                geometry=args.geometry,
                size=args.size,
                dropout=0.1 if small(args.size) else 0.0,
                dtype="float32" if small(args.size) else "bfloat16",
                attention="auto",
            ),
            optim=dict(
                router=default_optim(
                    lr=args.lr,
                    end_lr=args.lr / 100,
                    warmup=50 if small(args.size) else 1000,
                    weight_decay=0.05,
                    clip=1.0,
                    ema=0.99 if small(args.size) else 0.9999,
                )
            ),
            run=run_section(args.steps),
        )
    )


def generator_config(args) -> ConfigDict:
    """The generator's job, on a table of tokens; with `first` frames of each clip given.

    Then nothing is guided, so no class is dropped.
    """
    little = small(args.size)
    return ConfigDict(
        dict(
            job="train",
            name="generator",
            stage="evatok_jax.stages.generator:GeneratorStage",
            seed=args.seed,
            batch_size=args.batch,  # rows
            row_positions=0,  # 0 is room for two of the longest clips
            accumulate=1,
            tokenizer=args.tokenizer,
            # Abstract builds without a tokenizer take the paper's; a run takes its tokenizer's.
            grammar=dict(geometry="nano" if little else "paper128", codebook_size=8192),
            data=dict(tokens=args.tokens),
            model=dict(
                size=args.size,
                num_classes=args.classes,
                class_dropout=0.0 if args.first else 0.1,
                condition=K600_LENGTHS if args.first else (),
                condition_frames=args.first,
                dtype="float32" if little else "bfloat16",
                attention="auto",
                remat="none" if little else "layer",
            ),
            optim=dict(
                generator=default_optim(
                    lr=args.lr,
                    schedule="wsd",
                    warmup=50 if little else 5000,
                    weight_decay=0.05,
                    clip=1.0,
                    ema=0.99 if little else 0.9999,
                )
            ),
            run=run_section(args.steps, mesh=mesh(little)),
        )
    )
