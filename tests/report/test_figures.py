"""Charts: axes, smoothing, and what they leave out."""

import math
import re

import numpy as np
import pytest

from evatok_jax.report.figures import Line, chart, histogram, smooth, thin, ticks


@pytest.mark.parametrize("low, high", [(0, 1), (0.31, 0.52), (-3, 8), (1e-5, 3e-5), (0, 60_000)])
def test_ticks_are_round_and_within(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 5
    assert low - 1e-9 <= found[0] and found[-1] <= high * (1 + 1e-9)
    step = found[1] - found[0]
    assert f"{step / 10 ** math.floor(math.log10(step) + 1e-9):.6f}"[0] in "125"


def test_smoothing_keeps_lines_and_means():
    line = np.arange(20.0)
    np.testing.assert_allclose(smooth(line, 5)[:-2], line[:-2])
    np.testing.assert_allclose(smooth(np.full(7, 3.0), 4), 3.0)
    np.testing.assert_array_equal(smooth(line, 1), line)


def test_thinning_keeps_the_ends():
    kept = thin(np.arange(1000.0), 50)
    assert len(kept) == 50 and kept[0] == 0 and kept[-1] == 999
    np.testing.assert_array_equal(thin(np.arange(3.0), 50), np.arange(3.0))


def test_powers_of_two_lie_evenly_on_the_log_axis():
    lines = [Line("a", [32, 64, 128], [3.0, 2.0, 1.0], tips=["x", "y", "z"])]
    svg = chart(lines, "LPIPS", x_label="tokens", log2_x=True)
    x = [float(at) for at in re.findall(r'<circle cx="([\d.]+)"[^>]*class="hit"', svg)]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.11)
    assert [f">{n}</text>" in svg for n in (32, 64, 128)] == [True] * 3


def test_values_that_are_no_numbers_are_left_out():
    nan = math.nan
    lines = [Line("a", [1, 2, 3], [1.0, nan, 2.0], low=[0.5, nan, nan], high=[1.5, nan, nan])]
    svg = chart(lines, "loss")
    assert "nan" not in svg
    assert len(re.search(r'points="([^"]*)"', svg)[1].split()) == 2
    assert svg.count('class="interval') == 1


def test_a_single_point_and_a_constant_have_axes():
    for lines in ([Line("a", [5], [0.0])], [Line("a", [1, 2], [4.0, 4.0])]):
        assert "<polyline" in chart(lines, "loss", robust=True)


def test_titles_and_tips_are_escaped():
    svg = chart([Line("a", [1, 2], [1.0, 2.0], tips=["<b>", "&"])], "<i>", x_label="<u>")
    assert not re.search(r"<[biu]>", svg)


def test_histograms_count_every_value_once():
    rng = np.random.default_rng(0)
    few, many = rng.normal(5, 1, 40), np.append(rng.normal(6, 2, 300), 1000.0)
    svg = histogram([("few", few, 1), ("many", many, 2)], "<i>", x_label="<u>", bins=10)
    assert not re.search(r"<[iu]>", svg)
    for name, values in (("few", few), ("many", many)):
        assert sum(map(int, re.findall(rf"{name} (\d+)", svg))) == len(values)
    # Heights are counts, pieces stand upon each other, and none leaves the axes.
    rows = re.findall(r'y="([\d.]+)" width="[\d.]+" height="([\d.]+)" class="piece c(\d)"', svg)
    heights = {c: sum(float(h) for _, h, own in rows if own == c) for c in "12"}
    assert heights["2"] / heights["1"] == pytest.approx(301 / 40, rel=0.02)
    assert max(float(y) + float(h) for y, h, _ in rows) <= 180 - 44 + 0.1
    assert min(float(y) for y, _, _ in rows) >= 12
    xs = [float(x) for x in re.findall(r'<rect x="([\d.]+)"', svg)]
    assert max(xs) < 280  # the far one is counted in the last bar


def test_a_histogram_of_one_value_has_axes():
    assert "<rect" in histogram([("all", [3, 3, 3], 1)], "frames")
