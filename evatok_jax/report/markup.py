"""HTML from values: whatever is not markup already is escaped, in one place.

`tag("p", text, class_="note")` escapes `text` unless it is `Html`, so that no name out of a file
becomes markup because somebody forgot it.
"""

import html
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

DASH, MINUS = "\u2013", "\u2212"
Number = float | int
_VOID = {"img", "link", "meta", "source"}
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Html(str):
    """Text that is markup already."""


def escape(value: Any) -> Html:
    """The value as markup: `Html` stays, iterables are joined, None vanishes, text is escaped."""
    if value is None:
        return Html("")
    if isinstance(value, Html):
        return value
    if isinstance(value, Iterable) and not isinstance(value, str):
        return Html("".join(map(escape, value)))
    return Html(html.escape(str(value)))


def join(*parts: Any) -> Html:
    """The parts one after another, as markup."""
    return escape(parts)


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element: `class_` is the attribute class, `aria_label` is aria-label, None is left out."""
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            words.append(f'{key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"')
    start = f"<{' '.join(words)}>"
    return Html(start if name in _VOID else f"{start}{escape(children)}</{name}>")


def value(row: Mapping | None, name: str) -> float | None:
    """The finite number of that name, or None where it is absent, infinite or no number."""
    found = (row or {}).get(name)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return float(found)


def fixed(number: Number | None, digits: int = 0, unit: str = "") -> str:
    """The number with that many decimals and its unit; a dash where it is absent."""
    return DASH if number is None else f"{number:,.{digits}f}{unit}".replace("-", MINUS)


def percent(share: Number | None, digits: int = 1) -> str:
    """A share in 0..1 as per cent."""
    return fixed(None if share is None else 100.0 * share, digits, " %")


def duration(seconds: Number | None) -> str:
    """Seconds as people say them: 8.4 s, 3 min 05 s, 1 h 02 min."""
    if seconds is None or seconds < 60:
        return fixed(seconds, 1, " s")
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def table(head: Iterable, rows: Iterable[Iterable], caption: Any = None) -> Html:
    """A table that scrolls sideways by itself; columns that are empty in every row are left out.

    The first column names its row, the others hold numbers.
    """
    head, rows = list(head), [list(row) for row in rows]
    kept = [i for i in range(len(head)) if i == 0 or any(row[i] not in (DASH, "") for row in rows)]
    body = (
        tag("tr", tag("th", row[0], scope="row"), (tag("td", row[i]) for i in kept[1:]))
        for row in rows
    )
    content = tag(
        "table",
        tag("thead", tag("tr", (tag("th", head[i], scope="col") for i in kept))),
        tag("tbody", body),
    )
    # Outside of what scrolls, so that the caption keeps to the screen's width.
    title = tag("figcaption", caption) if caption else None
    return tag("figure", title, tag("div", content, class_="scroll", tabindex=0), class_="table")


def cards(facts: Iterable[tuple[str, Any, Any]], class_: str = "") -> Html:
    """Numbers to look at first: (label, number, note) each."""
    items = (
        tag("div", tag("dt", label), tag("dd", number, class_="number"), tag("dd", note))
        for label, number, note in facts
    )
    return tag("dl", items, class_=f"cards {class_}".strip())


def bar(share: Number, class_: str = "") -> Html:
    """A horizontal bar of that share of its room, 0..1."""
    width = 100.0 * min(max(share, 0.0), 1.0)
    return tag("span", tag("i", style=f"width:{width:.1f}%"), class_=f"bar {class_}".strip())


def missing(what: str, where: str) -> Html:
    """The line that stands where a part's input is not there."""
    return tag("p", f"Not there yet: {what} (", tag("code", where), ").", class_="missing")


def document(title: str, top: Any, sections: Iterable[tuple[str, str, Any]]) -> str:
    """A whole page that needs no other file: what stands on top, then (id, title, content) each."""
    sections = list(sections)
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(style)),
    )
    body = tag(
        "body",
        tag("header", top, class_="top"),
        tag("nav", (tag("a", name, href=f"#{key}") for key, name, _ in sections)),
        tag("main", (tag("section", tag("h2", n), content, id=k) for k, n, content in sections)),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, body, lang="en") + "\n"
