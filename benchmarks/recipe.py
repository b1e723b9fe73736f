"""What each part of the full recipe costs: its operations, and its time.

    python benchmarks/recipe.py                     # operations of a step at full size
    python benchmarks/recipe.py --time              # and times; 13 GB, 20 minutes on a CPU
    python benchmarks/recipe.py --time --runlocal   # both of the tiny recipe

It is the S-B step of `configs/webvid_uniform_videomae.py` (`--transformer`: without VideoMAE), in
which the discriminator learns; in four of five it does not, and pays no "judging". A part's time is
that of its own loss and gradient, compiled alone. All weights are random: nothing is downloaded.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from evatok_jax import train
from evatok_jax.config import load_config
from evatok_jax.flops import flops_by_scope
from evatok_jax.losses.perceptual import frame_lpips
from evatok_jax.models.dropout import split_keys
from evatok_jax.models.ragged import layout
from evatok_jax.pixels import to_model
from evatok_jax.stages.stage import load_stage, sample_keys
from evatok_jax.stages.tokenizer import TokenizerStage

GROUPS = ("tokenizer", "discriminator", "alignment")


def make_stage(args) -> TokenizerStage:
    """The stage; on a CPU in fp32, since it has no bf16 units."""
    name = "webvid_uniform" + ("" if args.transformer else "_videomae")
    spec = f"batch={args.batch}" + (",runlocal" if args.runlocal else "")
    config = load_config(f"configs/{name}.py:{spec}")
    if jax.default_backend() == "cpu":
        config.model.dtype = config.adversary.dtype = config.alignment.dtype = "float32"
    return load_stage(config)


def filled(spec, seed: int = 0):
    """Arrays of these shapes: small random numbers, bytes for pixels."""
    rng = np.random.default_rng(seed)

    def leaf(x):
        if x.dtype == jnp.uint8:
            return jnp.asarray(rng.integers(0, 256, x.shape, np.uint8))
        if jnp.issubdtype(x.dtype, jnp.integer):
            return jnp.zeros(x.shape, x.dtype)
        return jnp.asarray(0.02 * rng.standard_normal(x.shape, np.float32), x.dtype)

    return jax.tree.map(leaf, spec)


def parts(stage: TokenizerStage, params, state, frozen, batch, static):
    """Each part alone: name -> (function, arguments); a function returns loss and gradient."""
    config = stage.config
    keys = split_keys(sample_keys(jax.random.key(0), batch), 5)
    video = to_model(batch["video"])
    fake = video[:, ::-1]
    width = stage.model.config.decoder.width
    features = jnp.ones((len(video), stage.geometry.blocks * stage.geometry.block_patches, width))
    judge, memory = params["discriminator"], state["adversary"]
    rows = layout(batch["lengths"], static)

    def autoencoder(params, video):
        fake, q, _ = stage.model.apply(
            {"params": params}, video, rows, keys[0], method="training_pass"
        )
        return jnp.abs(fake - video).mean() + sum(q.losses.values())

    def perceptual(fake, frozen, video):
        loss = config.loss
        scored = loss.lpips_clips or len(video)
        return frame_lpips(
            frozen["lpips"],
            video[:scored],
            fake[:scored],
            keys[1],
            loss.lpips_frames,
            loss.lpips_net,
            jnp.dtype(loss.lpips_dtype),
        )

    def alignment(learnt, frozen, video):
        seen = stage.aligner.look(frozen, video)
        return stage.aligner.loss(*learnt, seen)

    def fooling(fake, frozen):
        return stage.adversary.fool(judge, memory, stage.adversary.look(frozen, fake, keys[2]))

    def judging(judge, frozen, video, seen):
        real = stage.adversary.look(frozen, video, keys[3])
        return stage.adversary.judge(judge, memory, real, seen, keys[4])[0]

    seen = jax.jit(stage.adversary.look)(frozen, fake, keys[2])
    return {
        "autoencoder": (autoencoder, (params["tokenizer"], video)),
        "perceptual": (perceptual, (fake, frozen, video)),
        "alignment": (alignment, ((params["alignment"], features), frozen, video)),
        "fooling": (fooling, (fake, frozen)),
        "judging": (judging, (judge, frozen, video, seen)),
    }


def seconds(function, args, repeats: int) -> float:
    """Median time of a compiled call."""
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def main() -> None:
    """Prints a table as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--time", action="store_true", help="time the parts and a whole step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--runlocal", action="store_true", help="the tiny recipe")
    parser.add_argument("--transformer", action="store_true", help="LARP's discriminator")
    args = parser.parse_args()
    stage = make_stage(args)
    optimizers = stage.optimizers(100)
    batch, frozen = stage.batch_spec(), stage.frozen_spec()
    static = sum(stage.config.lengths.fixed)
    rng = jax.random.key(0)
    state = jax.eval_shape(lambda b: train.init_state(stage, optimizers, rng, b), batch)
    step = train.make_step(stage, optimizers, GROUPS, static)
    flops = flops_by_scope(step, state, frozen, batch, rng, scopes=stage.SCOPES)
    rows = {name: {"gflop": flops[name] / 1e9} for name in (*stage.SCOPES, "other")}
    whole = flops.total()
    for row in rows.values():
        row["share_of_flop"] = row["gflop"] * 1e9 / whole
    rows["whole"] = {"gflop": whole / 1e9}
    if args.time:
        frozen, batch = filled(frozen, 1), filled(batch, 2)
        batch["lengths"] = jnp.full_like(batch["lengths"], stage.config.lengths.fixed[0])
        batch["mean_tokens"] = jnp.full_like(batch["mean_tokens"], static)
        fresh = jax.jit(lambda b: train.init_state(stage, optimizers, rng, b))(batch)
        alone = parts(stage, fresh.params, fresh.state, frozen, batch, static)
        for name, (function, own) in alone.items():
            rows[name]["seconds"] = seconds(
                jax.jit(jax.value_and_grad(function)), own, args.repeats
            )
        del alone, own
        total = sum(row.get("seconds", 0.0) for row in rows.values())
        for row in rows.values():
            if "seconds" in row:
                row["share_of_time"] = row["seconds"] / total
        call = jax.jit(step)
        rows["whole"]["seconds"] = seconds(call, (fresh, frozen, batch, rng), args.repeats)
        _, metrics = call(fresh, frozen, batch, rng)
        rows["whole"]["finite"] = all(bool(jnp.isfinite(v)) for v in metrics.values())
    print(json.dumps({"config": stage.config.name, "batch": args.batch, **stage.config.run.mesh}))
    for name, row in rows.items():
        row = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        print(json.dumps({"part": name, **row}))


if __name__ == "__main__":
    main()
