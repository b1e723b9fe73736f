"""The parts of the page on runs and clips: film strips, samples, training, time, protocols."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from evatok_jax.report import media
from evatok_jax.report.figures import Line, chart, legend, smooth, thin
from evatok_jax.report.markup import (
    DASH,
    Html,
    bar,
    cards,
    duration,
    fixed,
    join,
    missing,
    percent,
    table,
    tag,
    value,
)
from evatok_jax.report.results import Job, Results

# Bytes for pictures before base64, which adds a third: a page of at most about 6 MB.
STRIP_BYTES, PAIR_BYTES, SAMPLE_BYTES = 2_000_000, 1_000_000, 1_500_000
STRIPS_AN_END = 4
SAMPLES = 66
CURVE_POINTS = 200

# What is drawn of a job, by what it trains: title, and (metric, label) for each panel.
PANELS = {
    "tokenizer": (
        "Tokenizers",
        (
            ("loss/tokenizer", "loss"),
            ("lpips", "LPIPS of training frames"),
            ("psnr", "PSNR, dB"),
            ("code_usage", "share of codes used in a batch"),
        ),
    ),
    "router": (
        "Routers",
        (
            ("loss/router", "loss, nats"),
            ("percentile", "proxy-reward percentile"),
            ("top5", "best is in the first five, share"),
            ("tokens", "tokens of a clip"),
        ),
    ),
    "generator": (
        "Generator",
        (
            ("loss/generator", "loss, nats a token"),
            ("visual_loss", "loss of visual tokens, nats"),
            ("length_loss", "loss of length tokens, nats"),
            ("length_accuracy", "length tokens guessed right, share"),
        ),
    ),
}


def strips_section(run: Results) -> Html:
    """Originals and reconstructions, the cheapest and the dearest clips."""
    if run.strips is None:
        return missing("the film strips", "evaluate-final/strips.npz")
    lengths = run.strips["lengths"]
    order = np.argsort(lengths.sum(axis=1), kind="stable").tolist()
    count = min(STRIPS_AN_END, len(order) // 2) or 1
    cheap, dear = order[:count], order[count:][::-1][:count]
    chosen = cheap + dear
    clips = [
        [media.shrink(run.strips[side][i]) for side in ("original", "reconstruction")]
        for i in chosen
    ]
    pictures = [
        picture
        for pair, i in zip(clips, chosen, strict=True)
        for picture in media.block_pictures(*pair, lengths[i])
    ]
    pictures, stored = media.fit(media.still, pictures, STRIP_BYTES)
    pairs = [np.concatenate(pair, axis=2) for pair in clips]
    moving, _ = media.fit(media.animation, pairs, PAIR_BYTES, (90, 75, 50, 25))
    blocks = lengths.shape[1]
    shown = [
        _strip(run.strips, i, pictures[k * blocks : (k + 1) * blocks], moving[k], pairs[k])
        for k, i in enumerate(chosen)
    ]
    return join(
        tag(
            "p",
            f"Upper row: original. Lower row: decoded from the tokens. The bar under each "
            f"block of {run.strips['original'].shape[1] // blocks} frames is its tokens (full: "
            f"{lengths.max()}). Strips are stored {stored}; a narrow screen "
            "shows the first frame of each block.",
            class_="lead",
        ),
        tag("h3", "Least expensive clips", class_="cheap"),
        shown[:count],
        tag("h3", "Most expensive clips", class_="dear") if len(dear) else None,
        shown[count:],
    )


def _strip(strips, i: int, pictures: list[bytes], moving: bytes, pair: np.ndarray) -> Html:
    lengths = strips["lengths"][i]
    frames = strips["original"].shape[1] // len(lengths)
    key = str(strips["key"][i]) if "key" in strips else f"clip {i}"
    facts = [f"{int(lengths.sum())} tokens"]
    if "lpips" in strips:
        facts.append(f"LPIPS {strips['lpips'][i]:.3f}")
    start = f" from frame {int(strips['window'][i])}" if "window" in strips else ""
    blocks = (
        tag(
            "div",
            tag("div", tag("img", src=media.data_uri(picture), alt=_alt(t)), class_="film"),
            bar(length / strips["lengths"].max()),
            tag("span", int(length), class_="count"),
            class_="block",
            style=f"--frames:{frames}",
        )
        for t, (picture, length) in enumerate(zip(pictures, lengths, strict=True))
    )
    return tag(
        "article",
        tag("header", tag("b", facts[0]), " ", *facts[1:], tag("span", key, start)),
        tag(
            "div",
            tag(
                "div",
                media.moving(moving, pair, f"{key}, original and decoded"),
                tag("p", tag("span", "original"), tag("span", "decoded")),
                class_="pair",
            ),
            tag("div", blocks, class_="blocks"),
            class_="strip",
        ),
        class_="clip",
    )


def _alt(block: int) -> str:
    return f"block {block + 1}: original above, decoded below"


def generation_section(run: Results) -> Html:
    """Generated clips by class, and what was measured on them."""
    numbers = _generation_numbers(run.generation)
    if run.samples is None:
        return join(numbers, missing("generated clips", "evaluate-generation/samples.npz"))
    labels = run.samples.get("label", np.zeros(len(run.samples["video"]), int))
    names = (run.generation or {}).get("classes", [])
    classes = np.unique(labels)
    a_class = 12 if len(classes) <= 4 else 6
    chosen = [i for c in classes for i in np.flatnonzero(labels == c)[:a_class]][:SAMPLES]
    videos = [media.shrink(run.samples["video"][i]) for i in chosen]
    moving, stored = media.fit(media.animation, videos, SAMPLE_BYTES, (90, 75, 50, 25))
    lengths = run.samples["lengths"]
    rows: dict[int, list[Html]] = {}
    for i, webp, video in zip(chosen, moving, videos, strict=True):
        tokens = (bar(n / max(lengths.max(), 1)) for n in lengths[i])
        item = tag(
            "div",
            media.moving(webp, video, "generated clip"),
            tag("div", tokens, class_="quad"),
            tag("small", f"{int(lengths[i].sum())} tokens"),
            class_="sample",
        )
        rows.setdefault(int(labels[i]), []).append(item)
    groups = (
        tag(
            "section",
            tag("h3", str(names[c]) if 0 <= c < len(names) else f"class {c}"),
            tag("div", items, class_="samples"),
        )
        for c, items in rows.items()
    )
    note = (
        f"{len(chosen)} of {len(labels)} generated clips, {1000 / media.FRAME_MILLISECONDS:g} "
        f"frames a second, stored {stored}. Under each: its tokens, block by block."
    )
    return join(numbers, tag("p", note, class_="lead"), tag("div", groups, class_="classes"))


def _generation_numbers(found: Mapping | None) -> Html:
    if found is None:
        return missing("the generator's numbers", "evaluate-generation/generation.json")
    train, test = found.get("train"), found.get("test")
    blocks = " · ".join(f"{n:.0f}" for n in found.get("tokens_per_block", ()))
    facts = [
        (
            "Held-out loss",
            fixed(value(test, "loss"), 3),
            f"nats a token; token frequencies alone: {fixed(value(test, 'unigram_loss'), 3)}",
        ),
        (
            "Training loss",
            fixed(value(train, "loss"), 3),
            f"nats a token; unigram entropy: {fixed(value(train, 'unigram_entropy'), 3)}",
        ),
        ("Tokens", fixed(value(found, "tokens"), 0), f"mean of a clip; by block: {blocks or DASH}"),
    ]
    if value(found, "gfvd") is None:
        facts.append(("gFVD", DASH, "not measured"))
    else:
        low, high, real = (value(found, key) for key in ("gfvd_low", "gfvd_high", "real_vs_real"))
        notes = [f"bootstrap {fixed(low)} to {fixed(high)}"] if low is not None else []
        notes += [f"real against real: {fixed(real)}"] if real is not None else []
        facts.append(("gFVD", fixed(value(found, "gfvd")), "; ".join(notes)))
    guidance = f"guidance {fixed(value(found, 'guidance'), 2)}"
    facts.append(("Samples", fixed(value(found, "samples")), guidance))
    return cards(facts)


def training_section(run: Results) -> Html:
    """Loss and main metrics of every job that trained, small multiples by kind."""
    parts = []
    kinds = [*PANELS, *sorted({j.kind for j in run.jobs if j.kind} - set(PANELS))]
    for kind in kinds:
        jobs = [job for job in run.jobs if job.kind == kind]
        title, panels = PANELS.get(kind, (kind.capitalize(), ((f"loss/{kind}", "loss"),)))
        if not jobs:
            parts.append(missing(f"training of: {title.lower()}", "metrics.jsonl"))
            continue
        tokens = (run.generation or {}).get("train") if kind == "generator" else None
        unigram = value(tokens, "unigram_entropy")
        charts = [
            _panel(jobs, name, label, unigram if name == f"loss/{kind}" else None)
            for name, label in panels
        ]
        parts += [
            tag("h3", title),
            legend([(job.name, _color(job, i), "solid") for i, job in enumerate(jobs)]),
            tag("div", [c for c in charts if c], class_="panels", tabindex=0),
        ]
    note = "Bold: moving mean. Faint: as logged, one batch each. x axis: steps."
    return join(tag("p", note, class_="lead"), parts)


def _color(job: Job, place: int) -> int:
    """The colour that a job's rule has all over the page, or one by its place."""
    return {"uniform": 0, "final": 1, "proxy": 3}.get(job.name.partition("-")[0], place + 1)


def _panel(jobs: list[Job], name: str, label: str, unigram: float | None) -> Html | None:
    faint, bold = [], []
    for i, job in enumerate(jobs):
        color = _color(job, i)
        rows = [(row["step"], value(row, name)) for row in job.metrics]
        rows = np.array([row for row in rows if row[1] is not None], float).reshape(-1, 2)
        if len(rows):
            mean = smooth(rows[:, 1], max(1, len(rows) // 10))
            steps, raw, mean = (thin(a, CURVE_POINTS) for a in (rows[:, 0], rows[:, 1], mean))
            faint.append(Line(job.name, steps, raw, color, "faint"))
            bold.append(Line(job.name, steps, mean, color))
    if not bold:
        return None
    reference = ("unigram entropy", unigram) if unigram is not None else None
    return chart([*faint, *bold], label, robust=True, reference=reference)


def timing_section(run: Results) -> Html:
    """Where the seconds went."""
    if not run.timing:
        return missing("the table of seconds", "timing.json")
    seconds = [value(row, "seconds") or 0.0 for row in run.timing]
    total, longest = sum(seconds), max(max(seconds), 1e-9)
    rows = [
        (row.get("name", ""), duration(s), percent(s / max(total, 1e-9)), bar(s / longest), status)
        for row, s in zip(run.timing, seconds, strict=True)
        for status in [str(row.get("status", ""))]
    ]
    rows.append((tag("b", "all"), tag("b", duration(total)), "", "", ""))
    return table(("part", "time", "share", "", "status"), rows)


def protocol_section(run: Results) -> Html:
    """How each number was made: one table, evaluations side by side."""
    protocols = {name: e["protocol"] for name, e in run.evaluations.items() if e.get("protocol")}
    if not protocols:
        return missing("protocols", "evaluate-*/*.json: protocol")
    first = ("data", "split", "clips", "windows", "seed", "resolution", "networks", "models")
    others = {key for p in protocols.values() for key in p} - {*first, "notes"}
    tables = []
    for name, protocol in protocols.items():
        rows = (
            tag("tr", tag("th", key, scope="row"), tag("td", _plain(protocol[key])))
            for key in (*first, *sorted(others), "notes")
            if key in protocol
        )
        tables.append(tag("table", tag("caption", name), tag("tbody", rows)))
    return tag("div", tables, class_="protocols")


def _plain(found: Any) -> Any:
    """Whatever JSON holds, in markup."""
    if isinstance(found, Mapping):
        return tag(
            "dl", ((tag("dt", key), tag("dd", tag("code", _plain(v)))) for key, v in found.items())
        )
    if isinstance(found, list):
        return tag("ul", (tag("li", _plain(item)) for item in found))
    return str(found)
