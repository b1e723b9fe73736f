"""Building data sets: every video is decoded once to see that it can be, then stored as it is.

A shard holds a contiguous share of what its split lists, whatever the others hold. So it is the
unit of all work: shards are built in any order, on any host, and one that is there is not built
again. Whoever finds that all are there finishes the data set. The same source always gives the same
bytes.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from evatok_jax.atomic import replacing
from evatok_jax.config import digest
from evatok_jax.data.builders.examine import examine, records
from evatok_jax.data.builders.listing import Source
from evatok_jax.data.builders.remux import LIMIT
from evatok_jax.data.builders.workers import Workers
from evatok_jax.data.container import BadVideo
from evatok_jax.data.records import (
    FORMAT,
    MANIFEST,
    PARTS,
    describe,
    load_manifest,
    write_index,
    write_metadata,
    write_shard,
    wrong_size,
)
from evatok_jax.workdir import read_json, write_json

MAX_BAD = 0.05
PATIENCE = 60.0  # seconds without a new picture, after which a decoder hangs
SKIPPED = "skipped.jsonl"
_BUILD = "build.json"  # says whose build a folder holds
_OF_A_SHARD = ("file", "split", "records", "bytes", "sha256")


@dataclass(frozen=True)
class _Shard:
    """Shard `number` of the `total` of a split, which holds its groups start to stop."""

    split: str
    number: int
    total: int
    start: int
    stop: int

    def report(self, out: Path) -> Path:
        """Where it stands what is in the shard; it is written last."""
        return out / PARTS / f"shard-{self.split}-{self.number:05d}.json"

    def skipped(self, out: Path) -> Path:
        """Where it stands what was left out of the shard."""
        return out / PARTS / f"skipped-{self.split}-{self.number:05d}.jsonl"


def build(
    videos: Source,
    out: str | Path,
    shards: int = 1,
    max_bad: float = MAX_BAD,
    min_frames: int | None = None,
    workers: int | None = None,
    part: tuple[int, int] = (0, 1),
    patience: float = PATIENCE,
    limit: int = LIMIT,
) -> dict | None:
    """Builds the data set of a source in the folder `out` and returns its manifest.

    A build that was interrupted goes on; a folder that was built from the same list in the same way
    is left as it is. Of all shards (`shards` for each split), part (i, n) builds those whose number
    is i modulo n, from 0 on; the result is None where others are still missing.

    A video that is absent, empty, cut off, damaged, without pictures or shorter than `min_frames`
    frames (default: what the source says) is left out, counted by cause in the manifest and listed
    with the reason in skipped.jsonl. A record has at most `limit` bytes: longer videos are cut.

    `workers` processes decode (default: one a core); one that gives no picture for `patience`
    seconds, or crashes, costs the video that it was decoding. With 0 this process decodes, without
    that protection.

    Raises ValueError where more than the share `max_bad` of the videos is bad, no video is left, or
    `out` holds anything else.
    """
    out = Path(out)
    min_frames = videos.min_frames if min_frames is None else min_frames
    if shards < 1 or not 0 <= max_bad <= 1 or min_frames < 1:
        raise ValueError(
            f"shards {shards}, max_bad {max_bad}, min_frames {min_frames}: expected 1 or more, "
            "0 to 1, and 1 or more"
        )
    if not 0 <= part[0] < part[1]:
        raise ValueError(f"part {part[0]}/{part[1]}: expected i/n with i from 0 to n - 1")
    plan = list(_plan(videos, shards))
    if not plan:
        raise ValueError(f"source {videos.name} lists no video")
    identity = _claim(videos, out, shards, min_frames, limit)
    if (out / MANIFEST).exists():
        manifest = load_manifest(out)
        if not any(wrong_size(out, file) for file in manifest["shards"] + manifest["files"]):
            return manifest
    count = (os.cpu_count() or 1) if workers is None else workers
    function = partial(examine, min_frames=min_frames, limit=limit)
    bad = 0
    with Workers(function, count, patience) as pool:
        for shard in plan[part[0] :: part[1]]:
            report = _report(shard, out) or _build_shard(videos, shard, out, pool, limit)
            bad += _bad(videos, report["skipped"])
            if not videos.archives and bad > max_bad * sum(map(len, videos.splits.values())):
                _join_skipped(out, plan)
                raise _too_many(videos, out, bad, max_bad)
    return _finish(videos, out, plan, max_bad, min_frames, identity)


def missing(videos: Source, out: str | Path, shards: int) -> list[int]:
    """The numbers of the shards, counted through all splits, that are not built yet."""
    plan = enumerate(_plan(videos, shards))
    return [number for number, shard in plan if _report(shard, Path(out)) is None]


def _plan(videos: Source, shards: int) -> Iterator[_Shard]:
    """The shards of all splits: as equal shares of each as can be, the first ones the larger."""
    for split, groups in videos.splits.items():
        total, start = min(shards, len(groups)), 0
        for number in range(total):
            stop = start + len(groups) // total + (number < len(groups) % total)
            yield _Shard(split, number, total, start, stop)
            start = stop


def _claim(videos: Source, out: Path, shards: int, min_frames: int, limit: int) -> str:
    """Makes the folder this build's, or checks that it is; returns the build's identity."""
    facts = {
        "format": FORMAT,
        "source": videos.name,
        "listing": videos.identity,
        "classes": digest({"classes": videos.classes}),
        "shards": shards,
        "min_frames": min_frames,
        "record_bytes": limit,
    }
    path = out / _BUILD
    if path.is_file():
        if (old := read_json(path)) != facts:
            changed = ", ".join(sorted(k for k in facts if old.get(k) != facts[k]))
            raise ValueError(
                f"{out} holds a data set built from something else (source {old.get('source')}; "
                f"other: {changed}): choose another folder or remove it"
            )
    elif out.exists() and (not out.is_dir() or any(p.name[0] != "." for p in out.iterdir())):
        raise ValueError(f"{out} holds something that is no data set: choose another folder")
    else:
        write_json(path, facts)
    return digest(facts)


def _report(shard: _Shard, out: Path) -> dict | None:
    """What is known of a shard that is there, None where it must be built."""
    if not shard.report(out).is_file():
        return None
    report = read_json(shard.report(out))
    return None if wrong_size(out, report) else report


def _build_shard(videos: Source, shard: _Shard, out: Path, pool: Workers, limit: int) -> dict:
    """Builds a shard and returns its report."""
    groups = videos.splits[shard.split]
    items = (v for number in range(shard.start, shard.stop) for v in groups[number].videos())
    listed, skipped, large = 0, Counter(), []
    expected = None if videos.archives else shard.stop - shard.start
    title = f"{shard.split} {shard.number + 1}/{shard.total}"

    def found():
        nonlocal listed
        for video, result in tqdm(pool.map(items), desc=title, total=expected):
            listed += 1
            if isinstance(result, BadVideo):
                skipped[result.cause] += 1
                row = {"key": video.key, "split": shard.split}
                row |= {"cause": result.cause, "reason": str(result)}
                lines.write(json.dumps(row) + "\n")
                continue
            large.extend([video.key, piece.size] for piece in result if piece.size > limit)
            yield from records(video, result)

    with replacing(shard.skipped(out), "w") as lines:
        report = write_shard(out, shard.split, shard.number, shard.total, videos.classes, found())
    report |= {"listed": listed, "skipped": skipped, "large": large}
    write_json(shard.report(out), report)
    return report


def _finish(
    videos: Source, out: Path, plan: list[_Shard], max_bad: float, min_frames: int, identity: str
) -> dict | None:
    """Finishes a data set whose shards are all there, and returns its manifest."""
    reports = [_report(shard, out) for shard in plan]
    if None in reports:
        return None
    skipped = sum((Counter(report["skipped"]) for report in reports), Counter())
    listed, bad = sum(report["listed"] for report in reports), _bad(videos, skipped)
    there = listed if videos.absent_is_bad else listed - skipped["absent"]
    splits = Counter()
    for report in reports:
        splits[report["split"]] += report["records"]
    splits = {split: count for split, count in splits.items() if count}
    _join_skipped(out, plan)
    if bad > max_bad * there or not splits:
        raise _too_many(videos, out, bad, max_bad, there)
    for left in (*out.glob(".*.tmp"), *(out / PARTS).glob(".*.tmp")):
        left.unlink(missing_ok=True)  # of a process that was killed
    for split in splits:
        write_index(out, split, sum(shard.split == split for shard in plan))
    write_metadata(out, videos.classes, reports)
    files = [SKIPPED, "dataset_info.json", "features.json"]
    files += [f"index-{split}.npz" for split in splits]
    files += [path.name for path in sorted(out.glob("*.labels.txt"))]
    manifest = {
        "format": FORMAT,
        "identity": identity,
        "source": videos.name,
        "split_rule": videos.split_rule,
        "classes": list(videos.classes),
        "splits": splits,
        "bytes": sum(report["bytes"] for report in reports),
        "shards": [{k: report[k] for k in _OF_A_SHARD} for report in reports],
        "files": [describe(out / name) for name in files],
        "min_frames": min_frames,
        "listed": listed,
        "skipped": skipped,
        "large": [row for report in reports for row in report["large"]],
    }
    write_json(out / MANIFEST, manifest)
    return read_json(out / MANIFEST)


def _bad(videos: Source, skipped: dict[str, int]) -> int:
    """How many of those that were left out count as faults."""
    absent = 0 if videos.absent_is_bad else skipped.get("absent", 0)
    return sum(skipped.values()) - absent


def _join_skipped(out: Path, plan: list[_Shard]) -> None:
    """Writes the list of all that was left out of the shards that are there."""
    with replacing(out / SKIPPED) as joined:
        for shard in plan:
            if shard.report(out).is_file():
                with shard.skipped(out).open("rb") as lines:
                    shutil.copyfileobj(lines, joined)


def _too_many(
    videos: Source, out: Path, bad: int, max_bad: float, there: int | None = None
) -> ValueError:
    """The error of a source of which too much is bad, or nothing is there."""
    with (out / SKIPPED).open(encoding="utf-8") as lines:
        rows = (json.loads(line) for line in lines)
        faults = (row for row in rows if videos.absent_is_bad or row["cause"] != "absent")
        first = next(faults, None)
    if first is None:
        return ValueError(f"not one video of source {videos.name} is there; see {out / SKIPPED}")
    total = sum(map(len, videos.splits.values())) if there is None else there
    return ValueError(
        f"{bad} of {total} videos are bad, more than the {max_bad:.0%} allowed (--max-bad); the "
        f"first: {first['key']}: {first['reason']}; all: {out / SKIPPED}"
    )
