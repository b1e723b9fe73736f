"""Numbers: the headline, quality against cost, budgets, percentiles, final models and baselines."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from evatok_jax.report.figures import Line, chart, legend
from evatok_jax.report.markup import (
    DASH,
    Html,
    Number,
    bar,
    cards,
    fixed,
    join,
    missing,
    percent,
    table,
    tag,
    value,
)
from evatok_jax.report.results import Results

# name in the file, name for people, colour, style
SERIES = (
    ("uniform", "uniform", 0, "solid"),
    ("router", "router", 1, "solid"),
    ("max_proxy_reward", "max proxy reward (search)", 2, "dashed"),
)
LPIPS_BUDGETS = (
    "LPIPS-VGG within equal mean tokens; a curve that ends before spends what stands beside its "
    "value. The last two columns hold the router against uniform: its LPIPS at equal tokens, its "
    "tokens at equal LPIPS."
)
RFVD_CARE = (
    "FVD is biased upwards by small samples: compare it only between numbers of one table with the "
    "same number of clips. Whiskers and brackets are bootstrap intervals."
)


def tokens_for(points: Iterable[Mapping], metric: str, target: Number) -> float | None:
    """The fewest tokens at which a curve reaches `target` (less is better), or None if it does not.

    Between its points the curve is linear in log2 of the tokens.
    """
    known = sorted((_tokens(p), value(p, metric)) for p in points if value(p, metric) is not None)
    if known and known[0][1] < target:
        return None  # it would do with fewer tokens than were measured
    for (t0, m0), (t1, m1) in pairwise(known):
        if m0 >= target >= m1 and m0 > m1:
            return t0 * (t1 / t0) ** ((m0 - target) / (m0 - m1))
    return None


def tokens_saved(curves: Mapping, metric: str = "lpips_vgg") -> list[tuple[float, float]]:
    """The router's points: tokens, and the share of them saved against uniform at equal metric."""
    found = []
    for point in curves.get("router", ()):
        target = value(point, metric)
        needed = None if target is None else tokens_for(curves.get("uniform", ()), metric, target)
        if needed is not None:
            found.append((_tokens(point), 1.0 - _tokens(point) / needed))
    return sorted(found)


def headline(run: Results) -> Html:
    """The few numbers to take away."""
    rows = (run.final or {}).get("rows", [])
    final, twin = _row(rows, "final"), _row(rows, "uniform")
    saved = tokens_saved((run.curves or {}).get("curves", {}))
    book = (run.final or run.curves or {}).get("codebook")
    ranks = (run.curves or {}).get("percentiles")
    facts = []
    if saved:
        tokens, share = saved[(len(saved) - 1) // 2]
        note = f"router against uniform, at {tokens:.0f} tokens"
        facts.append(("Tokens saved at equal LPIPS", percent(share, 0), note))
    else:
        facts.append(("Tokens saved at equal LPIPS", DASH, "needs both quality-cost curves"))
    unknown = "needs the final tokenizer's evaluation"
    for name, label, digits, unit in (
        ("lpips_vgg", "LPIPS-VGG", 3, ""),
        ("psnr", "PSNR", 2, " dB"),
        ("tokens", "Tokens of a clip, mean", 0, ""),
    ):
        other = value(twin, name)
        note = f"uniform twin: {fixed(other, digits, unit)}" if other is not None else ""
        note = note if final else unknown
        facts.append((label, fixed(value(final, name), digits, unit), note))
    note = "needs an evaluation"
    if book:
        size, perplexity = value(book, "size"), value(book, "perplexity")
        note = f"of {fixed(size)} codes, by held-out windows; perplexity {fixed(perplexity)}"
        train = value((run.final or {}).get("codebook_train"), "usage")
        note += f"; by training windows {percent(train, 0)}" if train is not None else ""
    facts.append(("Codebook used", percent(value(book, "usage"), 0), note))
    if ranks:
        note = f"best fixed assignment: {percent(value(ranks, 'best_fixed'))}"
        facts.append(("Router's percentile", percent(value(ranks, "router")), note))
    return cards(facts, "first")


def curves_section(run: Results) -> Html:
    """Quality against tokens, the budgets, the percentiles, and every point in a table."""
    if run.curves is None:
        return missing("the quality-cost curves", "evaluate-curves/curves.json")
    curves = run.curves.get("curves", {})
    more = sorted(set(curves) - {series[0] for series in SERIES})
    more = [(key, key.replace("_", " "), 3 + i, "dashed") for i, key in enumerate(more)]
    shown = [(*series, curves[series[0]]) for series in (*SERIES, *more) if curves.get(series[0])]
    # Means of LPIPS bear comparison over other clips, FVD does not over another number of them.
    groups = sorted({value(p, "clips") or 0 for *_, ps in shown for p in ps}, reverse=True)
    charts = [_cost_chart(shown, "lpips_vgg", "LPIPS-VGG", 4)]
    for count in groups:
        of_count = [(*s, [p for p in ps if (value(p, "clips") or 0) == count]) for *s, ps in shown]
        label = f"rFVD of {count:.0f} clips" if count else "rFVD"
        charts.append(_cost_chart(of_count, "rfvd", label, 1))
    absent = (s[1] for s in SERIES if not curves.get(s[0]))
    points = [(f"{s[1]}, {p.get('name', '')}", p) for *s, ps in shown for p in ps]
    ours = [_nearest(run.curves, name, curves.get(name)) for name in ("uniform", "router")]
    return join(
        tag("p", "Lower is better; the further left, the cheaper.", class_="lead"),
        legend([(_with_clips(s[1], ps), *s[2:]) for *s, ps in shown]),
        tag("div", charts, class_="charts"),
        (missing(f"points of {name}", "evaluate-curves/curves.json: curves") for name in absent),
        tag("p", RFVD_CARE, class_="note"),
        tag(
            "div",
            _budgets(run.curves.get("budgets"), curves, SERIES[:2], "all clips"),
            _budgets(
                run.curves.get("budgets_where_searched"),
                run.curves.get("curves_where_searched", {}),
                SERIES,
                "the clips that were searched",
            ),
            _percentiles(run.curves.get("percentiles")),
            _baselines(run.curves, [row for row in ours if row], "Proxy tokenizer and baselines"),
            class_="columns",
        ),
        tag("details", tag("summary", f"All {len(points)} points"), point_table(points)),
    )


def final_section(run: Results) -> Html:
    """The final tokenizer, its uniform twin and the baselines."""
    if run.final is None:
        return missing("the final tokenizers' numbers", "evaluate-final/final.json")
    named = [(str(row.get("name", "")), row) for row in run.final.get("rows", [])]
    return join(
        point_table(named, "Held-out clips"),
        _baselines(run.final, named, "Final tokenizers and baselines"),
    )


def point_table(points: Sequence[tuple[str, Mapping]], caption: str | None = None) -> Html:
    """Every metric of named points; columns without a value are left out."""
    head = ("", "tokens", "a block", "LPIPS-VGG", "LPIPS-Alex", "PSNR, dB", "SSIM", "rFVD", "clips")
    rows = []
    for name, p in points:
        blocks = " · ".join(f"{count:.0f}" for count in p.get("tokens_per_block", ()))
        rows.append(
            (
                name,
                fixed(value(p, "tokens"), 1),
                blocks,
                fixed(value(p, "lpips_vgg"), 4),
                fixed(value(p, "lpips_alex"), 4),
                fixed(value(p, "psnr"), 2),
                fixed(value(p, "ssim"), 3),
                _interval(p, "rfvd"),
                fixed(value(p, "clips")),
            )
        )
    return table(head, rows, caption)


def _interval(row: Mapping, name: str) -> Html | str:
    """A number with its bootstrap interval, if it has one."""
    low, high = value(row, f"{name}_low"), value(row, f"{name}_high")
    number = fixed(value(row, name), 1)
    if low is None or high is None:
        return number
    return tag("span", number, tag("small", f" [{fixed(low)}, {fixed(high)}]"))


def _row(rows: Sequence[Mapping], word: str) -> Mapping | None:
    """The first row whose name begins with the word."""
    return next((row for row in rows if str(row.get("name", "")).startswith(word)), None)


def _with_clips(name: str, points: Sequence[Mapping]) -> str:
    counts = sorted({int(p["clips"]) for p in points if value(p, "clips") is not None})
    return f"{name} · {' or '.join(map(str, counts))} clips" if counts else name


def _cost_chart(series, metric: str, label: str, digits: int) -> Html:
    lines = []
    for _, name, color, style, found in series:
        points = sorted((p for p in found if value(p, metric) is not None), key=_tokens)
        if not points:
            continue
        number = [value(p, metric) for p in points]
        bounds = [[_or_nan(p, f"{metric}_{end}") for p in points] for end in ("low", "high")]
        tips = [
            f"{name}, {p.get('name', '')}: {fixed(y, digits)} at {_tokens(p):.1f} tokens"
            for p, y in zip(points, number, strict=True)
        ]
        lines.append(Line(name, [*map(_tokens, points)], number, color, style, *bounds, tips))
    if not lines:
        return tag("p", f"No values of {label}.", class_="missing")
    return chart(lines, label, x_label="mean tokens of a clip", log2_x=True, size=(520, 330))


def _tokens(point: Mapping) -> float:
    return float(point["tokens"])


def _or_nan(row: Mapping, name: str) -> float:
    number = value(row, name)
    return math.nan if number is None else number


def _budgets(budgets: Sequence[Mapping] | None, curves: Mapping, series, which: str) -> Html:
    if not budgets:
        return missing(f"the budgets of {which}", "evaluate-curves/curves.json")
    rows = []
    for budget in budgets:
        target, gain = value(budget, "router"), value(budget, "router_gain")
        needed = (
            None if target is None else tokens_for(curves.get("uniform", ()), "lpips_vgg", target)
        )
        spent = value(budget, "router_tokens") or _tokens(budget)
        less = tag("small", f" with {spent:.0f}") if spent < _tokens(budget) else ""
        saved = None if needed is None else 1.0 - spent / needed
        rows.append(
            (
                f"{budget['tokens']:.0f}",
                *(
                    tag("span", fixed(value(budget, key), 4), less if key == "router" else "")
                    for key, *_ in series
                ),
                _signed(gain, "lower", "higher"),
                _signed(saved, "fewer", "more"),
            )
        )
    names = {"max_proxy_reward": "search", "max_proxy_reward_vgg": "search by VGG"}
    head = ("tokens", *(names.get(key, key) for key, *_ in series))
    head += ("router's LPIPS", "router's tokens")
    return table(head, rows, f"{LPIPS_BUDGETS} Of {which}.")


def _signed(share: Number | None, better: str, worse: str) -> Html | str:
    if share is None:
        return DASH
    word, class_ = (better, "good") if share >= 0 else (worse, "bad")
    return tag("span", f"{percent(abs(share))} {word}", class_=class_)


def _percentiles(ranks: Mapping | None) -> Html:
    if not ranks:
        return missing("the percentiles", "evaluate-curves/curves.json: percentiles")
    lengths = " · ".join(str(n) for n in ranks.get("best_fixed_lengths", ()))
    rules = (
        ("router", "router"),
        (
            "best_fixed",
            f"best single assignment, {lengths}" if lengths else "best single assignment",
        ),
        ("best_uniform_per_clip", "best uniform level of each clip"),
    )
    rows = []
    for key, name in rules:
        share = value(ranks, key)
        if share is not None:
            rows.append((name, percent(share), bar(share, f"c{int(key == 'router')}")))
    caption = (
        "Proxy-reward percentile: 0 % takes the worst assignment of every clip, 100 % the best "
        f"({fixed(value(ranks, 'clips'))} clips). The router's first choice is the best assignment "
        f"for {percent(value(ranks, 'top1'))} of them, among its first five for "
        f"{percent(value(ranks, 'top5'))}."
    )
    return table(("", "percentile", ""), rows, caption)


def _baselines(content: Mapping, rows: Sequence[tuple[str, Mapping]], caption: str) -> Html:
    """Our named rows and the baselines, with the bits that each of them costs."""
    baselines = content.get("baselines")
    if not baselines:
        return missing("the baselines", f"{caption.lower()}: baselines")
    code = _code_bits(content)
    ours = [(tag("b", name), code and code * _tokens(row), row) for name, row in rows]
    theirs = [(str(row.get("name", "")), value(row, "bits_per_clip"), row) for row in baselines]
    body = [
        (name, fixed(bits), fixed(value(row, "psnr"), 2), fixed(value(row, "lpips_vgg"), 4))
        for name, bits, row in (*ours, *theirs)
    ]
    return table(("", "bits a clip", "PSNR, dB", "LPIPS-VGG"), body, caption)


def _nearest(content: Mapping, name: str, points: Sequence[Mapping] | None):
    """The named point of a curve whose bits are nearest to those of the cheapest baseline."""
    bits = [value(row, "bits_per_clip") for row in content.get("baselines") or ()]
    code, bits = _code_bits(content), [b for b in bits if b]
    if not points or not code or not bits:
        return None
    point = min(points, key=lambda p: abs(math.log(code * _tokens(p) / min(bits))))
    return f"{name}, {point.get('name', '')}", point


def _code_bits(content: Mapping) -> float | None:
    size = value(content.get("codebook"), "size")
    return math.log2(size) if size else None
