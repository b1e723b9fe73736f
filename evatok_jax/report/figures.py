"""Line charts and histograms as inline SVG.

Written by hand rather than by a plotting library: colours and type then come from the page's style
sheet, so a chart follows the light or dark scheme, and a whole page of them stays small.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from evatok_jax.report.markup import MINUS, Html, Number, tag

Values = Sequence[Number] | np.ndarray
COLORS = 6  # as many as the style sheet has


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
      x, y: points; a y that is not finite is left out. `low`, `high`: intervals about y, if any.
      color: number of a colour of the style sheet, taken modulo `COLORS`.
      style: "solid", "dashed", or "faint" for the raw values behind a smoothed line.
      tips: what hovering over each point says; with them the points are marked.
    """

    name: str
    x: Values
    y: Values
    color: int = 0
    style: str = "solid"
    low: Values = ()
    high: Values = ()
    tips: Sequence[str] = ()


def smooth(values: Float[np.ndarray, " n"], width: int) -> Float[np.ndarray, " n"]:
    """The moving mean over about `width` values; the window shrinks at both ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    # At the start as far to the right as to the left, or the steep fall there would be blurred.
    reach = np.minimum(width // 2, index)
    first, last = index - reach, np.minimum(index + reach + 1, len(values))
    return (total[last] - total[first]) / (last - first)


def thin(values: Float[np.ndarray, " n"], points: int) -> Float[np.ndarray, " m"]:
    """At most `points` of the values, evenly spaced, both ends among them."""
    keep = np.linspace(0, len(values) - 1, min(points, len(values))).round().astype(int)
    return values[keep]


def ticks(low: Number, high: Number, most: int = 5) -> list[float]:
    """Round numbers within [low, high], at most `most`, 1, 2 or 5 times a power of ten apart."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power * factor for factor in (1, 2, 5, 10, 20)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [k * step for k in range(first, last + 1)]
    raise AssertionError("unreachable: 20 powers span the range")


def chart(
    lines: Sequence[Line],
    title: str,
    *,
    x_label: str = "",
    log2_x: bool = False,
    size: tuple[int, int] = (280, 180),
    reference: tuple[str, Number] | None = None,
    robust: bool = False,
) -> Html:
    """A figure with a caption above its axes.

    Args:
      log2_x: a logarithmic x axis with a tick at each power of two.
      size: width and height in units that are about a pixel.
      reference: name and height of a horizontal line.
      robust: leaves 3 % of the values at each end out of the y axis's range: losses begin high.
    """
    frame = _Frame(lines, size, x_label, log2_x, reference, robust)
    svg = tag(
        "svg",
        frame.grid(x_label),
        # A nested svg clips what leaves the axes without an id that would have to be unique.
        tag(
            "svg",
            (_draw(line, frame) for line in lines),
            x=0,
            y=frame.top - 6,
            width=size[0],
            height=frame.bottom - frame.top + 12,
            viewBox=f"0 {frame.top - 6} {size[0]} {frame.bottom - frame.top + 12}",
        ),
        frame.reference(reference),
        viewBox=f"0 0 {size[0]} {size[1]}",
        role="img",
        aria_label=title,
    )
    return tag("figure", tag("figcaption", title), svg, class_="chart")


def histogram(
    groups: Sequence[tuple[str, Values, int]],
    title: str,
    *,
    x_label: str = "",
    bins: int = 30,
    size: tuple[int, int] = (280, 180),
) -> Html:
    """Counts of finite values, groups (name, values, colour) stacked in the order given.

    The last bar counts all that lies beyond the 99th percentile.
    """
    values = np.concatenate([np.asarray(own, float) for _, own, _ in groups])
    low, high = float(values.min()), float(np.quantile(values, 0.99))
    edges = np.histogram_bin_edges(values, bins, (low, high))
    counts = [np.histogram(np.minimum(own, edges[-1]), edges)[0] for _, own, _ in groups]
    total = np.sum(counts, axis=0)
    outline = [Line("", edges, np.append(total, 0))]
    frame = _Frame(outline, size, x_label, False, None, False, from_zero=True)
    stacks = (
        _stack(
            frame,
            edges[i : i + 2],
            [(*group[::2], int(own[i])) for group, own in zip(groups, counts, strict=True)],
        )
        for i in np.flatnonzero(total)
    )
    svg = tag(
        "svg",
        frame.grid(x_label),
        stacks,
        viewBox=f"0 0 {size[0]} {size[1]}",
        role="img",
        aria_label=title,
    )
    return tag("figure", tag("figcaption", title), svg, class_="chart")


def legend(lines: Sequence[tuple[str, int, str]]) -> Html:
    """Names with a sample of their line: (name, colour, style)."""
    items = (
        tag("li", tag("i", class_=f"key c{color % COLORS} {style}"), name)
        for name, color, style in lines
    )
    return tag("ul", items, class_="legend")


class _Frame:
    """The axes: where a value lies in the drawing."""

    def __init__(self, lines, size, label, log2_x, reference, robust, from_zero=False):
        self.left, self.right, self.top = 46, size[0] - 12, 12
        self.bottom = size[1] - (44 if label else 24)
        self._log = log2_x
        xs = np.concatenate([np.asarray(line.x, float) for line in lines])
        ys = np.concatenate(
            [np.asarray(part, float) for li in lines for part in (li.y, li.low, li.high)]
        )
        ys = ys[np.isfinite(ys)]
        # An axis that starts at the very first loss would show nothing but it.
        ends = np.quantile(ys, [0.03, 0.97]) if robust else (ys.min(), ys.max())
        low, high = (float(end) for end in ends)
        if reference:
            low, high = min(low, reference[1]), max(high, reference[1])
        self._y = (0.0, 1.05 * high) if from_zero else _widen(low, high, 0.08)
        xs = np.log2(xs) if log2_x else xs
        self._x = _widen(float(xs.min()), float(xs.max()), 0.06 if log2_x else 0.0)

    def x(self, x: Number) -> float:
        low, high = self._x
        x = math.log2(x) if self._log else x
        return self.left + (x - low) / (high - low) * (self.right - self.left)

    def y(self, y: Number) -> float:
        low, high = self._y
        return self.bottom - (y - low) / (high - low) * (self.bottom - self.top)

    def grid(self, x_label: str):
        if self._log:
            low, high = math.ceil(self._x[0]), math.floor(self._x[1])
            x_ticks = [2.0**k for k in range(low, high + 1)] or [2.0 ** (sum(self._x) / 2)]
        else:
            x_ticks = ticks(*self._x, most=5)
        y_ticks = ticks(*self._y, most=6)
        for y in y_ticks:
            at = f"{self.y(y):.1f}"
            yield self._level(self.y(y), "grid")
            label = _short(y, y_ticks)
            yield tag("text", label, x=self.left - 6, y=at, class_="end", dy="0.35em")
        for x in x_ticks:
            at = f"{self.x(x):.1f}"
            yield tag("line", x1=at, x2=at, y1=self.bottom, y2=self.bottom + 4, class_="axis")
            yield tag("text", _short(x, x_ticks), x=at, y=self.bottom + 7, class_="mid", dy="0.8em")
        yield self._level(self.bottom, "axis")
        if x_label:
            middle = (self.left + self.right) / 2
            yield tag("text", x_label, x=middle, y=self.bottom + 40, class_="mid")

    def _level(self, y: Number, class_: str) -> Html:
        at = f"{y:.1f}"
        return tag("line", x1=self.left, x2=self.right, y1=at, y2=at, class_=class_)

    def reference(self, reference):
        if reference:
            name, at = reference[0], self.y(reference[1])
            yield self._level(at, "reference")
            yield tag("text", name, x=self.right, y=f"{at:.1f}", class_="end", dy="-0.4em")


def _draw(line: Line, frame: _Frame):
    """The line, its intervals, and its points if they have something to say."""
    keep = [i for i, y in enumerate(line.y) if math.isfinite(y)]
    points = [(frame.x(line.x[i]), frame.y(line.y[i])) for i in keep]
    color = f"c{line.color % COLORS}"
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    for i, (x, _) in zip(keep, points, strict=True):
        if i < len(line.low) and math.isfinite(line.low[i] + line.high[i]):
            low, high = frame.y(line.low[i]), frame.y(line.high[i])
            caps = "".join(f"M{x - 4:.1f} {y:.1f}h8" for y in (low, high))
            yield tag("path", d=f"M{x:.1f} {low:.1f}V{high:.1f}{caps}", class_=f"interval {color}")
    yield tag("polyline", points=path, class_=f"line {color} {line.style}")
    for i, (x, y) in zip(keep, points, strict=True):
        if i < len(line.tips):
            at = {"cx": f"{x:.1f}", "cy": f"{y:.1f}"}
            yield tag("circle", **at, r=4, class_=f"point {color} {line.style}")
            yield tag("circle", tag("title", line.tips[i]), **at, r=11, class_="hit")


def _stack(frame: _Frame, edges: np.ndarray, parts: list[tuple[str, int, int]]) -> Html:
    """The bar between two edges: (name, colour, count) upon each other, and what they say."""
    left, right = (frame.x(edge) for edge in edges.tolist())
    pieces, bottom = [], 0
    for _, color, count in parts:
        top = bottom + count
        pieces.append(
            tag(
                "rect",
                x=f"{left:.1f}",
                y=f"{frame.y(top):.1f}",
                width=f"{max(right - left - 1, 0.5):.1f}",
                height=f"{frame.y(bottom) - frame.y(top):.1f}",
                class_=f"piece c{color % COLORS}",
            )
        )
        bottom = top
    said = ", ".join(f"{name} {count:,}" for name, _, count in parts if count)
    return tag("g", tag("title", f"{edges[0]:.4g} to {edges[1]:.4g}: {said}"), pieces)


def _widen(low: Number, high: Number, share: Number) -> tuple[float, float]:
    """The range with a margin; a single value gets room about it."""
    room = (high - low) * share
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-6):
        room = 0.5 * abs(high) or 0.5
    return low - room, high + room


def _short(tick: Number, among: Sequence[Number]) -> str:
    """A tick with as many digits as tell it from its neighbours."""
    step = abs(among[1] - among[0]) if len(among) > 1 else abs(tick)
    if step >= 1 and max(map(abs, among)) >= 10_000:
        return f"{tick / 1000:g}k"
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step else 0
    return f"{tick:.{digits}f}".replace("-", MINUS)
