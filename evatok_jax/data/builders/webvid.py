"""WebVid: the official lists, and a folder of what could be downloaded."""

from pathlib import Path

from evatok_jax.data.builders.listing import UNLABELLED, Lazy, Source, VideoFile
from evatok_jax.data.builders.rows import CsvRows, csv_files, hash_files, scan


def webvid(directory: Path, lists: list[str | Path] | None = None) -> Source:
    """WebVid from its CSV files (videoid, contentUrl, duration, page_dir, name) and mp4 files.

    `lists` are the CSV files, those in the directory by default; the split is in their names: val
    or test where these words are in them, otherwise train. A video is page_dir/videoid.mp4 or
    videoid.mp4 in the folder `videos` of the directory, or in the directory itself. What the lists
    name and nobody has is counted, and is no fault.
    """
    paths = csv_files(directory, lists)
    names = [next((s for s in ("val", "test") if s in p.name.lower()), "train") for p in paths]
    splits = {name: CsvRows(paths) for name in names}
    for file, offset, _ in scan(paths, {"videoid", "page_dir", "name"}):
        splits[names[file]].append(file, offset)
    videos = directory / "videos" if (directory / "videos").is_dir() else directory

    def make(row: dict[str, str]) -> VideoFile:
        key = f"{row['page_dir']}/{row['videoid']}"
        path, flat = videos / f"{key}.mp4", videos / f"{row['videoid']}.mp4"
        return VideoFile(flat if flat.is_file() else path, key, caption=row["name"])

    return Source(
        "webvid",
        {split: Lazy(rows, make) for split, rows in splits.items() if len(rows)},
        UNLABELLED,
        "the names of the CSV files",
        hash_files(paths),
        absent_is_bad=False,
    )
