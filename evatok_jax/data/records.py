"""Records: how a data set lies on disk, and the only place that writes and opens it.

A data set is a folder of ArrayRecord shards with TFDS metadata, so that `tfds.data_source` reads
it; TensorFlow is needed for neither side. Beside the shards stand one index a split (what a
pipeline must know of every record without reading videos) and a manifest (what the data set is and
how it came to be), whose presence says that the build has ended.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from jaxtyping import Float64

FORMAT = 2
MANIFEST = "manifest.json"
_INDEX = {
    "label": np.int32,
    "first": np.int32,
    "last": np.int32,
    "duration": np.float32,
}
_STEADY = 1e-6  # seconds by which the frames of a video of constant rate may be off


def features(classes: Iterable[str]) -> tfds.features.FeaturesDict:
    """What a record holds: the video file as it is, and what probing it found."""
    text, scalar = tfds.features.Text, tfds.features.Scalar
    return tfds.features.FeaturesDict(
        {
            "video": text(doc="the encoded file, byte for byte"),
            "key": text(doc="name within the source; parts of one video share it"),
            "label": tfds.features.ClassLabel(names=list(classes)),
            "first": scalar(np.int64, doc="first frame that belongs to this split"),
            "last": scalar(np.int64, doc="one past the last frame that belongs to this split"),
            "frames": scalar(np.int64, doc="frames of the whole video"),
            "height": scalar(np.int64, doc="of the stored picture"),
            "width": scalar(np.int64, doc="of the stored picture"),
            "fps": scalar(np.float32, doc="average frame rate, 0 where the file does not say"),
            "keyframes": tfds.features.Tensor(
                shape=(None, 2), dtype=np.int64, doc="(frame, time stamp) to seek to"
            ),
            "times": tfds.features.Tensor(
                shape=(None,), dtype=np.float64, doc="seconds from the first frame to each frame"
            ),
            "duration": scalar(np.float64, doc="seconds of the frames from first to last"),
        }
    )


def name_hash(key: str) -> int:
    """The CRC-32 of a video's name: its number in batches, the same in every data set."""
    return zlib.crc32(key.encode())


def constant_rate(times: Float64[np.ndarray, " frames"]) -> float:
    """Frames a second of a video whose frame i starts at i / rate, 0 of any other."""
    if len(times) < 2:
        return 0.0
    rate = (len(times) - 1) / times[-1]
    return float(rate) if np.abs(times - np.arange(len(times)) / rate).max() < _STEADY else 0.0


def write_split(
    directory: Path, split: str, classes: Iterable[str], records: Iterable[dict], sizes: list[int]
) -> list[dict]:
    """Writes one split as len(sizes) shards of so many records, and its index.

    Returns for each shard its file, split, records, bytes and SHA-256.
    """
    spec, records, files = features(classes), iter(records), []
    index, rates = {name: [] for name in ("key", *_INDEX)}, []
    for number, size in enumerate(sizes):
        path = Path(
            _template(directory, split).sharded_filepath(shard_index=number, num_shards=len(sizes))
        )
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for _ in range(size):
            record = next(records)
            writer.write(spec.serialize_example(spec.encode_example(record)))
            for name, column in index.items():
                column.append(record[name])
            rates.append(constant_rate(record["times"]))
        writer.close()
        files.append(
            {
                "file": path.name,
                "split": split,
                "records": size,
                "bytes": path.stat().st_size,
                "sha256": _sha256(path),
            }
        )
    columns = {name: np.array(index[name], dtype) for name, dtype in _INDEX.items()}
    columns["rate"] = np.array(rates, np.float64)
    columns["key"] = np.array([key.encode() for key in index["key"]], np.bytes_)
    columns["hash"] = np.array([name_hash(key) for key in index["key"]], np.uint32)
    np.savez_compressed(_index_path(directory, split), **columns)
    return files


def write_metadata(directory: Path, classes: Iterable[str], files: list[dict]) -> None:
    """Writes the TFDS metadata of shards described as by `write_split`."""
    splits = {}
    for file in files:
        splits.setdefault(file["split"], []).append(file)
    tfds.folder_dataset.write_metadata(
        data_dir=str(directory),
        features=features(classes),
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[part["records"] for part in parts],
                num_bytes=sum(part["bytes"] for part in parts),
                filename_template=_template(directory),
            )
            for split, parts in splits.items()
        ],
        filename_template=_template(directory),
        check_data=False,  # the check would import TensorFlow
    )


def read_manifest(directory: str | os.PathLike) -> dict:
    """The manifest of a finished data set, whose shards have the sizes that it states.

    Far away (gs:// and the like) it takes too long to look at them all: there the sizes come out
    when shards are read.

    Raises FileNotFoundError where there is none, ValueError where a shard is absent or of another
    size or the format is another one.
    """
    directory = epath.Path(directory)
    if not (directory / MANIFEST).is_file():
        raise FileNotFoundError(
            f"no data set in {directory}: make one with `evatok data build NAME --out {directory}`"
        )
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{directory} has data format {manifest.get('format')}, this version reads {FORMAT}: "
            "build it again into another folder"
        )
    for file in () if "://" in os.fspath(directory) else manifest["shards"]:
        path = Path(directory) / file["file"]
        found = path.stat().st_size if path.is_file() else "no"
        if found != file["bytes"]:
            raise ValueError(
                f"{path} has {found} bytes, its manifest says {file['bytes']}: the data set "
                "is damaged, build it again"
            )
    return manifest


class Index(Mapping):
    """Columns with a row for each record of a split, read when they are asked for.

    key (str), hash, label, first, last, duration in seconds, rate (`constant_rate`).
    """

    def __init__(self, directory: str | os.PathLike, split: str):
        self._path, self._columns = _index_path(epath.Path(directory), split), {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._columns:
            with self._opened() as file:
                column = file[name]
            self._columns[name] = np.char.decode(column, "utf-8") if name == "key" else column
        return self._columns[name]

    def __iter__(self):
        with self._opened() as file:
            return iter(list(file.files))

    def __len__(self) -> int:
        return len(list(self))

    @contextmanager
    def _opened(self):
        with self._path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            yield arrays


def open_records(directory: Path, split: str):
    """The TFDS data source of a split: random access to its records (see `features`)."""
    return tfds.builder_from_directory(str(directory)).as_data_source(split)


def read_index(directory: str | os.PathLike, split: str) -> Index:
    """What a pipeline must know of every record without reading it."""
    return Index(directory, split)


def _index_path(directory, split: str):
    return directory / f"index-{split}.npz"


def _template(directory: Path, split: str | None = None) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
        data_dir=directory,
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        dataset_name="clips",
        filetype_suffix="array_record",
        split=split,
    )


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        for part in iter(partial(file.read, 1 << 20), b""):
            total.update(part)
    return total.hexdigest()
