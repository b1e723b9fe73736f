"""The door for people: the `evatok` command."""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np


def assets(args) -> None:
    """Fetches metric networks and the default clips, or converts a teacher's published file."""
    from evatok_jax import assets

    if args.convert:
        from evatok_jax.pretrained.teachers import convert

        name, given, source = args.convert.partition("=")
        if not given or args.names:
            raise ValueError("--convert takes NAME=FILE, and no other names beside it")
        print(convert(name, source))
        return
    try:
        assets.fetch(args.names or None)
    except RuntimeError as error:  # what failed, pip's words of many lines, what to do
        first, *said, last = str(error).splitlines()
        reasons = [f"{line}." for line in said if line.startswith("ERROR")]
        raise ValueError(" ".join([first, *reasons[-1:], last])) from error


def info(args) -> None:
    """Describes a config or an .evt file as JSON."""
    if args.config:
        from evatok_jax.config import load_config
        from evatok_jax.describe import describe_config

        show(describe_config(load_config(args.config)))
    elif args.file:
        from evatok_jax.storage.evt import info, read_evt

        show(info(read_evt(args.file)))
    else:
        raise ValueError("give --config=configs/X.py:args or an .evt file")


def encode(args) -> None:
    """A video file to an .evt file."""
    from evatok_jax.files import encode_file, tokenizer_of

    if args.level is not None and (args.router or args.budget is not None):
        raise ValueError("--level fixes the lengths: leave out --router and --budget")
    tokenizer = tokenizer_of(opened(args.model))
    if args.router:
        tokenizer.use_router(args.router)
    done = encode_file(tokenizer, args.input, args.output, args.mode, args.budget, args.level)
    show(done)
    tell(args.command, done["notes"])


def decode(args) -> None:
    """An .evt file to a video file."""
    from evatok_jax.files import decode_file

    done = decode_file(opened(args.model), args.input, args.output)
    show(done)
    tell(args.command, done["notes"])


def sample(args) -> None:
    """Clips of a class, or that begin as a video does, to a folder of videos or an .npy file."""
    from evatok_jax.api import Generator
    from evatok_jax.files import first_frames, save_clips

    model = opened(args.model)
    if not isinstance(model, Generator):
        raise ValueError(f"{args.model} holds a tokenizer; sampling needs a generator")
    classes, frames = np.full(args.count, args.label), None
    if args.first:
        frames = np.repeat(first_frames(model, args.first)[None], args.count, axis=0)
    clips = model.sample(
        classes, args.seed, args.guidance, frames, temperature=args.temperature, top_k=args.top_k
    )
    show(save_clips(clips, args.output))


def metrics(args) -> None:
    """Compares two sets of clips; JSON with the protocol."""
    from evatok_jax.evaluators.compare import compare
    from evatok_jax.files import load_clips

    names = tuple(args.metrics.split(","))
    real, fake = load_clips(args.real, args.frames), load_clips(args.fake, args.frames)
    show(compare(real, fake, names, progress=lambda line: print(line, file=sys.stderr)))


def report(args) -> None:
    """Writes the page of a pipeline's workdir."""
    from evatok_jax.report import write_report

    print(write_report(Path(args.workdir), Path(args.out) if args.out else None))


def compile_check(args) -> None:
    """Compiles a config's step for a slice of TPUs, without one, and says what it costs."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # what this machine has is of no interest
    from evatok_jax.compile_check import DoesNotFit, check
    from evatok_jax.compile_report import render
    from evatok_jax.config import load_config, override

    config = load_config(args.config)
    override(config, args.set)
    try:
        found = check(
            config,
            args.topology,
            step=args.step,
            size=args.size,
            sample=args.sample,
            batch=args.batch,
        )
    except DoesNotFit as error:
        failure = {
            "config": config.name,
            "topology": error.topology,
            "fits": False,
            "needed_bytes": error.needed_bytes,
            "usable_bytes": error.usable_bytes,
            "error": str(error),
        }
        keep(args.json, failure)
        print(f"evatok compile-check: {error}", file=sys.stderr)
        sys.exit(1)
    if args.json != "-":
        print(render(found))
    keep(args.json, found)


def keep(path: str, content: dict) -> None:
    """JSON to a file, or to standard output for "-"; nothing without a path."""
    from evatok_jax.workdir import write_json

    if path == "-":
        show(content)
    elif path:
        write_json(Path(path), content)


def data_build(args) -> None:
    """Builds a data set from a source of videos."""
    from evatok_jax.data.builders.command import build_main

    options = vars(args)
    build_main(**{k: v for k, v in options.items() if k not in ("run", "command", "action")})


def data_annotate(args) -> None:
    """Runs a router or a tokenizer once over all windows and keeps what it says as a table."""
    from absl import logging
    from ml_collections import ConfigDict

    from evatok_jax.curate import curate
    from evatok_jax.data.tables import read_table
    from evatok_jax.presets import CURATION
    from evatok_jax.workdir import finished

    logging.set_verbosity(logging.INFO)
    flip = args.kind != "scores" if args.flip is None else args.flip
    given = ConfigDict(vars(args) | {"flip": flip, "first": 0, "seed": 0, "run": None})
    config, workdir = CURATION[args.kind](given), Path(args.out)
    config.data.update(fps=args.fps, short=args.short)
    curate(config, workdir)
    if not finished(workdir):
        tell("data annotate", ["stopped before its end", "give the same command to continue"])
        return
    columns = read_table(workdir / "table")
    show(
        {
            "table": str(workdir / "table"),
            "rows": len(columns["record"]),
            "columns": {name: [str(c.dtype), *c.shape[1:]] for name, c in columns.items()},
        }
    )


def data_show(args) -> None:
    """Writes a page with clips of a data set, what its videos are like, and what was left out."""
    from evatok_jax.report.data_page import write_data_page

    print(write_data_page(args.directory, args.out))


def data_check(args) -> None:
    """Verifies that a data set is what its manifest says and can be read."""
    from evatok_jax.data.builders.command import check_main

    check_main(args.directory)


def opened(directory: str):
    """The model of an export or workdir."""
    from evatok_jax.api import load

    return load(directory)


def show(content) -> None:
    """JSON on standard output; a list of plain values takes one line."""

    def joined(found):
        return re.sub(r"\n *", "", re.sub(r",\n *", ", ", found[0]))

    # Strings have no line breaks in JSON, so those that are matched here are always the layout's.
    print(re.sub(r"\[\n[^][{}]*\n *\]", joined, json.dumps(content, indent=1)))


def tell(command: str, notes: list[str]) -> None:
    """What the user should know beside the result, in one line on standard error."""
    if notes:
        print(f"evatok {command}: {', '.join(notes)}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    top = argparse.ArgumentParser(prog="evatok", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    def command(function, name, *arguments, under=commands):
        sub = under.add_parser(name, help=function.__doc__, description=function.__doc__)
        sub.set_defaults(run=function)
        for flags, options in arguments:
            sub.add_argument(*flags.split(), **options)
        return sub

    model = ("--model", dict(required=True, help="export directory or workdir of a finished job"))
    command(
        assets,
        "assets",
        ("names", dict(nargs="*", help="which (default: all)")),
        ("--convert", dict(help="NAME=FILE: a teacher from a published file (docs/teachers.md)")),
    )
    command(
        info,
        "info",
        ("file", dict(nargs="?", help="an .evt file")),
        ("--config", dict(help="configs/X.py:args")),
    )
    command(
        encode,
        "encode",
        ("input", dict(help="a video file")),
        ("output", dict(help="the .evt file to write")),
        model,
        ("--mode", dict(choices=("letterbox", "crop"), default="letterbox")),
        ("--budget", dict(type=int, help="at most this many tokens a clip, for the router")),
        ("--router", dict(help="export or workdir of a router, in place of the model's own")),
        ("--level", dict(type=int, help="this many tokens for every block, without a router")),
    )
    command(
        decode,
        "decode",
        ("input", dict(help="an .evt file")),
        ("output", dict(help="the video file to write")),
        model,
    )
    command(
        sample,
        "sample",
        ("output", dict(help="a folder for videos, or an .npy file")),
        model,
        ("--label", dict(type=int, default=0, help="class number")),
        ("--first", dict(help="frame prediction: a video whose first frames are given")),
        ("--count", dict(type=int, default=4)),
        ("--seed", dict(type=int, default=0)),
        ("--guidance", dict(type=float, default=1.0, help="classifier-free guidance, 1 is none")),
        ("--temperature", dict(type=float, default=1.0)),
        ("--top-k", dict(type=int, default=0, help="0 is off")),
    )
    command(
        metrics,
        "metrics",
        ("real", dict(help="a folder of videos, or .npy of uint8 [n, t, h, w, 3]")),
        ("fake", dict(help="the same")),
        ("--metrics", dict(default="psnr,ssim,lpips,fvd")),
        ("--frames", dict(type=int, default=16, help="first frames of each video that count")),
    )
    command(
        report,
        "report",
        ("workdir", dict(help="of a pipeline")),
        ("--out", dict(help="the page to write (default: in the workdir)")),
    )
    command(
        compile_check,
        "compile-check",
        ("--config", dict(required=True, help="configs/X.py:args")),
        ("--topology", dict(default="v5e:8x8", help="of v4, v5e, v5p or v6e chips")),
        ("--set", dict(action="append", default=[], help="section.key=value, on top")),
        ("--step", dict(type=int, help="number (default: one in which all learn)")),
        ("--size", dict(type=int, help="static size of the batch (default: the largest)")),
        ("--sample", dict(action="store_true", help="a generator's sampling step")),
        ("--batch", dict(type=int, help="clips that a chip samples at once (default: 16)")),
        (
            "--json",
            dict(nargs="?", default="", const="-", help="the report as JSON, printed or to a file"),
        ),
    )
    data = commands.add_parser("data", help="data sets").add_subparsers(
        dest="action", required=True
    )
    from evatok_jax.data.builders.command import add_build_arguments

    add_build_arguments(command(data_build, "build", under=data))
    directory = ("directory", dict(help="of a data set"))
    command(data_check, "check", directory, under=data)
    command(
        data_annotate,
        "annotate",
        ("data", dict(help="folder of a data set")),
        ("--kind", dict(choices=("assignments", "tokens", "scores"), required=True)),
        ("--tokenizer", dict(default="", help="export or workdir; assignments need only a router")),
        ("--router", dict(default="", help="export or workdir, in place of the tokenizer's own")),
        ("--out", dict(required=True, help="workdir; the table is OUT/table")),
        ("--split", dict(default="train")),
        (
            "--fps",
            dict(type=float, default=0.0, help="frames a second of a clip (default: native)"),
        ),
        ("--short", dict(choices=("skip", "hold"), default="skip", help="rule for short videos")),
        ("--windows", dict(type=int, default=0, help="so many random ones (default: all)")),
        (
            "--flip",
            dict(
                action=argparse.BooleanOptionalAction,
                help="mirrored windows too (default: yes, but for scores)",
            ),
        ),
        ("--net", dict(choices=("vgg", "alex"), default="vgg", help="of LPIPS, for scores")),
        ("--batch", dict(type=int, default=16)),
        under=data,
    )
    command(
        data_show,
        "show",
        directory,
        ("--out", dict(required=True, help="the page to write")),
        under=data,
    )
    return top


def main(argv: list[str] | None = None) -> None:
    """Entry point; user errors end in one message and exit code 2."""
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        print(f"evatok {args.command}: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
