"""Evaluation jobs: evaluators over trained models, with the protocol of every number.

`config.task` is "curves" (quality against cost for uniform lengths, routers and the best of the
search), "final" (the final tokenizer beside its twins) or "generation". Results are JSON and arrays in
the workdir, which the report reads.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from evatok_jax import assets, workdir as workdirs
from evatok_jax.allocation import reward as rewards
from evatok_jax.allocation.assignments import all_assignments, assignment_index
from evatok_jax.api import Generator, Router, Tokenizer
from evatok_jax.data.pipeline import Clips, eval_clips
from evatok_jax.data.tables import read_table
from evatok_jax.evaluators import baselines
from evatok_jax.evaluators.generation import generation_scores, unigram_entropy
from evatok_jax.evaluators.lpips import LpipsMetric
from evatok_jax.evaluators.psnr_ssim import clip_psnr
from evatok_jax.evaluators.reconstruction import at_budget, codebook_report, evaluate_rules
from evatok_jax.models.sequence import PADDING, to_sequence
from evatok_jax.pretrained.i3d import load_i3d
from evatok_jax.storage.export import load_export


def evaluate(config: ConfigDict, workdir: Path) -> None:
    """Runs the task that the config names."""
    workdirs.claim(workdir, config)
    if workdirs.finished(workdir):
        logging.info("%s is finished", workdir)
        return
    TASKS[config.task](config, workdir)
    workdirs.write_json(workdir / "done.json", {"task": config.task})


def protocol(config, clips: Clips, count: int, models: dict[str, str], notes=()) -> dict:
    """What a number depends on, to stand beside it."""
    networks = ["lpips_vgg", "lpips_alex"] + (["i3d"] if config.fvd else [])
    notes = list(notes)
    if clips.manifest["source"] == "samples":
        notes.append("four embedded clips: rFVD here shows that the plumbing works, no quality")
    return {
        "data": clips.manifest["source"],
        "split": f"{clips.split} ({clips.manifest['split_rule']})",
        "clips": count,
        "windows": f"fixed, non-overlapping, {clips.frames} frames at native rate, no flip",
        "seed": config.seed,
        "resolution": f"{clips.frames}x{clips.height}x{clips.width}",
        "networks": {name: assets.file_hash(assets.path(name)) for name in networks},
        "models": models,
        "fvd": "I3D logits, covariance divisor N; 2.5-97.5 % of a bootstrap over clips",
        "notes": notes,
    }


class _Bench:
    """The windows of a split and what it takes to reconstruct them."""

    def __init__(self, config: ConfigDict, tokenizer: Tokenizer):
        g = tokenizer.geometry
        self.config, self.tokenizer = config, tokenizer
        self.clips = Clips(config.data.path, config.data.split, g.frames, g.height, g.width)
        windows = self.clips.windows()
        self.windows = windows[: config.windows] if config.windows else windows
        self.assignments = all_assignments(g.levels, g.blocks)
        self.i3d = jax.device_put(load_i3d()) if config.fvd else None

    def batches(self):
        """Batches of the windows, under a progress bar."""
        size = self.config.batch_size
        batches = eval_clips(self.clips, min(size, len(self.windows)), self.windows)
        total = -(-len(self.windows) // size)
        return tqdm(batches, total=total, desc=self.config.name, unit="batch", dynamic_ncols=True)

    def run(self, rules, tokenizer=None):
        """Scores of a tokenizer under rules."""
        tokenizer = tokenizer or self.tokenizer

        def reconstruct(clips, lengths):
            tokens = tokenizer.encode(clips, lengths)
            real = tokens.slot >= 0
            counts = np.bincount(tokens.codes[real], minlength=tokenizer.config.codebook_size)
            return tokenizer.decode(tokens), counts

        size = tokenizer.config.codebook_size
        return evaluate_rules(self.batches(), rules, reconstruct, size, self.i3d)

    def baselines(self, lengths: np.ndarray) -> list[dict]:
        """Baselines that spend as many bits a clip as these lengths do."""
        g, lpips = self.tokenizer.geometry, LpipsMetric("vgg")
        bits = lengths.sum(axis=1) * np.log2(self.tokenizer.config.codebook_size)
        makers = {
            "mean frame of each block, equal bits": lambda clip, b: baselines.mean_frame_of_bits(
                clip, g.block_frames, b
            ),
            "thumbnail video, equal bits": baselines.thumbnail_video,
            "mean frame of each block, full size": lambda clip, b: baselines.mean_frames(
                clip, g.block_frames
            ),
        }
        values, row = {name: [] for name in makers}, 0
        for batch in self.batches():
            clips = batch["video"][batch["mask"]]
            own = bits[row : row + len(clips)]
            row += len(clips)
            fakes = [
                np.stack([make(clip, b) for clip, b in zip(clips, own, strict=True)])
                for make in makers.values()
            ]
            for name, fake, distance in zip(makers, fakes, lpips(clips, *fakes), strict=True):
                values[name].append((clip_psnr(clips, fake), distance))
        full = 24.0 * g.blocks * g.height * g.width
        rows = []
        for name, found in values.items():
            psnr, distance = (np.concatenate(v).mean() for v in zip(*found, strict=True))
            cost = full if "full size" in name else bits.mean()
            rows.append(
                {"name": name, "bits_per_clip": cost, "psnr": float(psnr), "lpips_vgg": distance}
            )
        return rows


def _uniform(level: int, blocks: int):
    return lambda clips, rows: np.full((len(clips), blocks), level, np.int32)


def _curves(config: ConfigDict, workdir: Path) -> None:
    """Quality against cost on one proxy tokenizer, as EVATok Fig. 4 and Table 8 have it."""
    tokenizer = Tokenizer(load_export(config.tokenizer), config.batch_size)
    bench, g = _Bench(config, tokenizer), tokenizer.geometry
    routers = {w_q: Router(load_export(path)) for w_q, path in zip(*_pairs(config), strict=True)}
    rules = {f"{level} a block": _uniform(level, g.blocks) for level in g.levels}
    rules |= {f"w_q {w_q}": _routed(router) for w_q, router in routers.items()}
    # The search has seen only some windows: the rule that it stands for is measured on those.
    table, train = read_table(config.scores_test), read_table(config.scores_train)
    norm = rewards.Normalizer.of(train["lpips"], bench.assignments)
    place = {(int(r), int(w)): n for n, (r, w) in enumerate(bench.windows)}
    rows = np.array([place[int(r), int(w)] for r, w in zip(table["record"], table["window"])])
    best = {}
    for w_q in config.w_q:
        reward = rewards.proxy_reward(table["lpips"], bench.assignments, norm, w_q, 2.0 - w_q)
        best[w_q] = rewards.labels(reward)
        rules[f"best of the search, w_q {w_q}"] = _looked_up(
            bench.assignments[best[w_q]], rows, len(bench.windows), g
        )
    found = bench.run(rules)
    everywhere = [name for name in rules if not name.startswith("best")]

    def points(kind, subset=slice(None)):
        return [
            found.rules[name].point(name, found.real, subset, config.resamples)
            for name in rules
            if kind(name)
        ]

    def is_uniform(name):
        return name.endswith("a block")

    curves = {
        "uniform": points(is_uniform),
        "router": points(lambda n: n.startswith("w_q")),
    }
    searched = {
        "uniform": points(is_uniform, rows),
        "router": points(lambda n: n.startswith("w_q"), rows),
        "max_proxy_reward": points(lambda n: n.startswith("best"), rows),
    }
    middle = f"{g.levels[len(g.levels) // 2]} a block"
    result = {
        "protocol": protocol(
            config,
            bench.clips,
            len(bench.windows),
            {"tokenizer": tokenizer.digest} | {f"router {w}": r.digest for w, r in routers.items()},
            [
                f"max-proxy-reward and its neighbours on {len(rows)} of the windows, chosen at random"
            ],
        ),
        "curves": {**curves, "max_proxy_reward": searched["max_proxy_reward"]},
        "curves_where_searched": searched,
        "budgets": _budgets(curves, [g.blocks * level for level in g.levels[1:-1]]),
        "budgets_where_searched": _budgets(searched, [g.blocks * n for n in g.levels[1:-1]]),
        "percentiles": {
            str(w_q): _percentiles(bench, table, norm, w_q, found.rules[f"w_q {w_q}"].lengths[rows])
            for w_q in routers
        },
        "codebook": codebook_report(found.codes_used),
        "baselines": bench.baselines(found.rules[middle].lengths),
        "baselines_beside": found.rules[middle].point(middle, resamples=0),
        "rules": everywhere,
    }
    workdirs.write_json(workdir / "curves.json", result)


def _pairs(config: ConfigDict):
    return tuple(config.w_q), tuple(config.routers)


def _routed(router: Router):
    return lambda clips, rows: router.route(clips)


def _looked_up(lengths, rows, count: int, geometry):
    """Lengths known for some windows only; the others get the shortest and are not looked at."""
    table = np.full((count, geometry.blocks), geometry.levels[0], np.int32)
    table[rows] = lengths
    return lambda clips, index: table[index]


def _budgets(curves: dict, budgets) -> list[dict]:
    """LPIPS of every curve at equal mean tokens, and what the router gains over uniform."""
    result = []
    for tokens in budgets:
        row = {"tokens": tokens}
        row |= {name: at_budget(points, tokens, "lpips_vgg") for name, points in curves.items()}
        if row["uniform"] and row["router"]:
            row["router_gain"] = 1.0 - row["router"] / row["uniform"]
        result.append(row)
    return result


def _percentiles(bench, table, norm, w_q: float, lengths: np.ndarray) -> dict:
    """Proxy-reward percentiles of the router and of what it must beat (EVATok Eq. 8, Table 8)."""
    assignments, levels = bench.assignments, bench.tokenizer.geometry.levels
    reward = rewards.proxy_reward(table["lpips"], assignments, norm, w_q, 2.0 - w_q)
    fixed = rewards.best_fixed(reward)
    chosen = assignment_index(lengths, levels)
    return {
        "router": rewards.percentile(reward, chosen),
        "best_fixed": rewards.percentile(reward, np.full(len(reward), fixed)),
        "best_fixed_lengths": assignments[fixed].tolist(),
        "best_uniform_per_clip": rewards.percentile(
            reward, rewards.best_uniform(reward, assignments)
        ),
        "top1": float((chosen == rewards.labels(reward)).mean()),
        "clips": len(reward),
    }


def _final(config: ConfigDict, workdir: Path) -> None:
    """The final tokenizer beside its uniform twin and the proxy, and film strips of it."""
    tokenizer = Tokenizer(load_export(config.tokenizer), config.batch_size)
    bench, g = _Bench(config, tokenizer), tokenizer.geometry
    models, rows, codebook, lengths = {}, [], None, None
    for name, path, level in zip(config.names, config.exports, config.fixed, strict=True):
        model = Tokenizer(load_export(path), config.batch_size)
        if model.router is None and config.router:
            model.use_router(config.router)
        rule = _uniform(level, g.blocks) if level else _routed(model.router)
        found = bench.run({name: rule}, model)
        rows.append(found.rules[name].point(name, found.real, resamples=config.resamples))
        models[name] = model.digest
        if codebook is None:
            codebook, lengths = codebook_report(found.codes_used), found.rules[name].lengths
            lpips = found.rules[name].values["lpips_vgg"]
    workdirs.write_json(
        workdir / "final.json",
        {
            "protocol": protocol(config, bench.clips, len(bench.windows), models),
            "rows": rows,
            "codebook": codebook,
            "baselines": bench.baselines(lengths),
        },
    )
    order = np.argsort(lengths.sum(axis=1), kind="stable")
    half = min(config.strips // 2, len(order) // 2)
    picked = np.concatenate([order[:half], order[len(order) - half :]])
    batch = next(eval_clips(bench.clips, len(picked), bench.windows[picked]))
    write_arrays(
        workdir / "strips.npz",
        original=batch["video"],
        reconstruction=tokenizer.reconstruct(batch["video"], lengths[picked]),
        lengths=lengths[picked],
        lpips=lpips[picked],
        key=bench.clips.index["key"][batch["record"]],
        window=batch["window"],
    )


def _generation(config: ConfigDict, workdir: Path) -> None:
    """Samples by class, their gFVD, and the loss on held-out tokens beside the unigram entropy."""
    generator = Generator(load_export(config.generator), config.batch_size)
    g, grammar = generator.tokenizer.geometry, generator.config.grammar
    clips = Clips(config.data.path, config.data.split, g.frames, g.height, g.width)
    count = config.samples
    classes = np.arange(count) % generator.config.num_classes
    tokens = generator.sample_tokens(classes, config.seed, config.guidance)
    video = generator.tokenizer.decode(tokens)
    result = {"samples": count, "tokens": float(tokens.lengths.sum(axis=1).mean())}
    result["tokens_per_block"] = tokens.lengths.mean(axis=0).tolist()
    real_count = 0
    if config.fvd:
        windows = clips.windows()
        windows = np.random.default_rng(config.seed).permutation(windows)[:count]
        batch = next(eval_clips(clips, len(windows), windows))
        real_count = len(windows)
        result |= generation_scores(
            video, batch["video"], jax.device_put(load_i3d()), config.resamples
        )
    for split, path in (("train", config.tokens_train), ("test", config.tokens_test)):
        result[split] = _token_loss(generator, grammar, read_table(path), config.batch_size)
    models = {"generator": generator.digest, "tokenizer": generator.tokenizer.digest}
    result |= {
        "loss": result["test"]["loss"],
        "unigram_entropy": result["test"]["unigram_entropy"],
        "guidance": config.guidance,
        "classes": clips.classes,
        "protocol": protocol(config, clips, real_count, models),
    }
    workdirs.write_json(workdir / "generation.json", result)
    shown = slice(0, config.shown)
    write_arrays(
        workdir / "samples.npz",
        video=video[shown],
        label=classes[shown],
        lengths=tokens.lengths[shown],
    )


def _token_loss(generator: Generator, grammar, table, batch_size: int) -> dict:
    """Mean next-token loss over a table, and the entropy of its tokens' frequencies, in nats."""
    clips = len(table["codes"])
    lengths = jnp.asarray(table["lengths"], jnp.int32)
    codes = jnp.asarray(table["codes"], jnp.int32)
    ids, kind = map(np.asarray, to_sequence(codes, lengths, grammar, grammar.longest))
    total = 0.0
    for first in range(0, clips, batch_size):
        rows = np.arange(first, first + batch_size)
        own = np.minimum(rows, clips - 1)
        # Rows that fill the last batch are all padding: they count nothing.
        real = np.where((rows < clips)[:, None], kind[own], PADDING)
        label = jnp.asarray(table["label"][own], jnp.int32)
        loss, _ = generator.token_loss(label, jnp.asarray(ids[own]), jnp.asarray(real))
        total += float(loss) * (real != PADDING).sum()
    tokens = ids[kind != PADDING]
    return {
        "loss": total / len(tokens),
        "unigram_entropy": unigram_entropy(tokens),
        "clips": clips,
        "tokens": len(tokens),
    }


def write_arrays(path: Path, **arrays) -> None:
    """Compressed arrays, written beside and renamed."""
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(beside, path)


TASKS = {"curves": _curves, "final": _final, "generation": _generation}
