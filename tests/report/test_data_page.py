"""The page of a data set: whole in itself, every number from the data, nothing unescaped."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from videos import encode

from evatok_jax import cli
from evatok_jax.data.builders.build import SKIPPED
from evatok_jax.data.records import read_manifest
from evatok_jax.report import data_page
from evatok_jax.report.markup import _VOID

CLASSES = ("<b>oats", "rye & co")


class Elements(HTMLParser):
    """Names of elements and attributes of links; raises where one is not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.names, self.text, self.links = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "srcset", "href")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten videos of two classes, nine of them for training, and an eleventh that is none."""
    home = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for number in range(10):
        folder = home / "videos" / CLASSES[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        frames = rng.integers(0, 256, (16 + number, 32, 48, 3)).astype(np.uint8)
        encode(folder / f"{number}.mp4", frames)
    (folder / "z.mp4").write_bytes(b"no video")
    source, out = str(home / "videos"), str(home / "set")
    cli.main(["data", "build", "folder", "--source", source, "--out", out, "--max-bad", "0.5"])
    return home / "set"


@pytest.fixture(scope="module")
def page(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "page.html"
    cli.main(["data", "show", str(data), "--out", str(out)])
    return Elements(out.read_text(encoding="utf-8"))


def test_the_page_needs_nothing_else(page):
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not {"script", "b oats", "oats"} & set(page.names)
    assert page.names.count("img") == 10


def test_numbers_are_those_of_the_data_set(page, data):
    manifest, text = read_manifest(data), "\n".join(page.text)
    assert sum(manifest["splits"].values()) == 10 and sum(manifest["skipped"].values()) == 1
    (row,) = map(json.loads, (data / SKIPPED).read_text(encoding="utf-8").splitlines())
    for said in (*CLASSES, manifest["identity"], row["key"], row["reason"], "48 x 32"):
        assert said in text
    stacks = "\n".join(re.findall(r"^[\d.e+]+ to [\d.e+]+: .*$", text, re.MULTILINE))
    # Three histograms, in each of which each video stands once.
    assert sum(map(int, re.findall(r"(?:train|test) (\d+)", stacks))) == 30


def test_a_clip_that_cannot_be_read_says_so(data, tmp_path, monkeypatch):
    def broken(self, record, start, flip=False):
        raise ValueError(f"record {record} is <broken>")

    monkeypatch.setattr(data_page.Clips, "read", broken)
    data_page.write_data_page(data, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "record 0 is &lt;broken&gt;" in text and "<img" not in text


def test_of_many_left_out_the_first_are_named(data, tmp_path, monkeypatch):
    manifest = read_manifest(data) | {"skipped": {"cut off": 249, "<odd>": 1}, "listed": 260}
    monkeypatch.setattr(data_page, "read_manifest", lambda _: manifest)
    copy = shutil.copytree(data, tmp_path / "set")
    with (copy / SKIPPED).open("w", encoding="utf-8") as lines:
        for n in range(250):
            row = {"key": f"v{n}", "split": "train", "cause": "cut off", "reason": f"{n} of 300"}
            lines.write(json.dumps(row) + "\n")
    data_page.write_data_page(copy, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;odd&gt;" in text and "99.6 %" in text and "The first 100 of 250" in text
    assert ">v99<" in text and ">v100<" not in text


def test_no_data_set_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["data", "show", str(tmp_path), "--out", str(tmp_path / "page.html")])
    assert "no data set" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
