"""Evaluation jobs: evaluators over trained models, with the protocol of every number.

`config.task` is "curves" (quality against cost for uniform lengths, routers and the best of the
search), "final" (the final tokenizer beside its twins) or "generation". Results are JSON and
arrays in the workdir, which the report reads.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from evatok_jax import workdir as workdirs
from evatok_jax.allocation import reward as rewards
from evatok_jax.api import Generator, Router, Tokenizer
from evatok_jax.atomic import replacing
from evatok_jax.bench import Bench, Routed, fvd_network, looked_up, protocol, uniform
from evatok_jax.data.clips import Clips
from evatok_jax.data.pipeline import eval_clips
from evatok_jax.data.tables import check_origin, grid, read_table
from evatok_jax.evaluators.generation import (
    generation_features,
    generation_scores,
    unigram_entropy,
    unigram_loss,
)
from evatok_jax.evaluators.reconstruction import at_budget, codebook_report
from evatok_jax.models.sequence import PADDING, to_sequence
from evatok_jax.names import nearest
from evatok_jax.storage.export import load_export


def evaluate(config: ConfigDict, workdir: Path) -> None:
    """Runs the task that the config names."""
    if config.task not in TASKS:
        raise ValueError(f"unknown task {config.task!r}: {nearest(config.task, TASKS)}")
    paths = config.tokenizer, config.router, config.generator, *config.exports, *config.routers
    workdirs.claim(workdir, config, {path: load_export(path).digest for path in paths if path})
    if workdirs.finished(workdir):
        logging.info("%s is finished", workdir)
        return
    TASKS[config.task](config, workdir)
    workdirs.write_json(workdir / "done.json", {"task": config.task})


def _curves(config: ConfigDict, workdir: Path) -> None:
    """Quality against cost on one proxy tokenizer, as EVATok Fig. 4 and Table 8 have it."""
    tokenizer = Tokenizer(load_export(config.tokenizer), config.batch_size)
    bench, g = Bench(config, workdir, tokenizer), tokenizer.geometry
    routers = {
        w_q: Router(load_export(path)) for w_q, path in zip(config.w_q, config.routers, strict=True)
    }
    rules = {f"{level} a block": uniform(level, g.blocks) for level in g.levels}
    routed = {f"w_q {w_q}": Routed(router, len(bench.windows)) for w_q, router in routers.items()}
    found = bench.run("all", rules | routed)
    # The search has seen only some windows: the rules that it stands for are measured on those.
    check_origin(config.scores_test, grid(bench.clips))
    table, train = read_table(config.scores_test), read_table(config.scores_train)
    norm = rewards.Normalizer.of(train["lpips"], bench.assignments)
    rows = bench.rows(table["record"], table["window"])
    chosen = {"max_proxy_reward": _best(bench, table, norm, config.w_q)}
    if config.scores_vgg:
        check_origin(config.scores_vgg, grid(bench.clips))
        other = read_table(config.scores_vgg)
        if not np.array_equal(rows, bench.rows(other["record"], other["window"])):
            raise ValueError(f"{config.scores_vgg}: expected the windows of {config.scores_test}")
        own = rewards.Normalizer.of(other["lpips"], bench.assignments)
        chosen["max_proxy_reward_vgg"] = _best(bench, other, own, config.w_q)
    searched = {
        name: bench.run(f"searched-{name}", rules, rows=rows) for name, rules in chosen.items()
    }

    def points(names, subset=slice(None)):
        return [found.rules[n].point(n, found.real, subset, config.resamples) for n in names]

    curves = {"uniform": points(rules), "router": points(routed)}
    alike = {
        "uniform": points(rules, rows),
        "router": points(routed, rows),
    }
    for name, best in searched.items():
        alike[name] = [
            rule.point(n, best.real, resamples=config.resamples) for n, rule in best.rules.items()
        ]
    middle = f"{g.levels[len(g.levels) // 2]} a block"
    main = 1.2 if 1.2 in routers else next(iter(routers))  # the paper's weights
    percentiles = {
        str(w_q): _percentiles(bench, table, norm, w_q, routed[f"w_q {w_q}"].top[rows])
        for w_q in routers
    }
    budgets = [g.blocks * level for level in g.levels[1:-1]]
    net = workdirs.read_json(Path(config.scores_test).parent / "config.json")["lpips_net"]
    result = {
        "protocol": protocol(
            config,
            bench.clips,
            len(bench.windows),
            {"tokenizer": tokenizer.digest} | {f"router {w}": r.digest for w, r in routers.items()},
            [
                f"max-proxy-reward on {len(rows)} of the windows, chosen at random",
                f"rewards: LPIPS-{net}, normalised by {len(train['lpips'])} training windows",
            ]
            + ["max-proxy-reward VGG: LPIPS-VGG, normalised by its own windows"]
            * bool(config.scores_vgg),
        ),
        "curves": {**curves, **{name: alike[name] for name in searched}},
        "curves_where_searched": alike,
        "budgets": _budgets(curves, budgets),
        "budgets_where_searched": _budgets(alike, budgets),
        "percentiles": percentiles[str(main)],
        "percentiles_by_w_q": percentiles,
        "codebook": codebook_report(found.codes_used),
        "baselines": bench.baselines(found.rules[middle].lengths),
    }
    workdirs.write_json(workdir / "curves.json", result)


def _best(bench: Bench, table, norm, weights) -> dict:
    """Rules for the windows of a table of scores: the best assignments at each weight w_q."""
    rules = {}
    for w_q in weights:
        reward = rewards.proxy_reward(table["lpips"], bench.assignments, norm, w_q, 2.0 - w_q)
        lengths = bench.assignments[rewards.labels(reward)]
        rules[f"best of the search, w_q {w_q}"] = looked_up(lengths)
    return rules


def _budgets(curves: dict, budgets) -> list[dict]:
    """LPIPS of every curve within equal mean tokens, and what the router gains over uniform.

    "router_tokens" are those that it spends: less than the budget where its curve ends before.
    """
    result = []
    for tokens in budgets:
        row = {"tokens": tokens}
        row |= {name: at_budget(points, tokens, "lpips_vgg") for name, points in curves.items()}
        if row["uniform"] and row["router"]:
            row["router_gain"] = 1.0 - row["router"] / row["uniform"]
            row["router_tokens"] = min(tokens, max(p["tokens"] for p in curves["router"]))
        result.append(row)
    return result


def _percentiles(bench, table, norm, w_q: float, top: np.ndarray) -> dict:
    """Proxy-reward percentiles of the router and of what it must beat (EVATok Eq. 8, Table 8).

    `top` [n, 5] are the router's likeliest assignments.
    """
    assignments = bench.assignments
    reward = rewards.proxy_reward(table["lpips"], assignments, norm, w_q, 2.0 - w_q)
    fixed = rewards.best_fixed(reward)
    right = top == rewards.labels(reward)[:, None]
    return {
        "router": rewards.percentile(reward, top[:, 0]),
        "best_fixed": rewards.percentile(reward, np.full(len(reward), fixed)),
        "best_fixed_lengths": assignments[fixed].tolist(),
        "best_uniform_per_clip": rewards.percentile(
            reward, rewards.best_uniform(reward, assignments)
        ),
        "top1": float(right[:, 0].mean()),
        "top5": float(right.any(axis=1).mean()),
        "clips": len(reward),
    }


def _final(config: ConfigDict, workdir: Path) -> None:
    """The final tokenizer beside its uniform twin and the proxy, and film strips of it."""
    tokenizer = Tokenizer(load_export(config.tokenizer), config.batch_size)
    bench, g = Bench(config, workdir, tokenizer), tokenizer.geometry
    models, rows, codebook, lengths = {}, [], None, None
    columns = zip(config.names, config.exports, config.fixed, strict=True)
    for number, (name, path, level) in enumerate(columns):
        model = Tokenizer(load_export(path), config.batch_size)
        if model.router is None and config.router:
            model.use_router(config.router)
        count = len(bench.windows)
        rule = uniform(level, g.blocks) if level else Routed(model.router, count)
        found = bench.run(f"model-{number}", {name: rule}, model)
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
            "codebook_train": _used_codes(read_table(config.tokens_train), tokenizer),
            "baselines": bench.baselines(lengths),
        },
    )
    order = np.argsort(lengths.sum(axis=1), kind="stable")
    half = max(config.strips // 2, 1)
    picked = np.concatenate([order[:half], order[half:][-half:]])  # the cheapest, the dearest
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


def _used_codes(table, tokenizer: Tokenizer) -> dict:
    """Usage of the codebook by a table of tokens: a few held-out windows cannot reach all codes."""
    real = np.arange(table["codes"].shape[1]) < table["lengths"].sum(axis=1)[:, None]
    size = tokenizer.config.codebook_size
    return codebook_report(np.bincount(table["codes"][real], minlength=size))


def _generation(config: ConfigDict, workdir: Path) -> None:
    """Samples by class, their gFVD, and the loss on held-out tokens beside the unigram entropy."""
    generator = Generator(load_export(config.generator), config.batch_size)
    g, grammar = generator.tokenizer.geometry, generator.config.grammar
    i3d = fvd_network(config, g.frames)
    # As LARP has it: real clips are drawn, their classes condition the samples.
    clips = Clips.of(config.data, config.data.split, g)
    windows = np.random.default_rng(config.seed).permutation(clips.windows())[: config.samples]
    first, found = generator.config.condition_frames, []
    for batch in eval_clips(clips, min(config.batch_size, len(windows)), windows):
        real, count = batch["video"], config.batch_size * len(found)
        classes = generator.known(batch["label"])
        tokens = generator.sample_tokens(
            classes, config.seed, config.guidance, real[:, :first] if first else None, start=count
        )
        video = generator.tokenizer.decode(tokens)
        columns = {"label": classes, "lengths": tokens.lengths}
        if count < config.shown:
            columns["video"] = video
        if i3d is not None:
            columns["fake"] = generation_features(i3d, video, config.fvd_side)
            columns["real"] = generation_features(i3d, real, config.fvd_side)
        found.append({name: column[batch["mask"]] for name, column in columns.items()})
    names = ["label", "lengths"] + (["fake", "real"] if i3d is not None else [])
    drawn = {name: np.concatenate([part[name] for part in found]) for name in names}
    lengths = drawn["lengths"]
    result = {"samples": len(lengths), "tokens": float(lengths.sum(axis=1).mean())}
    result["tokens_per_block"] = lengths.mean(axis=0).tolist()
    if i3d is not None:
        result |= generation_scores(drawn["fake"], drawn["real"], config.resamples)
    seen = None
    for split, path in (("train", config.tokens_train), ("test", config.tokens_test)):
        ids, loss = _token_loss(generator, grammar, read_table(path), config.batch_size)
        seen = ids if seen is None else seen
        result[split] = {
            "loss": loss,
            "unigram_entropy": unigram_entropy(ids),
            "unigram_loss": unigram_loss(ids, seen, grammar.vocab),
            "tokens": len(ids),
        }
    models = {"generator": generator.digest, "tokenizer": generator.tokenizer.digest}
    result |= {
        "guidance": config.guidance,
        "classes": clips.classes,
        "protocol": protocol(config, clips, len(windows), models),
    }
    workdirs.write_json(workdir / "generation.json", result)
    shown = slice(0, config.shown)
    write_arrays(
        workdir / "samples.npz",
        video=np.concatenate([part["video"] for part in found if "video" in part])[shown],
        label=drawn["label"][shown],
        lengths=lengths[shown],
    )


def _token_loss(generator: Generator, grammar, table, batch_size: int) -> tuple:
    """The tokens of a table's sequences, and the mean next-token loss over them in nats."""
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
        label = jnp.asarray(generator.known(table["label"][own]), jnp.int32)
        given = jnp.asarray(table["condition"][own], jnp.int32) if "condition" in table else None
        loss, _ = generator.token_loss(label, jnp.asarray(ids[own]), jnp.asarray(real), given)
        total += float(loss) * (real != PADDING).sum()
    tokens = ids[kind != PADDING]
    return tokens, total / len(tokens)


def write_arrays(path: Path, **arrays) -> None:
    """Compressed arrays, whole or not at all."""
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)


TASKS = {"curves": _curves, "final": _final, "generation": _generation}
