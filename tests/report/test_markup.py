"""Escaping, and numbers as text."""

import pytest

from evatok_jax.report.markup import DASH, Html, duration, fixed, percent, table, tag, value


def test_only_markup_stays_markup():
    assert tag("p", "<b>", Html("<i></i>"), ["&", None]) == "<p>&lt;b&gt;<i></i>&amp;</p>"
    assert tag("a", href='"><', class_="x", title=None) == '<a href="&quot;&gt;&lt;" class="x"></a>'
    assert tag("img", aria_label="a") == '<img aria-label="a">'


@pytest.mark.parametrize("found", [None, float("nan"), float("inf"), "3", True, [1]])
def test_what_is_no_number_is_absent(found):
    assert value({"a": found}, "a") is None
    assert value(None, "a") is None
    assert fixed(value({"a": found}, "a")) == DASH


def test_numbers_read_well():
    assert fixed(1234.56, 1) == "1,234.6"
    assert fixed(-0.5, 1, " dB") == "\u22120.5 dB"
    assert percent(0.0512) == "5.1 %"
    assert [duration(s) for s in (8.43, 185, 3725)] == ["8.4 s", "3 min 05 s", "1 h 02 min"]


def test_empty_columns_are_left_out():
    found = table(("", "a", "b"), [("x", DASH, 1), ("y", DASH, DASH)])
    assert ">a<" not in found and ">b<" in found
