"""The page of a data set: some of its clips, what its videos are like, and what was left out."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import UInt8

from evatok_jax.atomic import replacing
from evatok_jax.data.builders.build import SKIPPED
from evatok_jax.data.clips import Clips
from evatok_jax.data.records import Index, read_index, read_manifest
from evatok_jax.report import media
from evatok_jax.report.figures import histogram, legend
from evatok_jax.report.markup import (
    Html,
    bar,
    cards,
    document,
    duration,
    fixed,
    join,
    percent,
    table,
    tag,
)

CLIP_BYTES = 3_000_000  # of all animations, before base64 adds a third
FRAMES = 16  # of a clip that is shown
TILES = 36  # clips shown of all splits together
SAMPLE = 256  # records of a split that are opened, for what the index does not hold
LISTED = 100  # left out videos that are named, and bars of a table


def write_data_page(directory: str | Path, out: str | Path) -> Path:
    """Writes the page of a built data set and returns its path.

    Raises FileNotFoundError and ValueError as `records.read_manifest` does.
    """
    directory, out = epath.Path(directory), Path(out)
    manifest = read_manifest(directory)
    splits = sorted(manifest["splits"], key=lambda split: (split != "train", split))
    indices = {split: read_index(directory, split) for split in splits}
    name = directory.resolve().name
    opened = {split: _opened(directory, split, index) for split, index in indices.items()}
    sections = [
        ("clips", "Clips", _clips_section(directory, manifest, indices)),
        ("lengths", "Length and motion", _lengths_section(indices)),
        ("pictures", "Pictures", _pictures_section(opened)),
        ("classes", "Classes", _classes_section(manifest, indices)),
        ("skipped", "What was left out", _skipped_section(directory, manifest)),
        ("shards", "Shards", _shards_section(manifest)),
    ]
    page = document(f"EVATok data: {name}", _masthead(name, manifest, indices), sections)
    with replacing(out, "w") as file:
        file.write(page)
    return out


def _masthead(name: str, manifest: dict, indices: dict[str, Index]) -> Html:
    records, skipped = sum(manifest["splits"].values()), sum(manifest["skipped"].values())
    seconds = sum(float(index["duration"].sum()) for index in indices.values())
    splits = ", ".join(f"{split} {manifest['splits'][split]:,}" for split in indices)
    facts = [
        ("Records", fixed(records), splits),
        ("Hours", fixed(seconds / 3600, 1), f"{duration(seconds / records)} a record"),
        ("Classes", fixed(len(manifest["classes"])), ""),
        (
            "Size",
            fixed(manifest["bytes"] / 1e6, 1, " MB"),
            f"{fixed(len(manifest['shards']))} shards",
        ),
        ("Left out", fixed(skipped), f"of {fixed(manifest['listed'])} that the source lists"),
    ]
    return join(
        tag("p", "EVATok data set", class_="kicker"),
        tag("h1", name),
        tag("p", manifest["split_rule"], class_="lead"),
        tag("p", f"source {manifest['source']} · identity {manifest['identity']}", class_="facts"),
        cards(facts),
    )


def _clips_section(directory: epath.Path, manifest: dict, indices: dict[str, Index]) -> Html:
    """Clips from the middle of videos that lie evenly spread in each split."""
    groups, tiles = [], max(TILES // len(indices) // 6 * 6, 6)
    for split, index in indices.items():
        frames = int(min(FRAMES, (index["last"] - index["first"]).max()))
        clips = Clips(directory, split, frames, media.FRAME_SIDE, media.FRAME_SIDE)
        long = np.flatnonzero(index["last"] - index["first"] >= frames)
        chosen = long[np.linspace(0, len(long) - 1, min(tiles, len(long))).round().astype(int)]
        groups.append((split, chosen, [_middle(clips, record) for record in chosen.tolist()]))
    videos = [found for _, _, shown in groups for found in shown if isinstance(found, np.ndarray)]
    moving, stored = media.fit(media.animation, videos, CLIP_BYTES, (90, 75, 50, 25))
    pictures = iter(zip(moving, videos, strict=True))
    parts = []
    for split, chosen, shown in groups:
        items = []
        for record, found in zip(chosen, shown, strict=True):
            row = {name: column[record] for name, column in indices[split].items()}
            if isinstance(found, np.ndarray):
                picture = media.moving(*next(pictures), f"clip of {row['key']}")
            else:
                picture = tag("p", found, class_="missing")
            items.append(_tile(picture, row, manifest["classes"]))
        parts += [tag("h3", split), tag("div", items, class_="samples")]
    what = "One frame" if frames == 1 else f"{frames} frames"
    note = (
        f"{what} from the middle of each video, cropped as for training, "
        f"{1000 / media.FRAME_MILLISECONDS:g} a second, stored {stored}. Under each: its class, "
        "the duration of its video and how much moves in it."
    )
    return join(tag("p", note, class_="lead"), parts)


def _middle(clips: Clips, record: int) -> UInt8[np.ndarray, "t h w 3"] | str:
    """The clip in the middle of a video, or why there is none."""
    first, last = (int(clips.index[name][record]) for name in ("first", "last"))
    try:
        return clips.read(record, (first + last - clips.frames) // 2)["video"]
    except ValueError as error:
        return str(error)


def _tile(picture: Html, row: dict, classes: list[str]) -> Html:
    facts = [duration(float(row["duration"])), f"motion {fixed(float(row['motion']), 1)}"]
    return tag(
        "div",
        picture,
        tag("small", tag("b", classes[row["label"]])),
        tag("small", " · ".join(facts)),
        class_="sample",
        title=row["key"],
    )


def _lengths_section(indices: dict[str, Index]) -> Html:
    """How long videos are and how much moves in them."""
    charts = []
    for title, label, column in (
        ("Duration", "seconds", lambda index: index["duration"]),
        ("Length", "frames", lambda index: index["last"] - index["first"]),
        ("Motion", "change from frame to frame", lambda index: index["motion"]),
    ):
        groups = [(split, column(index), n) for n, (split, index) in enumerate(indices.items(), 1)]
        charts.append(histogram(groups, title, x_label=label, size=(440, 240)))
    note = (
        "Bars count records; the last one of each chart has all that lies beyond. Motion is the "
        "mean absolute change of luma, in levels of 0 to 255."
    )
    return join(
        legend([(split, n, "solid") for n, split in enumerate(indices, 1)]),
        tag("div", charts, class_="charts"),
        tag("p", note, class_="note"),
    )


def _opened(directory: epath.Path, split: str, index: Index) -> list[tuple[str, str]]:
    """Size and frame rate of records evenly spread over a split."""
    records, total = Clips(directory, split, 1, 1, 1).records, len(index["key"])
    chosen = np.linspace(0, total - 1, min(SAMPLE, total)).round().astype(int)
    rows = (records[i] for i in chosen.tolist())
    return [(f"{row['width']} x {row['height']}", f"{row['fps']:.4g}") for row in rows]


def _pictures_section(opened: dict[str, list[tuple[str, str]]]) -> Html:
    """Resolutions and frame rates."""
    rows = [row for found in opened.values() for row in found]
    note = f"Of {len(rows):,} records, evenly spread over the splits."
    sizes = _counted("width x height", "records", Counter(size for size, _ in rows))
    rates = _counted("frames a second", "records", Counter(rate for _, rate in rows))
    return join(tag("p", note, class_="lead"), tag("div", sizes, rates, class_="columns"))


def _classes_section(manifest: dict, indices: dict[str, Index]) -> Html:
    """Records of each class."""
    total = Counter()
    for index in indices.values():
        labels, counts = np.unique(index["label"], return_counts=True)
        for label, count in zip(labels.tolist(), counts.tolist(), strict=True):
            total[manifest["classes"][label]] += count
    return _counted("class", "records", total)


def _counted(what: str, of: str, found: Counter) -> Html:
    """A table of the most frequent, with bars."""
    most, total = found.most_common(LISTED), sum(found.values())
    rows = [
        (name, f"{count:,}", percent(count / total), bar(count / most[0][1]))
        for name, count in most
    ]
    rest = len(found) - len(most)
    more = tag("p", f"and {rest:,} more", class_="note") if rest else None
    return join(table((what, of, "share", ""), rows), more)


def _skipped_section(directory: epath.Path, manifest: dict) -> Html:
    """Causes, and the first of the videos."""
    causes = Counter(manifest["skipped"])
    if not causes.total():
        return tag("p", "Nothing: every video of the source is in the data set.")
    with (directory / SKIPPED).open(encoding="utf-8") as lines:
        first = [json.loads(line) for line in islice(lines, LISTED)]
    rows = [(row["key"], tag("span", row["split"]), tag("span", row["reason"])) for row in first]
    title = f"The first {LISTED} of {causes.total():,}" if causes.total() > LISTED else "All"
    named = tag("details", tag("summary", title), table(("video", "split", "reason"), rows))
    return join(_counted("cause", "videos", causes), named)


def _shards_section(manifest: dict) -> Html:
    rows = [
        (file["file"], f"{file['records']:,}", fixed(file["bytes"] / 1e6, 1), file["sha256"][:16])
        for file in manifest["shards"][:LISTED]
    ]
    head = ("file", "records", "MB", "SHA-256 begins with")
    return tag("details", tag("summary", f"{len(manifest['shards'])} files"), table(head, rows))
