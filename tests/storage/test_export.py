"""Exports come back bit for bit, replace each other safely, and are refused where they are off."""

import hashlib
import json
import os

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from evatok_jax.storage import export as module
from evatok_jax.storage.export import load_export, save_export
from evatok_jax.storage.tensors import DTYPES, flatten, params_from_flat


def params_of_all_dtypes(seed=0):
    rng = np.random.default_rng(seed)
    arrays = {
        name: rng.integers(0, 2, (3, 5)).astype(bool)
        if name == "BOOL"
        # Random bytes have NaNs with payloads and negative zeros: they too must return.
        else np.frombuffer(rng.bytes(15 * dtype.itemsize), dtype).reshape(3, 5)
        for name, dtype in DTYPES.items()
    }
    shapes = {"scalar": np.float32(2.5), "empty": np.zeros((0, 4), np.float16)}
    device = {"kernel": jnp.ones((2, 3), jnp.bfloat16)}
    return {"encoder": {"layer_0": arrays, "out": device}, "shapes": shapes}


def bits_of(params):
    return {k: (v.dtype, v.shape, v.tobytes()) for k, v in flatten(params).items()}


def test_round_trip_is_bit_equal(tmp_path):
    params = params_of_all_dtypes()
    config = {"width": 8, "rate": 1e-4, "levels": [8, 16], "name": "für", "deep": {"a": None}}
    digest = save_export(tmp_path / "e", "tokenizer", config, params, {"steps": 3})
    found = load_export(tmp_path / "e")
    assert bits_of(found.params) == bits_of(params)
    assert (found.kind, found.config, found.extra) == ("tokenizer", config, {"steps": 3})
    assert found.digest == digest and len(digest) == 64
    assert found.params["encoder"]["layer_0"]["BF16"].dtype == ml_dtypes.bfloat16


def test_tensors_open_with_the_safetensors_library(tmp_path):
    params = params_of_all_dtypes()
    save_export(tmp_path / "e", "tokenizer", {}, params)
    library = safetensors.numpy.load_file(tmp_path / "e" / "params.safetensors")
    assert {k: (v.dtype, v.shape, v.tobytes()) for k, v in library.items()} == bits_of(params)


def test_a_part_has_the_digest_of_its_own_export(tmp_path):
    """Whatever it is saved with, in whatever order; other numbers are another model."""
    own, other = {"w": np.ones(3, np.float32)}, {"v": np.zeros(2, np.int32)}
    config = {"size": "tiny", "n": 1}
    alone = save_export(tmp_path / "a", "tokenizer", {"tokenizer": config}, {"tokenizer": own})
    both = {"router": {}, "tokenizer": dict(reversed(config.items()))}
    for kind, params in (
        ("generator", {"router": other, "tokenizer": own}),
        ("tokenizer", {"tokenizer": own, "router": {"v": other["v"] + 1}}),
    ):
        save_export(tmp_path / "b", kind, both, params)
        assert load_export(tmp_path / "b").part_digest("tokenizer") == alone
    save_export(
        tmp_path / "b", "tokenizer", both, {"router": other, "tokenizer": {"w": own["w"] * 2}}
    )
    assert load_export(tmp_path / "b").part_digest("tokenizer") != alone


def test_digest_names_the_model_and_not_the_notes(tmp_path):
    params, other = params_of_all_dtypes(), params_of_all_dtypes(1)

    def digest(*args):
        return save_export(tmp_path / "e", *args)

    first = digest("tokenizer", {"a": 1, "b": 2}, params)
    assert digest("tokenizer", {"b": 2, "a": 1}, params, {"note": 1}) == first
    changed = [
        digest("router", {"a": 1, "b": 2}, params),
        digest("tokenizer", {"a": 1, "b": 3}, params),
        digest("tokenizer", {"a": 1, "b": 2}, other),
    ]
    assert len({first, *changed}) == 4


def test_replacing_leaves_only_the_new_export(tmp_path):
    for seed in (0, 1):
        save_export(tmp_path / "e", "tokenizer", {"seed": seed}, params_of_all_dtypes(seed))
    assert load_export(tmp_path / "e").config == {"seed": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_failed_replacement_leaves_the_old_export(tmp_path, monkeypatch, fails_at):
    save_export(tmp_path / "e", "tokenizer", {"seed": 0}, params_of_all_dtypes(0))
    calls = []

    def rename(source, target, rename=os.rename):
        calls.append(source)
        if len(calls) == fails_at:
            raise OSError("the disk is full")
        rename(source, target)

    monkeypatch.setattr(module.os, "rename", rename)
    with pytest.raises(OSError, match="disk is full"):
        save_export(tmp_path / "e", "tokenizer", {"seed": 1}, params_of_all_dtypes(1))
    assert load_export(tmp_path / "e").config == {"seed": 0}
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_an_export_orphaned_by_a_kill_is_put_back(tmp_path):
    save_export(tmp_path / "e", "tokenizer", {"seed": 0}, {})
    (tmp_path / "e").rename(tmp_path / ".e.old")
    with pytest.raises(ValueError, match="cannot be stored"):
        save_export(tmp_path / "e", "tokenizer", {}, {"bad": "text"})
    save_export(tmp_path / "f", "tokenizer", {}, {})
    assert not (tmp_path / "e" / "bad").exists()
    save_export(tmp_path / "e", "tokenizer", {"seed": 1}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "f"]


def test_other_directories_are_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").touch()
    with pytest.raises(ValueError, match="no export, it will not be replaced"):
        save_export(tmp_path / "thesis", "tokenizer", {}, {})
    assert (tmp_path / "thesis" / "chapter1").exists()


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("kind", "../x", "lower case"),
        ("config", {"rate": float("nan")}, "not JSON compliant"),
        ("config", {"rate": np.float32(1)}, r"config\.rate: float32 cannot"),
        ("config", {1: 2}, "key 1 is no string"),
        ("extra", {"f": [print]}, r"extra\.f\[0\]: builtin"),
        ("params", {"a/b": np.zeros(1)}, "letters, digits"),
        ("params", {"a": {}}, "empty dict"),
        ("params", {"a": [1.0]}, "list cannot be stored"),
        ("params", {"a": np.zeros(1, complex)}, "complex128 cannot be stored"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_nothing_is_left(tmp_path, part, value, reason):
    parts = {"kind": "tokenizer", "config": {}, "params": {}, "extra": {}, part: value}
    with pytest.raises(ValueError, match=reason):
        save_export(tmp_path / "e", **parts)
    assert not list(tmp_path.iterdir())


def test_flat_names_cannot_run_through_each_other():
    for names in (("a", "a/b"), ("a/b", "a")):
        with pytest.raises(ValueError, match="holds others"):
            params_from_flat({name: np.zeros(1) for name in names})


@pytest.fixture(name="saved")
def _saved(tmp_path):
    params = {"a": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.ones(2, np.int8)}
    save_export(tmp_path / "e", "tokenizer", {"width": 8}, params)
    return tmp_path / "e"


def rewrite(saved, header=None, describe=None):
    """Replaces header and description of an export, with all its checksums right again."""
    path = saved / "params.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    if header is not None:
        text = header(data[8 : 8 + length].decode()).encode()
        data = len(text).to_bytes(8, "little") + text + data[8 + length :]
        path.write_bytes(data)
    content = json.loads((saved / "export.json").read_bytes())
    del content["checksum"]
    content["params"] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if describe is not None:
        describe(content)
    (saved / "export.json").write_bytes(module._spell(content))


def test_rewriting_nothing_changes_nothing(saved):
    rewrite(saved)
    assert load_export(saved).config == {"width": 8}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (lambda t: t.replace('"F32"', '"F99"'), "unknown dtype"),
        (lambda t: t.replace('"F32"', '"I32"').replace('"I8"', '"U8"'), None),
        (lambda t: t.replace("[0,24]", "[0,20]"), "should lie in"),
        (lambda t: t.replace("[0,24]", "[1,25]"), "should lie in"),
        (lambda t: t.replace("[24,26]", "[0,2]"), "should lie in"),
        (lambda t: t.replace("[2,3]", "[3,2]"), None),
        (lambda t: t.replace("[2,3]", "[6]"), "not spelt"),
        (lambda t: t.replace("[2,3]", "[2,true]"), "numbers from 0"),
        (lambda t: t.replace("[2,3]", "[2,3.0]"), "numbers from 0"),
        (lambda t: t.replace("[2,3]", "[-2,-3]"), "numbers from 0"),
        (lambda t: t.replace("[2,3]", "[281474976710655,281474976710655]"), "should lie in"),
        (lambda t: t.replace("[2,3]", "[1" + 5000 * "0" + "]"), "digits"),
        (lambda t: t.replace("[2,3]", "[" * 900 + "]" * 900), "nested"),
        (lambda t: "[" * 100000, "nested|Expecting"),
        (lambda t: t.replace('"a/w"', '"a//w"'), "needs letters"),
        (lambda t: t.replace('"a/w"', '"b/w"'), "holds others"),
        (lambda t: t.replace('"a/w"', '"b"'), "should lie in"),
        (lambda t: t.replace('"shape"', '"form"'), "has the fields"),
        (lambda t: t.replace('{"a', '{ "a'), "not spelt"),
        (lambda t: t.rstrip(" ") + "  ", "not spelt"),
        (lambda t: "[]", "no JSON object"),
        (lambda t: "{}", "tensors fill 0 of 26"),
        (lambda t: "\xff", "Expecting value"),
    ],
)
def test_headers_are_strict(saved, header, reason):
    rewrite(saved, header)
    if reason is None:
        assert bits_of(load_export(saved).params)
        return
    with pytest.raises(ValueError, match=reason):
        load_export(saved)


@pytest.mark.parametrize(
    ("describe", "reason"),
    [
        (lambda c: c.update(version=2), "version 2: this reader knows 1"),
        (lambda c: c.update(version=True), "version True"),
        (lambda c: c.update(format="zip"), "does not describe an export"),
        (lambda c: c.update(kind="Rm -rf"), "is none"),
        (lambda c: c.update(config=[]), "config is no JSON object"),
        (lambda c: c.update(surprise=1), "not spelt"),
        (lambda c: c.pop("extra"), "not spelt"),
        (lambda c: c["params"].update(bytes=2**60), "checksum of params|does not hold"),
        (lambda c: c["params"].update(bytes=-1), "impossible"),
        (lambda c: c["params"].update(bytes="4"), "impossible"),
        (lambda c: c["params"].update(bytes=3), "expected are at most 3"),
        (lambda c: c["params"].update(sha256=None), "checksum of params"),
        (lambda c: c["params"].update(tensors=True), "does not hold"),
        (lambda c: c["params"].update(values=9), "does not hold"),
        (lambda c: c["params"].pop("tensors"), "does not hold"),
    ],
)
def test_descriptions_are_strict(saved, describe, reason):
    rewrite(saved, describe=describe)
    with pytest.raises(ValueError, match=reason):
        load_export(saved)


def test_absent_files_and_strange_files_are_named(saved):
    with pytest.raises(ValueError, match=r"there is no file export\.json"):
        load_export(saved.parent / "nowhere")
    (saved / "params.safetensors").unlink()
    os.mkfifo(saved / "params.safetensors")
    with pytest.raises(ValueError, match="there is no file params"):
        load_export(saved)
