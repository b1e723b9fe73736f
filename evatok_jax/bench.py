"""The bench: windows of a split, rules for the lengths, baselines, and the protocol of a number."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from evatok_jax import assets
from evatok_jax.allocation.assignments import all_assignments
from evatok_jax.api import Router, Tokenizer
from evatok_jax.data.clips import Clips
from evatok_jax.data.pipeline import eval_clips
from evatok_jax.evaluators import baselines
from evatok_jax.evaluators.lpips import LpipsMetric
from evatok_jax.evaluators.psnr_ssim import clip_psnr
from evatok_jax.evaluators.reconstruction import Evaluation, Rule, evaluate_rules
from evatok_jax.pretrained.i3d import MIN_FRAMES, load_i3d


def protocol(config, clips: Clips, count: int, models: dict[str, str], notes=()) -> dict:
    """What a number depends on, to stand beside it."""
    networks = ["lpips_vgg", "lpips_alex"] + (["i3d"] if config.fvd else [])
    notes = list(notes)
    rate = f"{clips.fps:g} frames a second" if clips.fps else "native rate"
    if clips.manifest["source"] == "samples":
        notes.append("four embedded clips: rFVD here shows that the plumbing works, no quality")
    return {
        "data": clips.manifest["source"],
        "split": f"{clips.split} ({clips.manifest['split_rule']})",
        "clips": count,
        "windows": f"fixed, non-overlapping, {clips.frames} frames at {rate}, no flip; if not all, "
        "evenly spread",
        "seed": config.seed,
        "resolution": f"{clips.frames}x{clips.height}x{clips.width}",
        "networks": {name: assets.file_hash(assets.path(name)) for name in networks},
        "models": models,
        "fvd": "I3D logits, covariance divisor N; 2.5-97.5 % of a bootstrap over clips",
        "notes": notes,
    }


def fvd_network(config, frames: int):
    """I3D where the config wants FVD, else None; ValueError where clips are too short for it."""
    if not config.fvd:
        return None
    if frames < MIN_FRAMES:
        raise ValueError(
            f"FVD needs clips of {MIN_FRAMES} frames or more, these have {frames}: set fvd=false"
        )
    return jax.device_put(load_i3d())


class Bench:
    """The windows of a split and what it takes to reconstruct them."""

    def __init__(self, config: ConfigDict, workdir: Path, tokenizer: Tokenizer):
        g = tokenizer.geometry
        self.config, self.workdir, self.tokenizer = config, workdir, tokenizer
        self.clips = Clips.of(config.data, config.data.split, g)
        windows = self.clips.windows()
        count = min(config.windows or len(windows), len(windows))
        self.windows = windows[np.linspace(0, len(windows) - 1, count).round().astype(int)]
        self.assignments = all_assignments(g.levels, g.blocks)
        self.i3d = fvd_network(config, g.frames)

    def rows(self, records: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Places of windows, given by record and first frame, among those of the bench.

        Raises ValueError where some are not among them.
        """
        place = {tuple(window): row for row, window in enumerate(self.windows.tolist())}
        wanted = list(zip(records.tolist(), starts.tolist(), strict=True))
        absent = [window for window in wanted if window not in place]
        if absent:
            raise ValueError(
                f"{len(absent)} windows of the table (the first: record {absent[0][0]}, frame "
                f"{absent[0][1]}) are not among the {len(place)} evaluated ones: set windows=0"
            )
        return np.array([place[window] for window in wanted])

    def batches(self, rows: np.ndarray | None = None):
        """Batches of the windows, or of some rows of them, under a progress bar."""
        windows = self.windows if rows is None else self.windows[rows]
        size = min(self.config.batch_size, len(windows))
        batches = eval_clips(self.clips, size, windows)
        total = -(-len(windows) // size)
        return tqdm(batches, total=total, desc=self.config.name, unit="batch", dynamic_ncols=True)

    def run(
        self,
        name: str,
        rules: dict[str, Rule],
        tokenizer: Tokenizer | None = None,
        rows: np.ndarray | None = None,
    ) -> Evaluation:
        """Scores of a tokenizer under rules, on all windows or on some rows of them.

        What was measured stays in workdir/measured/`name`, from where a second start goes on.
        """
        tokenizer = tokenizer or self.tokenizer
        longest = tokenizer.geometry.max_length

        def reconstruct(clips, lengths):
            tokens = tokenizer.encode(clips, lengths)
            codes = np.full((len(clips), longest), -1, np.int32)
            codes[:, : tokens.codes.shape[1]] = np.where(tokens.slot >= 0, tokens.codes, -1)
            return tokenizer.decode(tokens), codes

        table = self.workdir / "measured" / name
        size = tokenizer.config.codebook_size
        return evaluate_rules(self.batches(rows), rules, reconstruct, size, table, self.i3d)

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


def uniform(level: int, blocks: int) -> Rule:
    """The same number of tokens in every block."""
    return lambda clips, rows: np.full((len(clips), blocks), level, np.int32)


def looked_up(lengths: np.ndarray) -> Rule:
    """Lengths known beforehand, a row for each window."""
    return lambda clips, rows: lengths[rows]


class Routed:
    """The most likely assignment of each clip; `top` [windows, at most 5] keeps the likeliest."""

    def __init__(self, router: Router, windows: int):
        count = min(5, len(router.assignments))
        self._router, self.top = router, np.zeros((windows, count), int)

    def __call__(self, clips: np.ndarray, rows: np.ndarray) -> np.ndarray:
        order = np.argsort(-self._router.scores(clips), axis=1, kind="stable")
        self.top[rows] = order[:, : self.top.shape[1]]
        return self._router.assignments[order[:, 0]]
