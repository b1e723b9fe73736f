"""The API and the file commands, on a tokenizer with random weights."""

import json

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import G, save_tokenizer
from videos import encode

import evatok_jax
from evatok_jax import cli
from evatok_jax.files import encode_file
from evatok_jax.models.build import build_tokenizer, describe_geometry
from evatok_jax.storage.export import load_export, save_export
from evatok_jax.tokens import Tokens


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """An export of a tokenizer with a router, of random weights."""
    return save_tokenizer(tmp_path_factory.mktemp("model") / "export")


@pytest.fixture(scope="module")
def tokenizer(export):
    return evatok_jax.load(export)


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(0).integers(0, 256, (3, *G.clip_shape)).astype(np.uint8)


def test_round_trip_under_given_lengths(tokenizer, clips):
    """Encoding keeps the lengths, ids are in the codebook, decoding has the clips' shape."""
    lengths = np.array([[16, 16, 16, 16], [32, 16, 4, 16], [4, 4, 4, 4]])
    tokens = tokenizer.encode(clips, lengths)
    real = tokens.slot >= 0
    np.testing.assert_array_equal(real.sum(axis=1), lengths.sum(axis=1))
    assert (tokens.codes[real] < 100).all() and (tokens.codes[~real] == 0).all()
    video = tokenizer.decode(tokens)
    assert video.shape == clips.shape and video.dtype == np.uint8
    alone = tokenizer.encode(clips[1:2], lengths[1:2])
    same = alone.codes[0] == tokens.codes[1, : alone.codes.shape[1]]
    assert same.mean() > 0.95  # ids near a tie may flip with the shape of the batch


def test_given_frames_are_coded_as_in_their_clip(tokenizer, clips):
    """Whatever follows them; a last frame fills up its block."""
    lengths = np.array([[32, 16, 4, 16]] * 3)
    want = tokenizer.encode(clips, lengths).codes[:, :48]
    np.testing.assert_array_equal(tokenizer.condition(clips[:, :8], (32, 16)), want)
    still = clips.copy()
    still[:, 5:8] = clips[:, 4:5]
    want = tokenizer.encode(still, lengths).codes[:, :48]
    np.testing.assert_array_equal(tokenizer.condition(clips[:, :5], (32, 16)), want)
    with pytest.raises(ValueError, match="do not fit 1 of 4 blocks of 4"):
        tokenizer.condition(clips[:, :5], (32,))


def test_first_lengths_bind_the_router(tokenizer, clips):
    router = tokenizer.router
    lengths = router.route(clips, first=(32, 4))
    assert (lengths[:, :2] == [32, 4]).all()
    own = (router.assignments[:, :2] == [32, 4]).all(axis=1)
    best = router.scores(clips)[:, own].argmax(axis=1)
    np.testing.assert_array_equal(lengths, router.assignments[own][best])
    with pytest.raises(ValueError, match=r"no assignment has budget=20 and first=\(32,\)"):
        router.route(clips, budget=20, first=(32,))


def test_budget_bounds_the_router(tokenizer, clips):
    """The router's choice within a budget is its best one that fits."""
    for budget in (16, 60, 128):
        assert (tokenizer.route(clips, budget).sum(axis=1) <= budget).all()
    np.testing.assert_array_equal(tokenizer.route(clips, 10_000), tokenizer.route(clips))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, c: t.encode(c.astype(np.float32) / 255), "must be uint8"),
        (lambda t, c: t.encode(c[:, :8]), r"clips must be \(16, 32, 32, 3\)"),
        (lambda t, c: t.encode(c[0]), r"\[clips, frames, height, width, 3\]"),
        (lambda t, c: t.encode(c, np.full((3, 4), 9)), "is 9: a block has one of 4, 16, 32"),
        (lambda t, c: t.encode(c, np.full((2, 4), 16)), "2 rows of lengths for 3 clips"),
        (lambda t, c: t.route(c, 15), "at least 16"),
        (lambda t, c: t.cut(c[0, :, :16]), r"\[frames, 32, 32, 3\]"),
        (
            lambda t, c: t.decode(
                Tokens(np.full((1, 16), 100), np.zeros((1, 16), int), np.full((1, 4), 4))
            ),
            "id 100 is outside the codebook of 100",
        ),
    ],
)
def test_bad_input_is_named(tokenizer, clips, call, message):
    with pytest.raises(ValueError, match=message):
        call(tokenizer, clips)


def test_cut_fills_the_last_clip(tokenizer, clips):
    """A video of 21 frames is two clips, the second filled by frame 20."""
    video = clips.reshape(-1, 32, 32, 3)[:21]
    cut = tokenizer.cut(video)
    np.testing.assert_array_equal(cut.reshape(-1, 32, 32, 3)[:21], video)
    assert (cut[1, 5:] == video[20]).all()


def test_few_batch_sizes_are_compiled(tokenizer, clips):
    """Up to a batch, clips are filled up to a power of two, above it to whole batches."""
    sizes = set()
    for count in range(1, 40):
        lengths = np.full((count, 4), 4)
        sizes |= {(len(rows), size) for rows, size in tokenizer._parts(lengths)}
    assert sizes == {(n, 16) for n in (1, 2, 4, 8, 16)}
    lengths = np.full((3, 4), 32)
    tokens = tokenizer.encode(clips, lengths)
    assert tokens.codes.shape == (3, 128) and tokenizer.decode(tokens).shape == clips.shape


def test_a_tokenizer_has_one_name_in_every_company(export, tmp_path, tokenizer):
    """Alone, and beside a router or a generator."""
    found = load_export(export)
    for kind, names in (("generator", ("router", "tokenizer")), ("tokenizer", ("tokenizer",))):
        config, params = ({n: tree[n] for n in names} for tree in (found.config, found.params))
        save_export(tmp_path / kind, kind, config, params)
        other = evatok_jax.api.Tokenizer(load_export(tmp_path / kind))
        assert other.digest == tokenizer.digest
        if other.router:
            assert other.router.digest == tokenizer.router.digest != tokenizer.digest
    assert evatok_jax.load(tmp_path / "tokenizer").digest == load_export(tmp_path / kind).digest


def write_video(path, sound=False):
    """21 frames of 48 x 36 at 30 a second."""
    grey = 10 * np.arange(21, dtype=np.uint8)[:, None, None, None]
    return encode(path, np.tile(grey, (1, 36, 48, 3)), rate=30, audio=sound)


def test_file_to_evt_and_back(export, tmp_path, capsys):
    """`evatok encode`, `info` and `decode`: length, size, rate and time stamps come back."""
    source, evt, back = (tmp_path / name for name in ("in.mp4", "out.evt", "back.mp4"))
    write_video(source)
    cli.main(["encode", str(source), str(evt), f"--model={export}", "--budget=64"])
    assert not capsys.readouterr().err
    cli.main(["info", str(evt)])
    shown = capsys.readouterr().out
    rows = json.loads(shown)["tokens_per_block"]
    assert len(rows) == 2 and all(f"{row}" in shown for row in rows)  # a line for each clip
    cli.main(["decode", str(evt), str(back), f"--model={export}"])
    with av.open(str(back)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert (stream.width, stream.height, len(frames)) == (48, 36, 21)
        times = [float(f.pts * stream.time_base) for f in frames]
    np.testing.assert_allclose(times, np.arange(21) / 30, atol=1e-4)


def test_lost_sound_is_told_on_both_ways(export, tmp_path, capsys):
    source, evt, back = (tmp_path / name for name in ("in.mp4", "out.evt", "back.mp4"))
    write_video(source, sound=True)
    for command in (["encode", str(source), str(evt)], ["decode", str(evt), str(back)]):
        cli.main([*command, f"--model={export}"])
        told = capsys.readouterr()
        assert told.err == f"evatok {command[0]}: audio is not kept\n"
        assert json.loads(told.out)["notes"] == ["audio is not kept"]


def test_models_without_a_router_encode(export, tmp_path, capsys):
    """By the router of another export, or by one level for all blocks; otherwise both are named."""
    source, found = write_video(tmp_path / "in.mp4"), load_export(export)
    alone = {"tokenizer": found.config["tokenizer"]}, {"tokenizer": found.params["tokenizer"]}
    save_export(tmp_path / "proxy" / "export", "tokenizer", *alone)
    routers = {"router": found.config["router"]}, {"router": found.params["router"]}
    save_export(tmp_path / "router" / "export", "router", *routers)

    def encoded(model, *options):
        capsys.readouterr()
        cli.main(["encode", str(source), str(tmp_path / "o.evt"), f"--model={model}", *options])
        return json.loads(capsys.readouterr().out)["tokens_per_block"]

    proxy = tmp_path / "proxy"
    assert encoded(proxy, "--level=32") == [[32] * 4] * 2
    assert encoded(proxy, f"--router={tmp_path / 'router'}", "--budget=64") == encoded(
        export, "--budget=64"
    )
    for options, words in (
        ((), ("--router=EXPORT", "--level=N, one of 4, 16, 32")),
        (("--level=9",), ("level 9", "4, 16, 32")),
        (("--level=16", "--budget=64"), ("--budget",)),
    ):
        with pytest.raises(SystemExit):
            encoded(proxy, *options)
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and all(word in error for word in words)


def test_errors_are_one_line_and_exit_code_2(tmp_path, capsys):
    """A file that is no video, or a folder that is no model: said plainly."""
    (tmp_path / "bad.evt").write_bytes(b"nothing")
    with pytest.raises(SystemExit) as ended:
        cli.main(["info", str(tmp_path / "bad.evt")])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("evatok info: ") and error.count("\n") == 1


def test_a_failed_download_is_one_line(capsys, monkeypatch):
    """Of pip's many lines its last error is kept."""
    words = "pip could not download x (exit 1); it said:\nWARNING: a\nERROR: b\nERROR: c\nCheck."

    def fetch(names):
        raise RuntimeError(words)

    monkeypatch.setattr("evatok_jax.assets.fetch", fetch)
    with pytest.raises(SystemExit) as ended:
        cli.main(["assets"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error == "evatok assets: pip could not download x (exit 1); it said: ERROR: c. Check.\n"


def test_info_of_a_generator_is_of_its_tokenizers_grammar(export, capsys):
    """Without a tokenizer it is of the paper's."""
    cli.main(["info", "--config=configs/generator.py"])
    info = json.loads(capsys.readouterr().out)
    assert info["assignments"] == 625 and 99.1e6 < info["parameters"]["generator"] < 99.3e6
    cli.main(["info", f"--config=configs/generator.py:tokenizer={export},size=tiny,classes=2"])
    info = json.loads(capsys.readouterr().out)
    assert info["levels"] == list(G.levels) and info["assignments"] == 81
    assert info["parameters"]["generator"] > 0


def test_info_of_a_config(capsys):
    """Parameters by group and part, levels and assignments, as JSON."""
    cli.main(["info", "--config=configs/proxy.py"])
    info = json.loads(capsys.readouterr().out)
    assert info["levels"] == [32, 64, 128, 256, 512] and info["assignments"] == 625
    assert info["parameters"]["tokenizer"] == sum(info["parts"]["tokenizer"].values())


def test_continuous_latents_go_there_and_back(clips, tmp_path):
    """A KL bottleneck's tokens are vectors; what needs ids says so."""
    description = {"geometry": describe_geometry("nano"), "size": "tiny", "quantizer": "kl"}
    model = build_tokenizer(description)
    lengths = np.array([[16, 4, 4, 4]] * 3)
    params = jax.jit(model.init, static_argnums=3)(
        jax.random.key(0), jnp.zeros((1, *G.clip_shape)), jnp.full((1, 4), 4), 16
    )["params"]
    save_export(tmp_path / "kl", "tokenizer", {"tokenizer": description}, {"tokenizer": params})
    tokenizer = evatok_jax.load(tmp_path / "kl")
    tokens = tokenizer.encode(clips, lengths)
    assert tokens.codes.shape == (3, 28, 8) and tokens.codes.dtype == np.float32
    assert tokenizer.decode(tokens).shape == clips.shape
    with pytest.raises(ValueError, match=r"codes must be \[3 clips, tokens, 8\]"):
        tokenizer.decode(Tokens(np.zeros((3, 28), np.int32), tokens.slot, lengths))
    with pytest.raises(ValueError, match="latents must be finite"):
        tokenizer.decode(Tokens(tokens.codes + np.nan, tokens.slot, lengths))
    with pytest.raises(ValueError, match=r"an \.evt file holds ids"):
        encode_file(tokenizer, tmp_path / "any.mp4", tmp_path / "any.evt", level=4)
