"""The one table of sizes: widths and depths by name, for every model of the project."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StackConfig:
    """Width, depth and heads of one transformer stack."""

    width: int
    layers: int
    heads: int


# Encoder and decoder. "S-B" is the paper's (145M with paper128): GigaTok's small and base.
TOKENIZERS = {
    "tiny": (StackConfig(128, 2, 2), StackConfig(192, 3, 3)),
    "mini": (StackConfig(128, 3, 2), StackConfig(192, 5, 3)),
    "S-B": (StackConfig(512, 6, 8), StackConfig(768, 12, 12)),
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
