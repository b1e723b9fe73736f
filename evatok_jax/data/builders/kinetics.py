"""Kinetics (400, 600, 700): the official lists, and a folder of what could be downloaded."""

from pathlib import Path

from evatok_jax.data.builders.listing import Lazy, Source, VideoFile
from evatok_jax.data.builders.rows import CsvRows, csv_files, hash_files, scan

_SPLITS = {"validate": "val", "validation": "val"}
_COLUMNS = {"label", "youtube_id", "time_start", "time_end", "split"}


def kinetics(directory: Path, lists: list[str | Path] | None = None) -> Source:
    """Kinetics from CSV files (label, youtube_id, time_start, time_end, split) and mp4 files.

    `lists` are the CSV files, those in the directory by default. A clip is ID_START_END.mp4, the
    seconds as six digits; it is looked for in the directory and in folders of the split in it
    (train, val or validate, test), in each with and without a folder of the class (its spaces may
    be underscores). What the lists name and nobody has is counted, and is no fault.
    """
    paths = csv_files(directory, lists)
    splits, classes, given = {}, set(), {}
    for file, offset, row in scan(paths, _COLUMNS):
        if not row["label"] or not row["split"]:
            raise ValueError(f"{paths[file]} names no label or no split for {row['youtube_id']}")
        _name(row)
        split = _SPLITS.get(row["split"], row["split"])
        splits.setdefault(split, CsvRows(paths)).append(file, offset)
        given.setdefault(split, {split}).add(row["split"])
        classes.add(row["label"])
    classes = tuple(sorted(classes))
    numbers = {name: number for number, name in enumerate(classes)}

    def folders(split: str) -> list[Path]:
        """Where the videos of a split may be; only folders that are there."""
        named = [directory / name for name in sorted(given[split])]
        return [path for path in (*named, directory) if path.is_dir()]

    def maker(split: str):
        places = folders(split)

        def make(row: dict[str, str]) -> VideoFile:
            label, name = row["label"], _name(row)
            inside = (name, f"{label}/{name}", f"{label.replace(' ', '_')}/{name}")
            candidates = [place / path for place in places for path in inside]
            path = next((path for path in candidates if path.is_file()), candidates[0])
            return VideoFile(path, f"{label}/{name}", numbers[label])

        return make

    return Source(
        "kinetics",
        {split: Lazy(rows, maker(split)) for split, rows in splits.items()},
        classes,
        "the column split of the CSV files",
        hash_files(paths),
        absent_is_bad=False,
    )


def _name(row: dict[str, str]) -> str:
    """The name of the file of a row. Raises ValueError where its times are no numbers."""
    try:
        start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
    except ValueError as error:
        raise ValueError(f"the times of {row['youtube_id']} are no numbers: {error}") from error
    return f"{row['youtube_id']}_{start:06d}_{end:06d}.mp4"
