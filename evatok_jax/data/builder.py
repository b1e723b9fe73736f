"""Building data sets: every video is decoded once to see that it can be, then stored as it is.

A build is written beside its target and renamed at the end, so that an interrupted one leaves
nothing that looks finished. The same source always gives the same bytes.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from evatok_jax.config import digest
from evatok_jax.data.container import BadVideo
from evatok_jax.data.probe import Probe, probe
from evatok_jax.data.records import FORMAT, MANIFEST, read_manifest, write_metadata, write_split
from evatok_jax.data.sources import SOURCES, Source, VideoFile, source
from evatok_jax.workdir import write_json

MAX_BAD = 0.05


@dataclass(frozen=True)
class _Usable:
    """A video, or a part of one, that goes into the data set."""

    video: VideoFile
    probe: Probe
    first: int
    last: int

    def record(self) -> dict:
        """What is stored of it (`records.features`)."""
        return {
            "video": self.video.path.read_bytes(),
            "key": self.video.key,
            "label": self.video.label,
            "first": self.first,
            "last": self.last,
            "frames": self.probe.frames,
            "height": self.probe.height,
            "width": self.probe.width,
            "fps": self.probe.fps,
            "keyframes": self.probe.keyframes,
            "times": self.probe.times[:-1],
            "duration": self.probe.times[self.last] - self.probe.times[self.first],
        }


def build(
    videos: Source,
    out: str | Path,
    shards: int = 1,
    max_bad: float = MAX_BAD,
    min_frames: int | None = None,
    workers: int | None = None,
) -> dict:
    """Builds the data set of a source in the folder `out` and returns its manifest.

    A folder that was built from the same files in the same way is left as it is. A video that is
    absent, empty, cut off, damaged, without pictures or shorter than `min_frames` frames (default:
    what the source says) is left out, counted and listed with the reason in the manifest and in
    skipped.json. `shards` is for each split; `workers` threads decode (default: one a core).

    Raises ValueError where more than the share `max_bad` of the videos is bad (their list is then
    in OUT.skipped.json), no video is left, or `out` holds anything else.
    """
    out = Path(out)
    min_frames = videos.min_frames if min_frames is None else min_frames
    if shards < 1 or not 0 <= max_bad <= 1:
        raise ValueError(f"shards {shards}, max_bad {max_bad}: expected 1 or more, and 0 to 1")
    if not videos.videos:
        raise ValueError(f"source {videos.name} lists no video")
    identity = _identity(videos, shards, min_frames)
    if (out / MANIFEST).exists():
        manifest = read_manifest(out)
        if manifest["identity"] != identity:
            raise ValueError(
                f"{out} holds a data set built from something else (source {manifest['source']}, "
                f"{sum(manifest['splits'].values())} records): choose another folder or remove it"
            )
        return manifest
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} holds something that is no data set: choose another folder")
    usable, skipped = _probe_all(videos, min_frames, workers or os.cpu_count() or 1)
    if not usable or len(skipped) > max_bad * len(videos.videos):
        listed = out.with_name(out.name + ".skipped.json")
        write_json(listed, skipped)
        raise ValueError(
            f"{len(skipped)} of {len(videos.videos)} videos are bad, more than the "
            f"{max_bad:.0%} allowed (--max-bad); the first: {skipped[0]['key']}: "
            f"{skipped[0]['reason']}; all: {listed}"
        )
    beside = out.with_name(out.name + ".building")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    files = []
    for split in dict.fromkeys(item.video.split for item in usable):
        chosen = [item for item in usable if item.video.split == split]
        parts = np.array_split(np.arange(len(chosen)), min(shards, len(chosen)))
        sizes = [len(part) for part in parts]
        files += write_split(beside, split, videos.classes, _records(chosen, split), sizes)
    write_metadata(beside, videos.classes, files)
    splits = {}
    for file in files:
        splits[file["split"]] = splits.get(file["split"], 0) + file["records"]
    manifest = {
        "format": FORMAT,
        "identity": identity,
        "source": videos.name,
        "split_rule": videos.split_rule,
        "classes": list(videos.classes),
        "splits": splits,
        "bytes": sum(file["bytes"] for file in files),
        "shards": files,
        "max_bad": max_bad,
        "min_frames": min_frames,
        "skipped": skipped,
    }
    write_json(beside / "skipped.json", skipped)
    write_json(beside / MANIFEST, manifest)
    beside.rename(out)
    return manifest


def build_main(
    name: str,
    out: str | Path,
    directory: str | Path | None = None,
    shards: int = 1,
    max_bad: float = MAX_BAD,
    min_frames: int | None = None,
    workers: int | None = None,
    fold: int = 1,
) -> dict:
    """`evatok data build NAME --source DIR --out DIR`: builds and prints what came of it.

    `fold` chooses the official lists of ucf101 (1 to 3). Raises as `source` and `build` do.
    """
    options = {"fold": fold} if name == "ucf101" else {}
    manifest = build(source(name, directory, **options), out, shards, max_bad, min_frames, workers)
    for bad in manifest["skipped"]:
        print(f"skipped {bad['key']} ({bad['split']}): {bad['reason']}")
    counts = ", ".join(f"{split} {count}" for split, count in manifest["splits"].items())
    print(
        f"{out}: {name}, records: {counts}; {len(manifest['classes'])} classes, "
        f"{manifest['bytes'] / 1e6:.1f} MB, {len(manifest['skipped'])} skipped"
    )
    return manifest


def add_build_arguments(parser) -> None:
    """The arguments of `build_main` for an argparse parser (destinations are its parameters)."""
    parser.add_argument("name", choices=list(SOURCES), help="the kind of source")
    parser.add_argument("--source", dest="directory", help="folder of the videos")
    parser.add_argument("--out", required=True, help="folder of the data set")
    parser.add_argument("--shards", type=int, default=1, help="files for each split")
    parser.add_argument(
        "--max-bad", type=float, default=MAX_BAD, help="share of bad videos allowed"
    )
    parser.add_argument(
        "--min-frames", type=int, help="shorter ones are bad (default: 16; 1 for images)"
    )
    parser.add_argument("--workers", type=int, help="threads that decode (default: one a core)")
    parser.add_argument("--fold", type=int, default=1, choices=(1, 2, 3), help="lists of ucf101")


def _identity(videos: Source, shards: int, min_frames: int) -> str:
    """A hash of what the bytes of a data set depend on; files count by name and size."""
    rows = [
        [v.key, v.split, v.label, v.share, v.path.stat().st_size if v.path.is_file() else -1]
        for v in videos.videos
    ]
    return digest(
        {
            "format": FORMAT,
            "source": videos.name,
            "videos": rows,
            "classes": videos.classes,
            "shards": shards,
            "min_frames": min_frames,
        }
    )


def _records(items: list[_Usable], split: str) -> Iterator[dict]:
    """What is stored of them, read when it is written."""
    with tqdm(total=len(items), desc=f"write {split}") as bar:
        for item in items:
            bar.update()
            yield item.record()


def _probe_all(videos: Source, min_frames: int, workers: int) -> tuple[list[_Usable], list[dict]]:
    """What can be used, and what cannot with the reason, both in the order of the source."""
    files = list({video.path: video for video in videos.videos}.values())
    with ThreadPoolExecutor(workers) as pool:
        results = tqdm(pool.map(_try_probe, files), total=len(files), desc=f"probe {videos.name}")
        found = dict(zip((video.path for video in files), results, strict=True))
    usable, skipped = [], []
    for video in videos.videos:
        result = found[video.path]
        if isinstance(result, Probe):
            first, last = (round(share * result.frames) for share in video.share)
            if last - first >= min_frames:
                usable.append(_Usable(video, result, first, last))
                continue
            result = f"too short: {last - first} frames, {min_frames} are needed"
        skipped.append({"key": video.key, "split": video.split, "reason": str(result)})
    return usable, skipped


def _try_probe(video: VideoFile) -> Probe | BadVideo:
    """A probe, or the reason why there is none."""
    if not video.path.is_file():
        return BadVideo("the file is absent")
    data = video.path.read_bytes()
    if video.sha256 and hashlib.sha256(data).hexdigest() != video.sha256:
        return BadVideo("its SHA-256 is not the one that the source states")
    try:
        return probe(data)
    except BadVideo as error:
        return error
