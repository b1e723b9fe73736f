"""Weights of the frozen ViTs from the layouts in which they are published.

| network | layout | file |
|---|---|---|
| VideoMAE-B | Hugging Face `VideoMAEModel` | `model.safetensors` |
| VideoMAE-B | InternVideo's `vit_b_hybrid_pt_800e.pth` (the paper's) | PyTorch |
| V-JEPA 2 ViT-L | Hugging Face `VJEPA2Model` | `model.safetensors` |
| DINOv3 ViT-B | Hugging Face `DINOv3ViTModel` | `model.safetensors` |

Heads, decoders and predictors in the same file are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evatok_jax.pretrained.torch_state import load_torch
from evatok_jax.pretrained.vit import VitConfig, sine_table
from evatok_jax.storage.tensors import load_published


@dataclass(frozen=True)
class Names:
    """What a published layout calls our parts; {} is the layer.

    `query_bias` and `value_bias` are parameters of their own where the keys have no bias; `qkv`
    names one matrix for all three. `prefix` are the tokens before the patches, in their order;
    `out_scale` and `mlp_scale` scale what a layer adds.
    """

    patch: str
    norm: str
    layer: str
    attention_norm: str
    query: str
    key: str
    value: str
    out: str
    mlp_norm: str
    mlp_in: str
    mlp_out: str
    query_bias: str = ""
    value_bias: str = ""
    qkv: str = ""
    prefix: tuple[str, ...] = ()
    out_scale: str = ""
    mlp_scale: str = ""


HF_VIDEOMAE = Names(
    patch="embeddings.patch_embeddings.projection",
    norm="layernorm",
    layer="encoder.layer.{}.",
    attention_norm="layernorm_before",
    query="attention.attention.query",
    key="attention.attention.key",
    value="attention.attention.value",
    query_bias="attention.attention.q_bias",
    value_bias="attention.attention.v_bias",
    out="attention.output.dense",
    mlp_norm="layernorm_after",
    mlp_in="intermediate.dense",
    mlp_out="output.dense",
)
INTERNVIDEO = Names(
    patch="patch_embed.proj",
    norm="norm",
    layer="blocks.{}.",
    attention_norm="norm1",
    query="",
    key="",
    value="",
    qkv="attn.qkv",
    query_bias="attn.q_bias",
    value_bias="attn.v_bias",
    out="attn.proj",
    mlp_norm="norm2",
    mlp_in="mlp.fc1",
    mlp_out="mlp.fc2",
)
HF_VJEPA2 = Names(
    patch="embeddings.patch_embeddings.proj",
    norm="layernorm",
    layer="layer.{}.",
    attention_norm="norm1",
    query="attention.query",
    key="attention.key",
    value="attention.value",
    out="attention.proj",
    mlp_norm="norm2",
    mlp_in="mlp.fc1",
    mlp_out="mlp.fc2",
)
HF_DINOV3 = Names(
    patch="embeddings.patch_embeddings",
    norm="norm",
    layer="layer.{}.",
    attention_norm="norm1",
    query="attention.q_proj",
    key="attention.k_proj",
    value="attention.v_proj",
    query_bias="attention.q_proj.bias",
    value_bias="attention.v_proj.bias",
    out="attention.o_proj",
    out_scale="layer_scale1.lambda1",
    mlp_norm="norm2",
    mlp_in="mlp.up_proj",
    mlp_out="mlp.down_proj",
    mlp_scale="layer_scale2.lambda1",
    prefix=("embeddings.cls_token", "embeddings.register_tokens"),
)


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a `.safetensors` file, or of a PyTorch one.

    Raises ValueError where it is neither.
    """
    if Path(path).suffix == ".safetensors":
        return load_published(np.fromfile(path, np.uint8))
    return load_torch(path)


def convert_vit(flat: Mapping[str, np.ndarray], config: VitConfig, names: Names) -> dict:
    """The tree that `vit_spec(config)` describes, from published tensors.

    Raises ValueError naming every tensor that is missing or has another shape.
    """
    end = f"{names.patch}.weight"
    found = [name for name in flat if name.endswith(end)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} tensors are called ...{end}, expected is one")
    root, problems, d = found[0].removesuffix(end), [], config.width

    def take(name: str, *shape: int, default: np.ndarray | None = None) -> np.ndarray:
        array = flat.get(f"{root}{name}", default)
        if array is None or array.shape != shape:
            state = "is missing" if array is None else f"is {array.shape}, not {shape}"
            problems.append(f"{root}{name} {state}")
            return np.zeros(shape, np.float32)
        return array.astype(np.float32)

    def dense(name: str, a: int, b: int) -> dict:
        return {"kernel": take(f"{name}.weight", b, a).T, "bias": take(f"{name}.bias", b)}

    def norm(name: str, **default) -> dict:
        return {
            "scale": take(f"{name}.weight", d, default=default.get("scale")),
            "bias": take(f"{name}.bias", d, default=default.get("bias")),
        }

    def attention(at: str) -> dict:
        if names.qkv:
            q, k, v = np.split(take(f"{at}{names.qkv}.weight", 3 * d, d), 3)
        else:
            parts = (names.query, names.key, names.value)
            q, k, v = (take(f"{at}{part}.weight", d, d) for part in parts)
        if names.query_bias:
            biases = (take(f"{at}{names.query_bias}", d), np.zeros(d, np.float32))
            biases += (take(f"{at}{names.value_bias}", d),)
        else:
            biases = [take(f"{at}{p}.bias", d) for p in (names.query, names.key, names.value)]
        kernels = zip(("query", "key", "value"), (q, k, v), biases, strict=True)
        return {name: {"kernel": kernel.T, "bias": bias} for name, kernel, bias in kernels}

    def layer(index: int) -> dict:
        at = names.layer.format(index)
        scales = ("out_scale", "mlp_scale") if config.scaled else ()
        return {
            **{name: take(f"{at}{getattr(names, name)}", d) for name in scales},
            "attention_norm": norm(at + names.attention_norm),
            **attention(at),
            "out": dense(at + names.out, d, d),
            "mlp_norm": norm(at + names.mlp_norm),
            "mlp_in": dense(at + names.mlp_in, d, 4 * d),
            "mlp_out": dense(at + names.mlp_out, 4 * d, d),
        }

    # A network for images is published with patches of two axes.
    patch = take(end, d, 3, *config.patch[config.planar :])
    tree = {
        "patch": {
            "kernel": np.moveaxis(patch, (0, 1), (-1, -2)).reshape(-1, d),
            "bias": take(f"{names.patch}.bias", d),
        },
        "layers": _stack([layer(index) for index in range(config.layers)]),
        # Encoders that end in a pooled mean are published without it, and no tap looks at it.
        "norm": norm(names.norm, scale=np.ones(d, np.float32), bias=np.zeros(d, np.float32)),
    }
    if not config.rotary:
        tree["positions"] = sine_table(int(np.prod(config.grid)), d)
    if config.prefix:
        counts = (1, config.prefix - 1)
        tokens = [take(n, 1, k, d)[0] for n, k in zip(names.prefix, counts, strict=True)]
        tree["prefix"] = np.concatenate(tokens)
    if problems:
        raise ValueError("these tensors do not fit:\n  " + "\n  ".join(problems))
    return tree


def _stack(layers: list):
    first = layers[0]
    if isinstance(first, np.ndarray):
        return np.stack(layers)
    return {name: _stack([layer[name] for layer in layers]) for name in first}
