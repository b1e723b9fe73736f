"""What attention costs on this device, by back end, beside what its operations must cost.

    python benchmarks/attention.py                # layers of S-B and GPT-B

The bound is a case's operations at the rate of a large matrix product in the same run: of all pairs
of positions, and of those pairs alone that see each other. Backward counts the four products that
it needs, not the fifth with which tiles compute the logits again. Times are medians, in the order
of the table, each compiled alone; the machine must have nothing else to do.
"""

import argparse
import json
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from evatok_jax.models.attention import attend
from evatok_jax.models.ragged import block_rows, layout
from evatok_jax.models.rows import Rows, visible

LENGTHS = (256, 128, 256, 134)  # 774 tokens, what the paper's router spends on a UCF-101 clip
ROOM = 896  # tokens that a row of the tokenizer holds
CLIPS = (756, 801, 690, 1028, 544, 362)  # of a packed row, length tokens included
PACKED = 4224  # positions of that row
BLOCKS, PATCHES = 4, 256  # of a clip, and of a block
ENCODER_HEADS, DECODER_HEADS, GENERATOR_HEADS, HEAD_DIM = 8, 12, 12, 64
FORWARD, BOTH = 2, 6  # products as large as all logits that the passes need
BACKENDS = {"cpu": ("xla", "blocked"), "tpu": ("xla", "pallas"), "gpu": ("xla", "cudnn")}


def cases(batch: int) -> dict[str, tuple[int, Rows, Rows]]:
    """Name -> heads, queries, keys."""
    tokens = layout(jnp.tile(jnp.asarray([LENGTHS]), (batch, 1)), ROOM).rows
    patches = block_rows(batch, BLOCKS, PATCHES)
    segment = np.repeat(np.arange(len(CLIPS)), CLIPS)
    order = np.concatenate([np.arange(n) for n in CLIPS])
    fill = (0, PACKED - len(order))
    packed = Rows(
        *(
            jnp.tile(jnp.asarray(np.pad(x, fill, constant_values=-1), jnp.int32), (batch, 1))
            for x in (segment, order)
        )
    )
    return {
        "encoder, tokens to tokens": (ENCODER_HEADS, tokens, tokens),
        "encoder, tokens to patches": (ENCODER_HEADS, tokens, patches),
        "decoder, patches to patches": (DECODER_HEADS, patches, patches),
        "decoder, patches to tokens": (DECODER_HEADS, patches, tokens),
        "generator, packed row": (GENERATOR_HEADS, packed, packed),
    }


def seconds(function, args, repeats: int) -> float:
    """Median time of a compiled call."""
    call = jax.jit(function)
    jax.block_until_ready(call(*args))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call(*args))
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def rate(dtype, repeats: int) -> float:
    """Operations a second of a large matrix product."""
    n = 4096 if jax.default_backend() == "cpu" else 16384
    x = jnp.ones((n, n), dtype)
    return 2 * n**3 / seconds(jnp.matmul, (x, x), repeats)


def loss(forward, *args) -> jax.Array:
    """What is differentiated of an answer."""
    return jnp.square(forward(*args).astype(jnp.float32)).sum()


def layers(args, dtype) -> None:
    """A line for each case and back end."""
    rng = np.random.default_rng(0)
    for name, (heads, queries, keys) in cases(args.batch).items():
        sizes = (queries.segment.shape[1], *[keys.segment.shape[1]] * 2)
        shapes = [(args.batch, n, heads, HEAD_DIM) for n in sizes]
        qkv = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
        pairs = args.batch * sizes[0] * sizes[1]
        share = float(visible(queries, keys).mean())
        peak = rate(dtype, args.repeats)
        print(json.dumps({"case": name, "seen": round(share, 3), "gflops": round(peak / 1e9)}))
        for backend in BACKENDS[jax.default_backend()]:
            forward = partial(attend, backend=backend)
            gradients = jax.grad(partial(loss, forward), (0, 1, 2))
            passes = {"forward": (forward, FORWARD), "both": (gradients, BOTH)}
            for what, (function, products) in passes.items():
                spent = seconds(function, (*qkv, queries, keys), args.repeats)
                bound = products * 2 * pairs * heads * HEAD_DIM / peak
                row = {"backend": backend, "pass": what, "ms": round(1e3 * spent, 2)}
                row |= {
                    "x_bound": round(spent / bound, 2),
                    "x_seen": round(spent / bound / share, 2),
                }
                print(json.dumps(row), flush=True)


def main() -> None:
    """Prints a table as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1, help="clips, or packed rows")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    layers(args, dtype)


if __name__ == "__main__":
    main()
