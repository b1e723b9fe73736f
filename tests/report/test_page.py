"""The whole page, of a small workdir made here: its structure, not its looks."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from evatok_jax.report import write_report
from evatok_jax.report.page import SECTIONS

EVIL = '<script>alert("x")</script>&'
VOID = {"img", "link", "meta", "source"}


class Page(HTMLParser):
    """Checks that elements nest, and collects what the tests ask for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.images, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag == "img":
            self.images.append(attrs["src"])
        for name in ("src", "srcset", "href"):
            assert attrs.get(name, "#").startswith(("#", "data:"))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def job(workdir, name, rows, done=True, **config):
    folder = workdir / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"name": name, "run": {"steps": 90}, **config}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if done:
        (folder / "done.json").write_text('{"step": 90}')


def point(name, tokens, lpips, **more):
    return {"name": name, "clips": 6, "tokens": tokens, "lpips_vgg": lpips, "psnr": 20.0, **more}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def workdir(tmp_path):
    """All that evaluation writes, with hostile names in it."""
    rng, w = np.random.default_rng(0), tmp_path / "run"
    tokenizer = {"model": {"geometry": "nano", "size": "tiny"}, "data": {"path": f"/a/{EVIL}"}}
    steps = range(10, 91, 10)
    job(w, "proxy", [{"step": s, "loss/tokenizer": 1 / s, "psnr": 9.0} for s in steps], **tokenizer)
    job(w, "router-1.2", [{"step": s, "loss/router": 2.0, "tokens": s} for s in steps])
    job(w, "generator", [{"step": s, "loss/generator": float("nan")} for s in steps], done=False)
    protocol = {"data": EVIL, "seed": 0, "networks": {"i3d": "ab" * 32}, "notes": ["plumbing only"]}
    band = {"rfvd": 700.0, "rfvd_low": 650.0, "rfvd_high": 790.0}
    curves = {
        "uniform": [point("8 a block", 32, 0.5, **band), point("16 a block", 64, 0.4, **band)],
        "router": [point("w_q 1.2", 32, 0.45, **band)],
        "max_proxy_reward": [point("w_q 1.2", 30, 0.44, clips=2)],
    }
    budgets = [{"tokens": 32, "uniform": 0.5, "router": 0.45, "router_gain": 0.1}]
    budgets += [{"tokens": 64, "uniform": 0.5, "router": 0.4, "router_tokens": 41.2}]
    write(
        w / "evaluate-curves/curves.json",
        {
            "protocol": protocol,
            "curves": curves,
            "budgets": budgets,
            "curves_where_searched": curves,
            "budgets_where_searched": budgets,
            "percentiles": {"router": 0.9, "best_fixed": 0.8, "best_uniform_per_clip": 0.85},
            "codebook": {"usage": 0.5, "perplexity": 20.0, "size": 64},
            "baselines": [{"name": "mean frame", "bits_per_clip": 200, "psnr": 15.0}],
        },
    )
    final = {
        "protocol": protocol,
        "rows": [point("final, router", 40.0, 0.3), point("uniform twin", 32.0, 0.35)],
        "codebook": {"usage": 0.5, "perplexity": 20.0, "size": 64},
        "baselines": [{"name": "mean frame", "bits_per_clip": 200, "psnr": 15.0}],
    }
    write(w / "evaluate-final/final.json", final)
    clips = rng.integers(0, 256, (6, 4, 16, 24, 3), dtype=np.uint8)
    lengths = np.sort(rng.integers(1, 5, (6, 2)).astype(np.int32) * 8, axis=0)
    keys = np.array([EVIL] + [f"clip{i}" for i in range(1, 6)])
    np.savez(
        w / "evaluate-final/strips.npz",
        original=clips,
        reconstruction=255 - clips,
        lengths=lengths,
        lpips=np.full(6, 0.3, np.float32),
        key=keys,
        window=np.zeros(6, int),
    )
    losses = {"loss": 2.0, "unigram_entropy": 3.0, "unigram_loss": 3.5}
    found = {
        "train": losses,
        "test": losses,
        "protocol": protocol,
        "samples": 6,
        "classes": [EVIL, "running"],
    }
    write(w / "evaluate-generation/generation.json", found)
    labels = np.array([0, 0, 0, 1, 1, 1])
    np.savez(w / "evaluate-generation/samples.npz", video=clips, label=labels, lengths=lengths)
    write(w / "timing.json", [{"name": EVIL, "seconds": 185.0, "status": "done"}])
    return w


def test_page_is_whole_and_stands_alone(workdir):
    path = write_report(workdir)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert path == workdir / "report.html"
    assert not list(workdir.glob("*.tmp"))
    assert [key for key, _, _ in SECTIONS] == page.ids
    assert "script" not in page.tags
    assert not re.search(r"https?:|url\(|@import", text)
    assert "Not there yet" not in page.text
    assert path.stat().st_size < 1_000_000


def test_names_from_files_are_escaped(workdir):
    text = write_report(workdir).read_text(encoding="utf-8")
    assert "<script" not in text
    for place in ("protocols", "strips", "generated", "time"):
        section = re.search(rf'<section id="{place}">.*?(?=<section id=|</main>)', text, re.S)
        assert "&lt;script&gt;" in section[0]


def test_numbers_are_where_a_reader_looks(workdir):
    text = Page(write_report(workdir).read_text(encoding="utf-8")).text
    # Uniform reaches the router's 0.45 at 32 * sqrt(2) tokens.
    assert "Tokens saved at equal LPIPS 29 %" in text
    assert "10.0 % lower" in text
    assert "29.3 % fewer" in text
    assert "0.4000 with 41" in text
    assert "700.0 [650, 790]" in text
    assert "3 min 05 s" in text
    assert "plumbing only" in text
    assert "generator step 90 of 90" in text
    assert "ab" * 32 in text


def test_fvd_of_other_clip_counts_is_not_drawn_together(workdir):
    path = workdir / "evaluate-curves/curves.json"
    content = json.loads(path.read_text())
    content["curves"]["max_proxy_reward"][0]["rfvd"] = 900.0
    write(path, content)
    text = Page(write_report(workdir).read_text(encoding="utf-8")).text
    assert "rFVD of 6 clips" in text
    assert "rFVD of 2 clips" in text


def test_both_ends_of_the_strips_are_shown_in_order(workdir):
    text = Page(write_report(workdir).read_text(encoding="utf-8")).text
    cheap, dear = text.index("Least expensive clips"), text.index("Most expensive clips")
    with np.load(workdir / "evaluate-final/strips.npz") as strips:
        totals = strips["lengths"].sum(axis=1)
    assert cheap < text.index(EVIL, cheap) < text.index("clip1") < dear
    assert dear < text.index("clip5") < text.index("clip3")
    assert f"{totals[0]} tokens" in text[cheap:dear]
    assert f"{totals[5]} tokens" in text[dear:]


def test_strips_are_the_clips_and_samples_move(workdir):
    page = Page(write_report(workdir).read_text(encoding="utf-8"))
    images = []
    for uri in page.images:
        kind, _, data = uri.partition(";base64,")
        assert kind == "data:image/webp"
        images.append(Image.open(io.BytesIO(base64.b64decode(data))))
    # Six clips, each a moving pair and two blocks, then six samples.
    assert [image.n_frames for image in images] == [4, 1, 1] * 6 + [4] * 6
    with np.load(workdir / "evaluate-final/strips.npz") as strips:
        block = np.asarray(images[1].convert("RGB"))
        np.testing.assert_array_equal(block[:16, 24:48], strips["original"][0, 1])
        np.testing.assert_array_equal(block[16:, :24], strips["reconstruction"][0, 0])


@pytest.mark.parametrize(
    "path",
    [
        "evaluate-curves/curves.json",
        "evaluate-final/final.json",
        "evaluate-final/strips.npz",
        "evaluate-generation/generation.json",
        "evaluate-generation/samples.npz",
        "timing.json",
    ],
)
def test_an_absent_part_is_named(workdir, path):
    (workdir / path).unlink()
    page = Page(write_report(workdir).read_text(encoding="utf-8"))
    assert f"( {path} )" in page.text
    assert [key for key, _, _ in SECTIONS] == page.ids


def test_empty_workdir_and_output_elsewhere(tmp_path):
    out = write_report(tmp_path, tmp_path / "pages/report.html")
    text = Page(out.read_text(encoding="utf-8")).text
    assert out == tmp_path / "pages/report.html"
    assert "No job has begun here yet" in text
    assert text.count("Not there yet") >= 9


def test_one_finished_job_alone_has_its_curves(workdir):
    text = Page(write_report(workdir / "proxy").read_text(encoding="utf-8")).text
    assert "proxy done" in text
    assert "PSNR, dB" in text


def test_bad_input_is_named(workdir, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_report(tmp_path / "nowhere")
    (workdir / "timing.json").write_text("{")
    with pytest.raises(ValueError, match=r"timing\.json is no JSON"):
        write_report(workdir)
    (workdir / "timing.json").write_text("{}")
    with pytest.raises(ValueError, match=r"timing\.json holds a dict, expected a list"):
        write_report(workdir)
    (workdir / "timing.json").unlink()
    samples = workdir / "evaluate-generation/samples.npz"
    np.savez(samples, video=np.zeros((1, 4, 8, 8, 3)), lengths=np.ones((1, 2), int))
    with pytest.raises(ValueError, match=r"samples\.npz: video is float64"):
        write_report(workdir)
    np.savez(samples, video=np.zeros((1, 4, 8, 8, 3), np.uint8), lengths=np.ones((1, 3), int))
    with pytest.raises(ValueError, match="do not cut"):
        write_report(workdir)
