"""The commands `evatok data build` and `evatok data check`."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from evatok_jax.data.builders import SOURCES, source

_PRINTED = 20  # faults; all are in a file


def build_main(
    name: str,
    out: str | Path,
    directory: str | Path | None = None,
    part: str = "0/1",
    fold: int | None = None,
    lists: list[str] | None = None,
    **options,
) -> dict | None:
    """`evatok data build NAME --source DIR --out DIR`: builds and prints what came of it.

    `fold` chooses the official lists of ucf101 (1 to 3), `lists` are CSV files, `part` is "i/n",
    `options` are those of `build`. Raises as `source` and `build` do.
    """
    from evatok_jax.data.builders.build import SKIPPED, build, missing

    given = {"fold": fold, "lists": lists}
    videos = source(name, directory, **{k: v for k, v in given.items() if v is not None})
    manifest = build(videos, out, part=_part(part), **options)
    if manifest is None:
        left = missing(videos, out, options.get("shards", 1))
        print(f"{out}: part {part} is built; {len(left)} shards of other parts are missing")
        return None
    for line in _left_out(Path(out) / SKIPPED):
        print(line)
    counts = ", ".join(f"{split} {count}" for split, count in manifest["splits"].items())
    skipped = manifest["skipped"]
    causes = ", ".join(f"{cause} {count}" for cause, count in sorted(skipped.items()))
    print(
        f"{out}: {name}, records: {counts}; {len(manifest['classes'])} classes, "
        f"{manifest['bytes'] / 1e6:.1f} MB, {sum(skipped.values())} skipped"
        + (f" ({causes})" if causes else "")
    )
    if large := manifest["large"]:
        print(f"{len(large)} records are above the limit, they cannot be cut: {large[0][0]} ...")
    return manifest


def check_main(directory: str | Path) -> dict:
    """`evatok data check DIR`: verifies a data set and says so. Raises as `check` does."""
    from evatok_jax.data.builders.check import check

    manifest = check(directory)
    print(
        f"{directory}: {len(manifest['shards'])} shards, {sum(manifest['splits'].values())} "
        f"records, {manifest['bytes'] / 1e6:.1f} MB: all is as the manifest says"
    )
    return manifest


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `build_main` for an argparse parser.

    Destinations are its parameters; what is not given is left to it.
    """

    def add(*names, **options):
        parser.add_argument(*names, default=argparse.SUPPRESS, **options)

    parser.add_argument("name", choices=list(SOURCES), help="the kind of source")
    parser.add_argument("--out", required=True, help="folder of the data set")
    add("--source", dest="directory", help="folder of the videos")
    add("--lists", nargs="+", help="CSV files of webvid and kinetics (default: those in --source)")
    add("--fold", type=int, choices=(1, 2, 3), help="lists of ucf101 (default: 1)")
    add("--shards", type=int, help="files for each split (default: 1)")
    add("--workers", type=int, help="processes that decode (default: one a core)")
    add("--part", help="i/n: build every n-th shard, from number i (0 to n - 1) on")
    add("--max-bad", type=float, help="share of bad videos allowed (default: 0.05)")
    add("--min-frames", type=int, help="shorter ones are bad (default: 16; 1 for images)")
    add("--patience", type=float, help="seconds without a new picture, then it hangs (default: 60)")


def _part(text: str) -> tuple[int, int]:
    """The numbers of "i/n"."""
    try:
        number, total = (int(word) for word in text.split("/"))
    except ValueError as error:
        raise ValueError(f"--part {text}: expected i/n, as 0/4") from error
    return number, total


def _left_out(path: Path) -> Iterator[str]:
    """Lines on the first that were left out of a data set, but for those that were not there."""
    printed = 0
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["cause"] != "absent":
                if printed == _PRINTED:
                    yield f"and more, all in {path}"
                    return
                yield f"skipped {row['key']} ({row['split']}): {row['reason']}"
                printed += 1
