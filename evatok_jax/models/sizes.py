"""The one table of sizes: widths and depths by name, for every model of the project."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StackConfig:
    """Width, depth and heads of one transformer stack."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class CnnConfig:
    """The CNN stem of a hybrid tokenizer (`models/cnn.py`).

    Attributes:
      channels: of the finest scale; a multiple of 4, and of 128 above 128 (groups of the norms).
      multipliers: of the channels, a scale each, fine to coarse; every scale but the first halves
        the sides, so the patch is 2 ** (scales - 1) pixels wide.
      blocks: residual blocks a scale; the decoder has one more.
      features: channels at the patch grid, between the CNN and the transformers.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    features: int = 256


# Encoder and decoder. "S-B" is the paper's (145M with paper128): GigaTok's small and base.
TOKENIZERS = {
    "tiny": (StackConfig(128, 2, 2), StackConfig(192, 3, 3)),
    "mini": (StackConfig(128, 3, 2), StackConfig(192, 5, 3)),
    "S-B": (StackConfig(512, 6, 8), StackConfig(768, 12, 12)),
}

# Of the tokenizers with `stem="cnn"`: GigaTok's, and small ones for patches of 8 pixels.
CNNS = {
    "tiny": CnnConfig(16, (1, 1, 2, 2), 1, 32),
    "mini": CnnConfig(32, (1, 1, 2, 2), 1, 64),
    "S-B": CnnConfig(),
}

# "S" is the paper's router (19.9M): GigaTok's small as a plain ViT.
ROUTERS = {
    "tiny": StackConfig(64, 2, 1),
    "mini": StackConfig(192, 4, 3),
    "S": StackConfig(512, 6, 8),
}

# LlamaGen's shapes; "L-plus" is the paper's 633M model.
GENERATORS = {
    "tiny": StackConfig(128, 3, 2),
    "mini": StackConfig(256, 6, 4),
    "GPT-B": StackConfig(768, 12, 12),
    "GPT-L": StackConfig(1024, 24, 16),
    "GPT-L-plus": StackConfig(1280, 30, 20),
}

# "LARP" is the discriminator of LARP's large run (EVATok's proxy and plain final tokenizers).
DISCRIMINATORS = {
    "tiny": StackConfig(64, 2, 1),
    "mini": StackConfig(128, 3, 2),
    "LARP": StackConfig(512, 12, 8),
}
