"""What tokens cost: adaptive batches beside uniform ones and beside padding to the longest.

    python benchmarks/ragged.py                            # a table; minutes on a CPU
    python benchmarks/ragged.py --size S-B --only encoder,tokenizer
    python benchmarks/ragged.py --figure ragged.svg        # time against mean tokens
    python benchmarks/ragged.py --json ragged.json

Lengths are drawn per block so that clips have about 756 tokens, the mean that the paper's router
spends on UCF-101. Of one kind of work all contenders are compiled first and then take turns, so a
table's ratios are those of one run; times are medians over the rounds, in ms a clip. Pixels and
parameters are random: neither changes what a step costs.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from evatok_jax import train as training
from evatok_jax.api import Tokenizer as TokenizerApi
from evatok_jax.config import load_config
from evatok_jax.data.plans import Packing
from evatok_jax.geometry import geometry
from evatok_jax.models.build import build_tokenizer
from evatok_jax.models.packed import pack, packed_lengths
from evatok_jax.models.ragged import layout, static_size
from evatok_jax.models.tokenizer import Tokenizer
from evatok_jax.pixels import to_model
from evatok_jax.pretrained.lpips import lpips_spec
from evatok_jax.stages.stage import load_stage
from evatok_jax.storage.export import Export

G = geometry("paper128")
CHANCES = (0.13, 0.17, 0.26, 0.33, 0.11)  # of the levels; 756 tokens a clip
UNIFORM = (256,) * G.blocks
KEY = jax.random.key(0)


def adaptive(clips: int, rng, chances=CHANCES) -> np.ndarray:
    """Lengths [clips, blocks], drawn block by block until they have the mean of their chances."""
    mean = G.blocks * np.dot(G.levels, chances)
    while True:
        lengths = rng.choice(G.levels, (clips, G.blocks), p=chances).astype(np.int32)
        if abs(lengths.sum(axis=1).mean() - mean) <= 0.01 * mean:
            return lengths


def layouts(clips: int, chances=CHANCES) -> dict[str, tuple[np.ndarray, int, int]]:
    """Contender -> lengths, clips of a row, static size."""
    lengths = adaptive(clips, np.random.default_rng(0), chances)
    uniform, total = np.tile(UNIFORM, (clips, 1)).astype(np.int32), int(lengths.sum())
    longest = int(lengths.sum(axis=1).max())
    return {
        "uniform 1,024": (uniform, 1, 1024),
        "adaptive, shared rows": (lengths, clips, static_size(total, 128 * clips, 2048 * clips)),
        "adaptive, own rows": (lengths, 1, static_size(longest, 128, 2048)),
        "padded to 2,048": (lengths, 1, 2048),
    }


# ---- kinds of work: contender -> (a call, clips of it, tokens a clip) --------------------------


def tokenizer_config(args):
    spec = f"geometry=paper128,size={args.size},batch={args.clips},level=256"
    return load_config(f"configs/final.py:{spec}" + (",adversary=transformer" if args.full else ""))


def encoder(args, chances=CHANCES) -> dict:
    """Encoder and codebook with their gradients."""

    def loss(model, z, rows, video):
        return sum(model.quantizer(z, rows).losses.values())

    return _half(args, chances, loss)


def tokenizer(args, chances=CHANCES) -> dict:
    """The tokenizer's gradients from L1 and its codebook's losses."""

    def loss(model, z, rows, video):
        made = model.quantizer(z, rows)
        fake, _, _ = model._decode(made.vectors, rows, 0, None)
        return jnp.abs(fake - video).mean() + sum(made.losses.values())

    return _half(args, chances, loss)


def _half(args, chances, loss_of) -> dict:
    stage = load_stage(tokenizer_config(args))
    video = _video(args.clips)
    params = jax.jit(partial(stage.model.init, size=4))(
        KEY, jnp.zeros((1, *G.clip_shape)), jnp.ones((1, G.blocks), jnp.int32)
    )

    def make(lengths, clips, size):
        @jax.jit
        def step(params, video, lengths):
            rows = layout(lengths, size, clips=clips)

            def loss(model: Tokenizer, video):
                z, _ = model._encode(video, rows, 0, None)
                return loss_of(model, z, rows, video)

            pixels = to_model(video)
            return jax.grad(lambda p: stage.model.apply(p, pixels, method=loss))(params)

        return partial(step, params, video, lengths)

    return {
        name: (make(*case), args.clips, case[0].sum(axis=1).mean())
        for name, case in layouts(args.clips, chances).items()
    }


def whole(args, chances=CHANCES) -> dict:
    """The step of the loop: with LPIPS, a discriminator that learns, and optimisers."""
    args = argparse.Namespace(**vars(args) | {"full": True})
    found = {}
    for name, (lengths, clips, size) in layouts(args.clips, chances).items():
        config = tokenizer_config(args)
        config.lengths.row, config.adversary.start = clips, 0
        config.loss.update(lpips_frames=0, lpips_clips=0)
        stage = load_stage(config)
        optimizers = stage.optimizers(10)
        tokens = lengths.sum(axis=1)
        batch = {
            "video": _video(args.clips),
            "lengths": lengths,
            "mean_tokens": np.full(args.clips, tokens.mean(), np.float32),
            "key": np.arange(args.clips, dtype=np.uint32),
            "window": np.zeros(args.clips, np.int32),
        }
        init = jax.jit(partial(training.init_state, stage, optimizers, KEY))
        step = training.make_step(stage, optimizers, tuple(stage.periods), size)
        frozen = {"lpips": _drawn(lpips_spec("vgg"))}
        call = partial(jax.jit(step), init(batch), frozen, batch, KEY)
        found[name] = call, args.clips, tokens.mean()
    return found


def encode(args) -> dict:
    """Tokens of clips, as `evatok encode` makes them: batches of clips of near-equal length."""
    return _api(args, lambda api, clips, tokens, lengths: partial(api.encode, clips, lengths))


def decode(args) -> dict:
    """The way back."""
    return _api(args, lambda api, clips, tokens, lengths: partial(api.decode, tokens))


def _api(args, make) -> dict:
    config = tokenizer_config(args)
    description = load_stage(config).description
    model = build_tokenizer(description)
    params = jax.jit(partial(model.init, size=4))(
        KEY, jnp.zeros((1, *G.clip_shape)), jnp.ones((1, G.blocks), jnp.int32)
    )["params"]
    export = Export("tokenizer", {"tokenizer": description}, {"tokenizer": params}, {}, digest="")
    clips, found = np.asarray(_video(4 * args.clips)), {}
    lengths = adaptive(len(clips), np.random.default_rng(0))
    uniform = np.tile(UNIFORM, (len(clips), 1)).astype(np.int32)
    for name, own, multiple in (
        ("uniform 1,024", uniform, G.max_length // 8),
        ("adaptive, by length", lengths, G.max_length // 8),
        ("padded to 2,048", lengths, G.max_length),
    ):
        api = TokenizerApi(export, args.clips)
        api.multiple = multiple
        tokens = api.encode(clips, own)
        found[name] = make(api, clips, tokens, own), len(clips), own.sum(axis=1).mean()
    return found


def generator(args, chances=CHANCES) -> dict:
    """The generator's step: packed rows, of adaptive and of uniform clips; and rows of one clip."""
    rng, found = np.random.default_rng(0), {}
    adapted = adaptive(64, rng, chances)
    for name, lengths, positions in (
        ("uniform 1,024", np.tile(UNIFORM, (64, 1)).astype(np.int32), 0),
        ("adaptive, packed", adapted, 0),
        ("one clip a row", adapted, 2176),
    ):
        config = load_config(f"configs/generator.py:size={args.generator},batch={args.rows}")
        config.grammar.geometry, config.row_positions = "paper128", positions
        stage = load_stage(config)
        codes = rng.integers(0, 8192, (64, G.max_length)).astype(np.uint16)
        table = {"codes": codes, "lengths": lengths, "label": np.zeros(64, np.int32)}
        taken = packed_lengths(table)
        if positions:  # every clip alone: as if none were short enough to share a row
            plan = Packing(np.full(64, positions), positions, seed=0).take(np.arange(args.rows))
            kept = np.arange(positions) < taken[plan.clips]
            plan = type(plan)(plan.clips, plan.offsets, np.where(kept, 0, -1).astype(np.int32))
        else:
            plan = Packing(taken, stage.capacity, seed=0).take(np.arange(args.rows))
        batch = pack(table, plan, stage.model.config.grammar)
        batch |= {
            "key": np.arange(args.rows, dtype=np.uint32),
            "window": np.zeros(args.rows, np.int32),
        }
        batch, _ = stage.prepare(None, batch, KEY)
        optimizers = {"generator": optax.sgd(1e-3)}
        state = jax.jit(partial(training.init_state, stage, optimizers, KEY))(batch)
        step = jax.jit(training.make_step(stage, optimizers, ("generator",), ()))
        clips = int((plan.clips >= 0).sum())
        own = lengths[plan.clips[plan.clips >= 0]]
        found[name] = partial(step, state, None, batch, KEY), clips, own.sum(axis=1).mean()
    return found


WORK = {f.__name__: f for f in (encoder, tokenizer, whole, encode, decode, generator)}
CURVES = ("tokenizer", "generator")
MEANS = {  # chances of the levels by the mean of a clip's tokens that they give
    256: (0.45, 0.35, 0.13, 0.06, 0.01),
    512: (0.24, 0.27, 0.27, 0.18, 0.04),
    756: CHANCES,
    1024: (0.05, 0.1, 0.2, 0.45, 0.2),
    1536: (0.01, 0.03, 0.06, 0.3, 0.6),
}


def measure(contenders: dict[str, tuple[Callable, int, float]], rounds: int) -> dict:
    """Contender -> its medians over rounds in which they take turns."""
    times = {name: [] for name in contenders}
    for call, *_ in contenders.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, (call, *_) in contenders.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - began)
    return {
        name: {"tokens": float(tokens), "ms_per_clip": 1e3 * float(np.median(times[name])) / clips}
        for name, (_, clips, tokens) in contenders.items()
    }


def _video(clips: int) -> jax.Array:
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.integers(0, 256, (clips, *G.clip_shape)), jnp.uint8)


def _drawn(spec):
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.01, s.shape), jnp.float32), spec)


def show(kind: str, rows: dict) -> None:
    whole = rows["uniform 1,024"]
    print(f"\n{kind + ': ' + WORK[kind].__doc__.partition('.')[0]}")
    print(f"  {'':24}{'tokens':>8}{'ratio':>8}{'ms/clip':>10}{'ratio':>8}")
    for name, row in rows.items():
        tokens, ms = row["tokens"], row["ms_per_clip"]
        ratios = tokens / whole["tokens"], ms / whole["ms_per_clip"]
        print(f"  {name:24}{tokens:8.0f}{ratios[0]:8.2f}{ms:10.1f}{ratios[1]:8.2f}")


def draw(args, path: str) -> dict:
    """The figure: time a clip against mean tokens, both over those of uniform clips of 1,024."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 4), layout="constrained")
    found = {}
    for kind in CURVES:
        points = {}
        for mean, chances in MEANS.items():
            made = WORK[kind](args, chances)
            name = next(n for n in made if n in ("adaptive, shared rows", "adaptive, packed"))
            pair = {n: made[n] for n in ("uniform 1,024", name)}
            rows = measure(pair, args.rounds)
            base, own = rows["uniform 1,024"], rows[name]
            points[own["tokens"]] = own["ms_per_clip"] / base["ms_per_clip"]
            print(f"{kind}, about {mean} tokens: {own}, of uniform {base}", flush=True)
        found[kind] = points
        axes.plot(*zip(*sorted(points.items()), strict=True), marker="o", label=f"{kind} step")
    axes.plot([0, 1600], [0, 1600 / 1024], color="gray", linewidth=0.8, label="as the tokens")
    axes.set(xlabel="mean tokens of a clip", ylabel="time a clip, of uniform 1,024's")
    axes.set(xlim=(0, None), ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", default="mini", help="of the tokenizer")
    parser.add_argument("--generator", default="mini", help="its size")
    parser.add_argument("--clips", type=int, default=8, help="of a batch")
    parser.add_argument("--rows", type=int, default=2, help="of a generator's batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(WORK), help="kinds of work")
    parser.add_argument("--figure", default="", help="draws time against mean tokens, a file")
    parser.add_argument("--json", default="", help="all numbers, a file")
    args = parser.parse_args()
    args.full = False
    found = {}
    if args.figure:
        found["figure"] = draw(args, args.figure)
    else:
        for kind in args.only.split(","):
            found[kind] = measure(WORK[kind](args), args.rounds)
            show(kind, found[kind])
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"arguments": vars(args), **found}, file, indent=1)


if __name__ == "__main__":
    main()
