"""Verifying a data set: that its files are what its manifest says, and can be read."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from evatok_jax.data.records import describe, load_manifest, open_records, read_index, wrong_size

_SHOWN = 5  # problems that a message names


def check(directory: str | Path) -> dict:
    """Reads all of a data set and returns its manifest.

    Raises FileNotFoundError where there is none, ValueError with all that is wrong: files that are
    absent or of another size or SHA-256, splits of another length, records that cannot be read or
    are not those of the index.
    """
    directory = Path(directory)
    manifest = load_manifest(directory)
    files = manifest["shards"] + manifest["files"]
    wrong = [why for file in tqdm(files, desc="files") if (why := _wrong(directory, file))]
    if wrong:
        shown = "; ".join(wrong[:_SHOWN] + ["..."] * (len(wrong) > _SHOWN))
        raise ValueError(
            f"{len(wrong)} of {len(files)} files of {directory} are damaged: {shown}. Remove them "
            "and give the `evatok data build` of this data set again: it makes these anew, and "
            "nothing else"
        )
    for split, count in manifest["splits"].items():
        _check_records(directory, split, count)
    return manifest


def _wrong(directory: Path, file: dict) -> str:
    """What is wrong with a file of the manifest, or ""."""
    if wrong := wrong_size(directory, file):
        return wrong
    path = directory / file["file"]
    same = describe(path)["sha256"] == file["sha256"]
    return "" if same else f"{path} has another SHA-256 than the manifest says"


def _check_records(directory: Path, split: str, count: int) -> None:
    """Reads each record of a split and compares it with its row of the index."""
    index, records = read_index(directory, split), open_records(directory, split)
    lengths = {"manifest": count, "metadata": len(records), "index": len(index["key"])}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{directory}, split {split}: records by {lengths}: build it again")
    for number in tqdm(range(count), desc=split):
        where = f"{directory}, split {split}, record {number} ({index['key'][number]})"
        try:
            record = records[number]
        except Exception as error:  # whatever the reader of a format raises on damage
            raise ValueError(f"{where} cannot be read: {error}") from error
        found = record["key"].decode(), record["label"], record["first"], record["last"]
        row = tuple(index[name][number] for name in ("key", "label", "first", "last"))
        lasts = np.float32(record["duration"]) == index["duration"][number]
        if found != row or not lasts or len(record["times"]) != record["frames"]:
            raise ValueError(f"{where} is not what the index says: {found} and {row}")
