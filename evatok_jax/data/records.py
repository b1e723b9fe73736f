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
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from jaxtyping import Float64
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from evatok_jax.atomic import replacing

FORMAT = 2
MANIFEST = "manifest.json"
PARTS = "parts"  # the folder of what is known of each shard by itself
_INDEX = {
    "label": np.int32,
    "first": np.int32,
    "last": np.int32,
    "duration": np.float32,
    "motion": np.float32,
    "rate": np.float64,
}
_STEADY = 1e-6  # seconds by which the frames of a video of constant rate may be off


def features(classes: Iterable[str]) -> tfds.features.FeaturesDict:
    """What a record holds: the video file as it is, and what probing it found."""
    text, scalar = tfds.features.Text, tfds.features.Scalar

    def seconds(shape, doc):  # as bytes, because an Example keeps only 32 bits of a number
        return tfds.features.Tensor(shape=shape, dtype=np.float64, encoding="bytes", doc=doc)

    return tfds.features.FeaturesDict(
        {
            "video": text(doc="the encoded file, byte for byte, or a part of a long one"),
            "key": text(doc="name within the source; parts of one video share it"),
            "label": tfds.features.ClassLabel(names=list(classes)),
            "caption": text(doc="what the source says of it, empty where it says nothing"),
            "first": scalar(np.int64, doc="first frame that belongs to this split"),
            "last": scalar(np.int64, doc="one past the last frame that belongs to this split"),
            "frames": scalar(np.int64, doc="frames of the whole record"),
            "height": scalar(np.int64, doc="of the upright picture"),
            "width": scalar(np.int64, doc="of the upright picture"),
            "fps": scalar(np.float32, doc="average frame rate, 0 where the file does not say"),
            "times": seconds((None,), "seconds of each frame, from the first one of the record"),
            "duration": seconds((), "seconds from the start of frame `first` to `last`'s"),
            "offset": seconds((), "seconds into the original video at which the record begins"),
            "keyframes": tfds.features.Tensor(
                shape=(None, 2), dtype=np.int64, doc="(frame, time stamp) to seek to"
            ),
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


def write_shard(
    directory: Path,
    split: str,
    number: int,
    total: int,
    classes: Iterable[str],
    records: Iterable[dict],
) -> dict:
    """Writes shard `number` of the `total` of a split, and its part of the index.

    Records hold what `features` says and "motion", which goes into the index alone. Both files are
    written beside and renamed. Returns the shard's file, split, records, bytes and SHA-256.
    """
    spec, count = features(classes), 0
    path = directory / shard_name(split, number, total)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    columns = {name: [] for name in ("key", *_INDEX)}
    try:
        writer = ArrayRecordWriter(str(beside), "group_size:1,uncompressed")
        for record in records:
            record = {**record, "rate": constant_rate(record["times"])}
            for name, column in columns.items():
                column.append(record[name])
            writer.write(_serialized(spec, record))
            count += 1
        writer.close()
        found = describe(beside)
        _write_columns(_part_of_index(directory, split, number), columns)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return found | {"file": path.name, "split": split, "records": count}


def write_index(directory: Path, split: str, total: int) -> None:
    """Joins the parts of the index of a split, one for each of its `total` shards."""
    parts = [_read_columns(_part_of_index(directory, split, number)) for number in range(total)]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    with replacing(_index_path(directory, split)) as file:
        np.savez_compressed(file, **columns)


def write_metadata(directory: Path, classes: Iterable[str], files: list[dict]) -> None:
    """Writes the TFDS metadata of shards described as by `write_shard`, in order."""
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

    Far away (gs:// and the like) it takes too long to look at them all: there wrong sizes come out
    when shards are read.

    Raises FileNotFoundError where there is none, ValueError where a shard is absent or of another
    size or the format is another one.
    """
    manifest = load_manifest(directory)
    for file in () if "://" in os.fspath(directory) else manifest["shards"]:
        if wrong := wrong_size(Path(directory), file):
            raise ValueError(
                f"{wrong}: the data set is damaged; give its `evatok data build` again, which "
                "makes this shard anew"
            )
    return manifest


def load_manifest(directory: str | os.PathLike) -> dict:
    """The manifest of a finished data set, whatever has become of its files.

    Raises FileNotFoundError where there is none, ValueError where the format is another one.
    """
    directory = epath.Path(directory)
    if not (directory / MANIFEST).is_file():
        if (directory / PARTS).is_dir():
            raise FileNotFoundError(
                f"the data set in {directory} is not finished: give its `evatok data build` again"
            )
        raise FileNotFoundError(
            f"no data set in {directory}: make one with `evatok data build NAME --out {directory}`"
        )
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{directory / MANIFEST} is damaged ({error}): remove it and give the `evatok data "
            "build` of this data set again"
        ) from error
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{directory} has data format {manifest.get('format')}, this version reads {FORMAT}: "
            "build it again into another folder"
        )
    return manifest


def describe(path: Path) -> dict:
    """Name ("file"), bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}


def wrong_size(directory: Path, file: dict) -> str:
    """What is wrong with the size of a file that is described by "file" and "bytes", or ""."""
    path = directory / file["file"]
    found = path.stat().st_size if path.is_file() else "no"
    return (
        ""
        if found == file["bytes"]
        else f"{path} has {found} bytes and should have {file['bytes']}"
    )


class Index(Mapping):
    """The columns of a split, a row for each record; each is read when it is asked for.

    Columns: key, hash (`name_hash` of it), label, first and last (frames), duration (seconds),
    motion (mean absolute difference of luma between frames that follow, in levels of 0 to 255),
    rate (frames a second where that is constant, see `constant_rate`).
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


def read_index(directory: str | os.PathLike, split: str) -> Index:
    """What one must know of every record without reading it."""
    return Index(directory, split)


def open_records(directory: Path, split: str):
    """The TFDS data source of a split: random access to its records (see `features`)."""
    return tfds.builder_from_directory(str(directory)).as_data_source(split)


def shard_name(split: str, number: int, total: int) -> str:
    """The file name of a shard."""
    return _template(Path(), split).sharded_filepath(shard_index=number, num_shards=total).name


def _serialized(spec: tfds.features.FeaturesDict, record: dict) -> bytes:
    """A record as `spec.serialize_example` gives it, but the same bytes in every process."""
    stored = spec.encode_example({name: record[name] for name in spec})
    example = ExampleSerializer(spec.get_serialized_info()).get_tf_example(stored)
    return example.SerializeToString(deterministic=True)


def _write_columns(path: Path, columns: dict[str, list]) -> None:
    arrays = {name: np.array(columns[name], dtype) for name, dtype in _INDEX.items()}
    arrays["key"] = np.array([key.encode() for key in columns["key"]], np.bytes_)
    arrays["hash"] = np.array([name_hash(key) for key in columns["key"]], np.uint32)
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)


def _read_columns(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _part_of_index(directory: Path, split: str, number: int) -> Path:
    return directory / PARTS / f"index-{split}-{number:05d}.npz"


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
