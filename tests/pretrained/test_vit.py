"""The frozen ViTs equal Hugging Face's on the same weights; so do resizing and file readers."""

import io
import json
import pickle
import re
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evatok_jax import assets
from evatok_jax.pretrained import convert, teachers
from evatok_jax.pretrained.convert import convert_vit
from evatok_jax.pretrained.preprocess import preprocess, resize
from evatok_jax.pretrained.torch_state import load_torch
from evatok_jax.pretrained.vit import (
    DINOV3_B,
    PICTURE,
    VIDEOMAE_B,
    VJEPA2_L,
    VitConfig,
    stored_as,
    vit_features,
    vit_spec,
)

FIXTURES = Path(__file__).parent.parent / "fixtures"
TINY = {
    "videomae": VitConfig(32, 3, 2, (4, 32, 32), rotary=False, eps=1e-12),
    "vjepa2": VitConfig(48, 3, 2, (4, 32, 32), rotary=True, eps=1e-6),
    "dinov3": VitConfig(32, 3, 2, (1, 48, 32), **PICTURE),
}
NAMES = {
    "videomae": convert.HF_VIDEOMAE,
    "vjepa2": convert.HF_VJEPA2,
    "dinov3": convert.HF_DINOV3,
}


def fixture(name):
    with np.load(FIXTURES / f"{name}.npz") as file:
        return dict(file)


def published(found):
    return {k.removeprefix("weights/"): v for k, v in found.items() if k.startswith("weights/")}


@pytest.mark.parametrize("name", TINY)
def test_against_hugging_face(name):
    """Every depth, to 2e-4; remat changes nothing."""
    found, config = fixture(name), TINY[name]
    params = convert_vit(published(found), config, NAMES[name])
    spec = vit_spec(config)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda s: s.shape, spec)
    taps = range(config.layers + 1 + config.rotary)
    got = jax.jit(lambda p, v: vit_features(p, v, config, taps))(params, found["video"])
    for tap, x in zip(taps, got, strict=True):
        want = found["last"] if tap > config.layers else found[f"tap/{tap}"]
        np.testing.assert_allclose(x, want, atol=2e-4, err_msg=f"tap {tap}")
    again = jax.jit(lambda p, v: vit_features(p, v, config, [2], remat="layer"))
    np.testing.assert_allclose(again(params, found["video"])[0], got[2], atol=1e-6)


def test_internvideo_layout():
    """The same weights under InternVideo's names, with one matrix for queries, keys, values."""
    found, config = fixture("videomae"), TINY["videomae"]
    flat = published(found)
    want = convert_vit(flat, config, convert.HF_VIDEOMAE)
    old, new = convert.HF_VIDEOMAE, convert.INTERNVIDEO
    renamed = {}
    for end in ("weight", "bias"):
        renamed[f"encoder.{new.patch}.{end}"] = flat[f"{old.patch}.{end}"]
    for i in range(config.layers):
        a, b = old.layer.format(i), f"encoder.{new.layer.format(i)}"
        qkv = [flat[f"{a}{n}.weight"] for n in (old.query, old.key, old.value)]
        renamed[f"{b}{new.qkv}.weight"] = np.concatenate(qkv)
        renamed[f"{b}{new.query_bias}"] = flat[a + old.query_bias]
        renamed[f"{b}{new.value_bias}"] = flat[a + old.value_bias]
        for part in ("attention_norm", "out", "mlp_norm", "mlp_in", "mlp_out"):
            for end in ("weight", "bias"):
                source = f"{a}{getattr(old, part)}.{end}"
                renamed[f"{b}{getattr(new, part)}.{end}"] = flat[source]
    got = convert_vit(renamed, config, convert.INTERNVIDEO)
    got["norm"] = want["norm"]  # the encoder of that file ends without one
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_conversion_names_what_does_not_fit():
    """Missing and misshapen tensors, each by name."""
    found, config = fixture("vjepa2"), TINY["vjepa2"]
    flat = published(found)
    del flat["encoder.layer.1.mlp.fc1.bias"]
    flat["encoder.layer.0.norm1.weight"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"layer\.1\.mlp\.fc1\.bias is missing") as error:
        convert_vit(flat, config, convert.HF_VJEPA2)
    assert "layer.0.norm1.weight is (3,), not (48,)" in str(error.value)


def test_published_files_are_converted(tmp_path, monkeypatch):
    """As libraries write them: metadata first, tensors in an order of their own."""
    found, config = published(fixture("vjepa2")), TINY["vjepa2"]
    header, payload = {"__metadata__": {"format": "pt"}}, b""
    for name in sorted(found, reverse=True):
        array = np.ascontiguousarray(found[name], np.float32)
        offsets = [len(payload), len(payload) + array.nbytes]
        entry = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        header[name], payload = entry, payload + array.tobytes()
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + payload)
    monkeypatch.setenv("EVATOK_ASSETS", str(tmp_path))
    monkeypatch.setitem(teachers.TEACHERS, "small", (config, (convert.HF_VJEPA2,)))
    with pytest.raises(assets.AssetMissing, match="--convert small=FILE"):
        teachers.identity("small")
    assert teachers.convert("small", path).parent == tmp_path
    want = convert_vit(found, config, convert.HF_VJEPA2)
    jax.tree.map(np.testing.assert_array_equal, teachers.load_vit("small"), want)
    assert len(teachers.identity("small")) == 64
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="should lie in bytes"):
        teachers.convert("small", path)


def test_kernels_are_kept_in_the_type_of_the_products():
    config = TINY["vjepa2"]
    params = convert_vit(published(fixture("vjepa2")), config, convert.HF_VJEPA2)
    spec, kept = (stored_as(tree, "bfloat16") for tree in (vit_spec(config), params))
    assert jax.tree.map(lambda x: x.dtype, kept) == jax.tree.map(lambda x: x.dtype, spec)
    video = jnp.asarray(fixture("vjepa2")["video"])

    def loss(video, params):
        return vit_features(params, video, config, [3], jnp.bfloat16)[0].sum()

    products = re.findall(
        r":f32\[\d+,\d+,\d+\] = dot_general", str(jax.make_jaxpr(jax.grad(loss))(video, kept))
    )
    assert not products, "the layers' products, forward and backward, are of the small type"
    (exact,) = vit_features(params, video, config, [3])
    (near,) = vit_features(kept, video, config, [3], jnp.bfloat16)
    assert 1e-4 < np.abs(exact - near).max() < 0.1 * np.abs(exact).max()


def test_wrong_clips_and_taps():
    """Another size, or taps out of order, is refused."""
    config, spec = TINY["vjepa2"], vit_spec(TINY["vjepa2"])
    video = jax.ShapeDtypeStruct((1, 4, 32, 32, 3), jnp.float32)
    with pytest.raises(ValueError, match="taps"):
        jax.eval_shape(lambda p, v: vit_features(p, v, config, [2, 1]), spec, video)
    other = replace(config, clip=(4, 64, 64))
    with pytest.raises(ValueError, match="clips of"):
        jax.eval_shape(lambda p, v: vit_features(p, v, other, [1]), spec, video)


def test_full_sizes():
    """Parameter counts of the published encoders."""

    def count(config):
        return sum(np.prod(x.shape) for x in jax.tree.leaves(vit_spec(config)))

    table = 8 * 14 * 14 * 768  # positions, which VideoMAE does not count
    assert count(VIDEOMAE_B) - table == pytest.approx(86.2e6, rel=0.01)
    assert count(VJEPA2_L) == pytest.approx(303.9e6, rel=0.01)
    assert count(DINOV3_B) == pytest.approx(85.7e6, rel=0.01)


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
def test_resize_against_torch(kind):
    """torch.nn.functional.interpolate, up and down, to 1e-5."""
    found = fixture("resize")
    video = found["frames"].transpose(0, 2, 3, 1)[None]
    for name in ("up", "down"):
        want = found[f"{kind}/{name}"].transpose(0, 2, 3, 1)
        got = resize(jnp.asarray(video), want.shape[1:3], kind)[0]
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_preprocess():
    """Clamped to [0, 1] before it is resized, then normalised."""
    video = jnp.full((1, 1, 4, 4, 3), 3.0)
    got = preprocess(video, (8, 8), "bicubic")
    want = (1.0 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(got, np.broadcast_to(want, got.shape), atol=1e-5)


def test_torch_files():
    """Tensors of a state dict, strided ones and half precision included."""
    got = load_torch(FIXTURES / "state.pth")
    assert set(got) == {"model.a.weight", "model.a.turned", "model.b", "model.half", "model.count"}
    np.testing.assert_array_equal(got["model.a.weight"], np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(got["model.a.turned"], np.arange(6.0).reshape(2, 3).T)
    assert got["model.b"].astype(np.float32).tolist() == [1.0] * 4
    assert got["model.half"].tolist() == [0.5, 0.5] and got["model.count"] == 7


class Evil:
    def __reduce__(self):
        return print, ("never",)


class Odd:
    """Asks for what it may have, in a way that makes no sense."""

    def __reduce__(self):
        return OrderedDict, (1, 2, 3)


ENDLESS = OrderedDict()
ENDLESS["self"] = ENDLESS


@pytest.mark.parametrize("content", [{"a": Evil()}, [1, 2], "text", {"a": Odd()}, ENDLESS])
def test_torch_files_are_not_trusted(tmp_path, content, capsys):
    """Anything but tensors in dicts is refused, and nothing is called."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
    path = tmp_path / "bad.pth"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=str(path)):
        load_torch(path)
    assert "never" not in capsys.readouterr().out


def test_no_zip(tmp_path):
    """A file that is no zip is refused."""
    path = tmp_path / "bad.pth"
    path.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match="not a zip"):
        load_torch(path)
