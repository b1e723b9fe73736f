"""Curation: a sharded, resumable map over the windows of a data set. Nothing is learned here.

Stage 2 scores every assignment of every clip (EVATok sec. 3.2.2); the same map tokenizes clips for
the generator, or keeps a router's assignments, so that either model sees each window once. The
result is a table (`data/tables.py`), a row for each window and flip. Shards are the unit of
resuming and of dividing the work: host i of n takes every n-th.
"""

import time
from pathlib import Path

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from tqdm import tqdm

from evatok_jax import workdir as workdirs
from evatok_jax.api import Router, Tokenizer, open_export
from evatok_jax.data.clips import Clips, mirrored
from evatok_jax.data.pipeline import eval_clips
from evatok_jax.data.tables import grid, shard_path, write_origin, write_shard
from evatok_jax.interrupt import Interrupt
from evatok_jax.names import nearest
from evatok_jax.pretrained.lpips import load_lpips
from evatok_jax.search.brute_force import BruteForce
from evatok_jax.search.prefix_tree import PrefixTree
from evatok_jax.storage.export import Export

SEARCHES = {"prefix_tree": PrefixTree, "brute_force": BruteForce}


def scorer(config: ConfigDict, tokenizer: Tokenizer):
    """Scores of all assignments: columns lpips, psnr, mse, each [n, assignments]."""
    if config.search not in SEARCHES:
        raise ValueError(f"unknown search {config.search!r}: {nearest(config.search, SEARCHES)}")
    search = SEARCHES[config.search](
        model=tokenizer.model,
        params=tokenizer.params,
        lpips_params=jax.device_put(load_lpips(config.lpips_net)),
        net=config.lpips_net,
        batch=config.batch_size,
    )

    def score(clips):
        found = search(clips)
        return {"lpips": found.lpips, "psnr": found.psnr, "mse": found.mse}

    return score


def tokens(config: ConfigDict, tokenizer: Tokenizer):
    """Token ids: columns codes [n, longest] and lengths [n, blocks].

    For frame prediction also `condition`, the codes of the first frames; the first blocks of the
    clip then have as many tokens as the condition's (EVATok sec. 4.1).
    """
    if tokenizer.config.continuous:
        raise ValueError("this tokenizer's tokens are vectors: a table of tokens holds ids")
    g, given = tokenizer.geometry, config.condition
    if tokenizer.router is None and not any(config.fixed):
        raise ValueError(
            "this tokenizer has no router: name one (router), or give the lengths as config.fixed"
        )

    def tokenize(clips):
        if any(config.fixed):
            lengths = np.tile(np.array(config.fixed, np.int32), (len(clips), 1))
        else:
            lengths = tokenizer.route(clips, first=given.lengths if given.frames else ())
        made = tokenizer.encode(clips, lengths)
        dtype = np.min_scalar_type(tokenizer.config.codebook_size)
        codes = np.zeros((len(clips), g.max_length), dtype)
        codes[:, : made.codes.shape[1]] = made.codes
        columns = {"codes": codes, "lengths": made.lengths}
        if given.frames:
            first = tokenizer.condition(clips[:, : given.frames], given.lengths)
            columns["condition"] = first.astype(dtype)
        return columns

    return tokenize


def assignments(config: ConfigDict, router: Router):
    """The router's choice for each clip: column lengths [n, blocks]."""
    return lambda clips: {"lengths": router.route(clips)}


MAPS = {"scores": scorer, "tokens": tokens, "assignments": assignments}


def load_models(config: ConfigDict) -> dict[str, Export]:
    """The exports that the config names: "tokenizer", "router" or both.

    Raises ValueError where the map lacks one.
    """
    named = {name: config[name] for name in ("tokenizer", "router") if config[name]}
    if not named or (config.map != "assignments" and "tokenizer" not in named):
        raise ValueError(f"a table of {config.map} needs a tokenizer: name its export")
    return {name: open_export(path) for name, path in named.items()}


def prepare(config: ConfigDict, exports: dict[str, Export]) -> Tokenizer | Router:
    """What the map runs: the tokenizer with the router that decides, or the router alone."""
    if config.map == "assignments":
        return Router(exports.get("router") or exports["tokenizer"], config.batch_size)
    tokenizer = Tokenizer(exports["tokenizer"], config.batch_size)
    if "router" in exports:
        tokenizer.use_router(exports["router"])
    return tokenizer


def choose(clips: Clips, count: int, seed: int) -> np.ndarray:
    """`count` random windows of a split in reading order, or all of them for 0."""
    windows = clips.windows()
    if not count or count >= len(windows):
        return windows
    picked = np.random.default_rng(seed).permutation(len(windows))[:count]
    return windows[np.sort(picked)]


def curate(config: ConfigDict, workdir: Path) -> None:
    """Runs the map that the config names over the windows it asks for, shard by shard.

    Raises ValueError where the workdir's table is of another config, data set or model.
    """
    if config.map not in MAPS:
        raise ValueError(f"unknown map {config.map!r}: {nearest(config.map, MAPS)}")
    exports = load_models(config)
    model = prepare(config, exports)
    g = model.geometry
    clips = Clips.of(config.data, config.data.split, g)
    of = grid(clips)
    digests = {name: export.digest for name, export in exports.items()}
    workdirs.claim(workdir, config, digests | {"data": of["data"]})
    if workdirs.finished(workdir):
        logging.info("%s is finished", workdir)
        return
    windows = choose(clips, config.windows, config.seed)
    flips = (False, True) if config.data.flip else (False,)
    shards = -(-len(windows) // config.shard_size)
    table, began, done = workdir / "table", time.time(), 0
    if jax.process_index() == 0:
        write_origin(table, of, shards, config.map, digests)
    function = MAPS[config.map](config, model)
    interrupt = Interrupt()
    own = range(jax.process_index(), shards, jax.process_count())
    for shard in tqdm(own, desc=config.name, unit="shard", dynamic_ncols=True):
        if shard_path(table, shard).exists():
            continue
        rows = windows[shard * config.shard_size : (shard + 1) * config.shard_size]
        parts = []
        for batch in eval_clips(clips, min(config.batch_size, len(rows)), rows):
            real = batch.pop("mask")
            video = batch.pop("video")[real]
            for flip in flips:
                columns = function(mirrored(video) if flip else video)
                columns |= {name: column[real] for name, column in batch.items()}
                parts.append(columns | {"flip": np.full(len(video), flip)})
        columns = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        write_shard(table, shard, columns)
        done += len(rows)
        if interrupt(shard) and shard != own[-1]:
            logging.info("stopped by a signal after shard %d; start again to continue", shard)
            return
    seconds = time.time() - began
    logging.info("%s: %d clips in %.0f s", config.name, done, seconds)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(config.name)  # all shards are there
    if jax.process_index() == 0:
        workdirs.write_json(
            workdir / "done.json",
            {"clips": len(windows), "clips_of_last_run": done, "seconds_of_last_run": seconds},
        )
