"""The paper's experiments: each config of one is a call of a function here.

Every one takes `data`, `seed`, `batch`, `steps`, and `runlocal`, which shrinks clips and models
until the experiment, whole recipe and all, steps on a laptop's CPU.
"""

from ml_collections import ConfigDict

from evatok_jax.config import parse_arguments
from evatok_jax.geometry import geometry
from evatok_jax.presets import (
    add_alignment,
    add_recipe,
    generator_config,
    router_config,
    scores_config,
    tokenizer_config,
    tokens_config,
)

LOCAL_STEPS = 5
IMAGE_BATCH = 256
# Rows of a generator's batch: they hold the paper's batch of clips at the mean lengths that its
# tables give, 740 to 756 of at most 2,048 tokens. Given frames take 640 positions a clip.
ROWS, FRAME_ROWS, IMAGE_ROWS = 24, 32, 48


def _arguments(
    arg,
    steps: int = 0,
    batch: int = 128,
    lr: float = 1e-4,
    images: bool = False,
    fps: float = 0.0,
    **more,
) -> ConfigDict:
    """The arguments, with a geometry and a size that fit the place."""
    args = parse_arguments(arg, data="", seed=0, batch=0, steps=0, lr=0.0, runlocal=False, **more)
    local = args.runlocal
    args.batch = args.batch or (2 if local else batch)
    args.steps = args.steps or (LOCAL_STEPS if local else steps)
    args.lr = args.lr or (1e-3 if local else lr)
    places = ("image256", "image32") if images else ("paper128", "nano")
    args.geometry = places[local]
    args.fps = 0.0 if local else fps  # at hand are often clips of few seconds
    return args


def tokenizer_experiment(
    arg,
    name: str,
    lengths: str,
    steps: int = 400_000,
    adversary: str = "videomae",
    alignment: bool = True,
    codebook_size: int = 16384,
    images: bool = False,
    fps: float = 0.0,
) -> ConfigDict:
    """A tokenizer: `lengths` is random (a proxy), router or fixed (256 a block, one a patch).

    A routed one takes `router`, the export of a router. Clips have `fps` frames a second, 0 for
    the videos' own.
    """
    routed = {"router": ""} if lengths == "router" else {}
    batch = IMAGE_BATCH if images else 128
    args = _arguments(arg, steps, batch, images=images, fps=fps, **routed)
    args.size = "tiny" if args.runlocal else "S-B"
    config = tokenizer_config(args)
    config.name, config.lengths.rule, config.data.fps = name, lengths, args.fps
    if args.runlocal:  # few steps: what matters is to compile little
        config.model.unroll, config.lengths.multiple = 1, geometry(args.geometry).max_length
    else:
        config.model.codebook_size = codebook_size
    if lengths == "router":
        config.lengths.router = args.router
    elif lengths == "fixed":
        g = geometry(args.geometry)
        config.lengths.fixed = (g.block_patches,) * g.blocks
    add_recipe(config, adversary, alignment)
    return config


def image_tokenizer_experiment(arg, name: str, lengths: str) -> ConfigDict:
    """A tokenizer of images: GigaTok's hybrid, aligned with DINOv3 (supplement, image variant).

    The paper does not say which discriminator it had: this is that of the pixels, as of the plain
    video tokenizers. GigaTok's own are a hinge PatchGAN, or heads on DINO-S.
    """
    config = tokenizer_experiment(
        arg, name, lengths, adversary="transformer", alignment=False, images=True
    )
    config.model.stem = "cnn"
    add_alignment(config, "dinov3_b")
    return config


def scores_experiment(arg, windows: int = 100_000, fps: float = 0.0) -> ConfigDict:
    """Scores of random clips, of `fps` frames a second, under every assignment, by the proxy
    `tokenizer`.
    """
    args = _arguments(arg, batch=16, fps=fps, split="train", tokenizer="", windows=0)
    args.windows = args.windows or (2 if args.runlocal else windows)
    args.net = "alex" if args.runlocal else "vgg"
    config = scores_config(args)
    config.data.fps = args.fps
    return config


def router_experiment(
    arg,
    w_q: float = 1.2,
    steps: int = 50_000,
    batch: int = 128,
    images: bool = False,
    fps: float = 0.0,
) -> ConfigDict:
    """A router on the table `scores`, by hard labels; w_l = 2 - w_q; `fps` is that table's."""
    args = _arguments(arg, steps, batch, images=images, fps=fps, scores="", w_q=w_q)
    args.size, args.temperature = "tiny" if args.runlocal else "S", 0.0
    config = router_config(args)
    config.data.fps = args.fps
    return config


def generator_experiment(arg, size: str, classes: int, steps: int, first: int = 0) -> ConfigDict:
    """A generator on the table `tokens` that the tokenizer of the export `tokenizer` wrote.

    With `first` frames of each clip given it predicts the others, and knows no classes.
    """
    rows = FRAME_ROWS if first else ROWS
    args = _arguments(arg, steps, rows, 3e-4, tokenizer="", tokens="", classes=classes)
    args.size, args.first = "tiny" if args.runlocal else size, first
    config = generator_config(args)
    if first:
        config.name, config.model.condition = "frame-prediction", _given_lengths(args)
    return config


def image_generator_experiment(arg, size: str, classes: int, epochs: int, images: int):
    """A generator of images by class, at GigaTok's batch and rate, after so many `images` seen."""
    steps = images * epochs // IMAGE_BATCH
    more = dict(tokenizer="", tokens="", classes=classes)
    args = _arguments(arg, steps, IMAGE_ROWS, 1e-4, images=True, **more)
    args.size, args.first = "tiny" if args.runlocal else size, 0
    config = generator_config(args)
    config.grammar = dict(geometry=args.geometry, codebook_size=16384)
    return config


def tokens_experiment(arg, first: int) -> ConfigDict:
    """The table for frame prediction, by the tokenizer of the export `tokenizer`, whose router
    decides the lengths, or that of the export `router`.
    """
    more = dict(tokenizer="", router="", windows=0, flip=True)
    args = _arguments(arg, batch=16, split="train", **more)
    args.windows = args.windows or (4 if args.runlocal else 0)
    args.first = first
    config = tokens_config(args)
    config.condition.lengths = _given_lengths(args)
    return config


def _given_lengths(args) -> tuple[int, int]:
    """The longest level and the one two below it, 512 and 128 as the paper has them."""
    levels = geometry(args.geometry).levels
    return levels[-1], levels[-3]
