"""Building data sets: ArrayRecord shards of the encoded videos, with TFDS metadata beside them.

The result is a folder that `tfds.builder_from_directory` reads; TensorFlow is not needed for either.
Beside the shards stand an index of what is in them and a manifest of how they came to be.
"""

import hashlib
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from evatok_jax.config import digest
from evatok_jax.data.decode import BadVideo, Probe, probe
from evatok_jax.data.sources import Source, VideoFile
from evatok_jax.workdir import read_json, write_json

NAME = "clips"


def features() -> tfds.features.FeaturesDict:
    """What a record holds: the video file as it is, and what probing it found."""
    return tfds.features.FeaturesDict(
        {
            "video": tfds.features.Text(doc="the encoded file, byte for byte"),
            "key": tfds.features.Text(doc="name within the source"),
            "label": tfds.features.Scalar(np.int64),
            "first": tfds.features.Scalar(np.int64, doc="first frame of this split"),
            "last": tfds.features.Scalar(np.int64, doc="one past the last frame of this split"),
            "fps": tfds.features.Scalar(np.float32),
            "keyframes": tfds.features.Tensor(shape=(None, 2), dtype=np.int64),
        }
    )


def build(source: Source, out: Path, shards: int = 1, max_bad: float = 0.05, workers: int = 2) -> dict:
    """Probes every video by decoding it whole and writes the data set; returns the manifest.

    A folder that was built from the same source is left as it is. Videos that cannot be used are
    left out, counted and listed with the reason in the manifest under "skipped".

    Raises ValueError where more than `max_bad` of the videos are bad, or where `out` holds another
    data set.
    """
    out = Path(out)
    identity = _identity(source, shards)
    if (out / "manifest.json").exists():
        manifest = read_json(out / "manifest.json")
        if manifest["identity"] != identity:
            raise ValueError(f"{out} holds another data set ({manifest['source']}): choose another")
        return manifest
    with ThreadPoolExecutor(workers) as pool:
        found = list(
            tqdm(pool.map(_try, source.videos), total=len(source.videos), desc=f"probe {source.name}")
        )
    skipped = [
        {"key": v.key, "split": v.split, "reason": str(p)}
        for v, p in zip(source.videos, found, strict=True)
        if isinstance(p, BadVideo)
    ]
    for bad in skipped:
        tqdm.write(f"skipped {bad['key']}: {bad['reason']}")
    if len(skipped) > max_bad * len(source.videos):
        raise ValueError(
            f"{len(skipped)} of {len(source.videos)} videos are bad, more than the {max_bad:.0%} that "
            f"is allowed (--max-bad); the first: {skipped[0]['key']}: {skipped[0]['reason']}"
        )
    beside = out.with_name(out.name + ".building")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    good = [(v, p) for v, p in zip(source.videos, found, strict=True) if isinstance(p, Probe)]
    splits = {name: [pair for pair in good if pair[0].split == name] for name in ("train", "test")}
    written = {name: _write(beside, name, pairs, shards) for name, pairs in splits.items() if pairs}
    tfds.folder_dataset.write_metadata(
        data_dir=str(beside),
        features=features(),
        split_infos=[_split_info(beside, name, files) for name, files in written.items()],
        filename_template=_template(beside),
        check_data=False,  # the check would need TensorFlow
    )
    manifest = {
        "identity": identity,
        "source": source.name,
        "split_rule": source.split_rule,
        "classes": list(source.classes),
        "splits": {name: sum(f["records"] for f in files) for name, files in written.items()},
        "shards": [f for files in written.values() for f in files],
        "skipped": skipped,
    }
    write_json(beside / "manifest.json", manifest)
    shutil.rmtree(out, ignore_errors=True)  # without a manifest it is no data set
    beside.rename(out)
    return manifest


def _identity(source: Source, shards: int) -> str:
    rows = [[v.key, v.split, v.label, v.share, _size(v.path)] for v in source.videos]
    return digest({"videos": rows, "classes": source.classes, "shards": shards})


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def _try(video: VideoFile) -> Probe | BadVideo:
    """A probe, or the reason why there is none."""
    if not video.path.is_file():
        return BadVideo(f"{video.path} is absent")
    try:
        return probe(video.path.read_bytes())
    except BadVideo as error:
        return error


def _template(directory: Path, split: str | None = None) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
        data_dir=directory,
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        dataset_name=NAME,
        filetype_suffix="array_record",
        split=split,
    )


def _write(directory: Path, split: str, pairs, shards: int) -> list[dict]:
    """The shards of one split and its index; what a shard holds, one dictionary each."""
    spec, files = features(), []
    shards = min(shards, len(pairs))
    index = {"key": [], "label": [], "first": [], "last": []}
    for number, part in enumerate(np.array_split(np.arange(len(pairs)), shards)):
        path = Path(_template(directory, split).sharded_filepath(shard_index=number, num_shards=shards))
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for video, found in (pairs[i] for i in part):
            first, last = (round(share * found.frames) for share in video.share)
            row = {"key": video.key, "label": video.label, "first": first, "last": last}
            record = {
                **row,
                "video": video.path.read_bytes(),
                "fps": found.fps,
                "keyframes": found.keyframes,
            }
            writer.write(spec.serialize_example(spec.encode_example(record)))
            for name, value in row.items():
                index[name].append(value)
        writer.close()
        files.append(
            {
                "file": path.name,
                "records": len(part),
                "bytes": path.stat().st_size,
                "sha256": _sha256(path),
            }
        )
    keys = np.array(index.pop("key"))
    crc = np.array([zlib.crc32(key.encode()) for key in keys], np.uint32)
    np.savez_compressed(directory / f"index-{split}.npz", key=keys, crc=crc, **index)
    return files


def _split_info(directory: Path, split: str, files: list[dict]) -> tfds.core.SplitInfo:
    return tfds.core.SplitInfo(
        name=split,
        shard_lengths=[f["records"] for f in files],
        num_bytes=sum(f["bytes"] for f in files),
        filename_template=_template(directory),
    )


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        for part in iter(partial(file.read, 1 << 20), b""):
            total.update(part)
    return total.hexdigest()
