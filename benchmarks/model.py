"""What the S-B tokenizer and its router cost on this device, beside what they must.

    python benchmarks/model.py [--backend auto] [--train]

One clip of 774 tokens is encoded and decoded, and routed; with --train, a step of gradients from L1
and the codebook's losses on two such clips, in one row. The bound is the operations of the model at
the rate of a large matrix product in the same run, so a machine that is busy slows both. Parameters
and pixels are random. Peak memory is the process's own, before --train.
"""

import argparse
import json
import resource
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from attention import LENGTHS, ROOM, rate, seconds

from evatok_jax.flops import count_flops
from evatok_jax.geometry import geometry
from evatok_jax.models.build import build_router, build_tokenizer
from evatok_jax.models.ragged import layout

CLIP = geometry("paper128").clip_shape
KEY = jax.random.key(0)


def drawn(shapes):
    """Parameters without waiting for their initialisation."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(0.02 * rng.standard_normal(x.shape, np.float32)), shapes
    )


def report(name: str, function, args, dtype, options) -> None:
    spent = seconds(function, args, options.repeats)
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    count = count_flops(jaxpr, [], recomputed=False).total()
    peak = rate(dtype, options.repeats)
    row = {"work": name, "seconds": round(spent, 3), "bound": round(count / peak, 3)}
    row |= {"ratio": round(spent * peak / count, 2)}
    row |= {"gflop": round(count / 1e9), "gflops": round(peak / 1e9)}
    print(json.dumps(row), flush=True)


def main() -> None:
    """Prints a line of JSON for each kind of work."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="auto", help="of attention")
    parser.add_argument("--train", action="store_true", help="a step of gradients too")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    common = {"geometry": "paper128", "dtype": dtype, "attention": options.backend}
    tokenizer = build_tokenizer(common | {"size": "S-B", "unroll": 1})
    clip, lengths = jnp.zeros((1, *CLIP)), jnp.asarray([LENGTHS], jnp.int32)
    init = partial(tokenizer.init, size=ROOM)
    params = drawn(jax.eval_shape(init, KEY, clip, lengths))

    def reconstruct(params, clip, lengths):
        return tokenizer.apply(params, clip, lengths, ROOM)[0]

    report("encode and decode", reconstruct, (params, clip, lengths), dtype, options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak memory": f"{peak / 1e9:.2f} GB"}), flush=True)
    router = build_router(common | {"size": "S"})
    weights = drawn(jax.eval_shape(router.init, KEY, clip))
    report("route", router.apply, (weights, clip), dtype, options)
    if options.train:

        def loss(params, clips, lengths):
            rows = layout(lengths, 2 * sum(LENGTHS), clips=2)
            keys = jax.random.split(KEY, 2)
            fake, made, _ = tokenizer.apply(params, clips, rows, keys, method="training_pass")
            return jnp.abs(fake - clips).mean() + sum(made.losses.values())

        clips = jnp.zeros((2, *CLIP))
        args = params, clips, jnp.asarray([LENGTHS] * 2, jnp.int32)
        options.repeats = min(options.repeats, 3)
        report("training step, 2 clips", jax.grad(loss), args, dtype, options)


if __name__ == "__main__":
    main()
