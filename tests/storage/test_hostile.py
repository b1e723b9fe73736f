"""Ten thousand damaged files: a ValueError with its reason each time, in bounded time and memory.

Half of the damage leaves the checksums wrong. The other half repairs them, as an attacker would, so
that the parsers behind them are reached; what they accept then must be a file like any other.
"""

import hashlib
import json
import time
import tracemalloc

import numpy as np
import pytest
from jaxtyping import config

from evatok_jax.storage import bits, evt, export
from evatok_jax.storage.export import load_export, save_export
from evatok_jax.storage.tensors import dump_tensors, flatten

MUTATIONS = 5_000  # of each format
MEMORY = 64 << 20  # plus four times the file
SECONDS = 10.0  # for one file of less than a kB: more is a hang, even on a busy machine


def mutate(rng: np.random.Generator, data: bytes, keep: int = 0) -> bytes:
    """One to three random changes after the first `keep` bytes: flipped bits, cuts, insertions,
    repetitions, zeros, ones and exchanged bytes."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        # Most changes fall on the first hundred bytes, where the structure is.
        span = len(data) - keep if rng.random() < 0.5 else min(len(data) - keep, 100)
        at = keep + int(rng.integers(0, max(1, span)))
        size = int(rng.integers(1, 9 if rng.random() < 0.8 else 200))
        kind = rng.integers(0, 8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.integers(0, 8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = rng.bytes(size)
        elif kind == 4:
            data[at:at] = data[at : at + size]
        elif kind == 5:
            data[at : at + size] = bytes(len(data[at : at + size]))
        elif kind == 6:
            data[at : at + size] = b"\xff" * len(data[at : at + size])
        elif at < len(data):
            data[at] = rng.integers(0, 256)
    return bytes(data)


def outcome(read, *args):
    """What reading gave, or None after a ValueError with a reason; it must be quick."""
    start = time.monotonic()
    try:
        result = read(*args)
    except ValueError as error:
        assert len(str(error)) > 10, "a refusal needs its reason"
        result = None
    assert time.monotonic() - start < SECONDS
    return result


@pytest.fixture(name="peak")
def _peak():
    """The peak of traced memory so far, as a user's process has it: without annotation checks."""
    config.update("jaxtyping_disable", True)
    tracemalloc.start(1)
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("repair", [False, True])
def test_evt(repair, make_evt, peak):
    rng = np.random.default_rng(7)
    times = np.cumsum(rng.integers(1, 9, 41))
    originals = [
        evt.dumps(make_evt(codebook=1000)),
        evt.dumps(make_evt(codebook=16384, times=times, mode="crop", had_audio=True)),
    ]
    accepted, largest = 0, 0
    for i in range(MUTATIONS // 2):
        original = originals[i % 2]
        data = mutate(rng, original, keep=4 if repair else 0)
        if repair:
            data = data[: -evt.CHECKSUM]
            data += evt._checksum(data)
        largest = max(largest, len(data))
        result = outcome(evt.loads, data)
        if result is not None:
            assert evt.dumps(result) == data
            accepted += data != original
    assert peak() <= MEMORY + 4 * largest
    assert accepted > 0 if repair else accepted == 0


@pytest.mark.parametrize("repair", [False, True])
def test_export(repair, tmp_path, peak, monkeypatch):
    rng = np.random.default_rng(8)
    layers = {f"layer_{i}": rng.normal(size=(4, 3)).astype(np.float32) for i in range(6)}
    params = {"encoder": layers, "mask": np.array([True, False]), "count": np.int64(3)}
    save_export(tmp_path / "e", "tokenizer", {"width": 8, "rate": 0.1, "n": [1, None]}, params)
    files = [tmp_path / "e" / name for name in ("export.json", "params.safetensors")]
    originals = [file.read_bytes() for file in files]
    from_disk, memory = export._read, {}

    def read(path, most):
        """Most files stay in memory: on a busy disk, opening takes longer than all the rest."""
        if i % 50 == 0:
            path.write_bytes(memory[path.name])
            return from_disk(path, most)
        if len(memory[path.name]) > most:
            raise ValueError("a file that is larger than expected")
        return np.frombuffer(memory[path.name], np.uint8).copy()

    monkeypatch.setattr(export, "_read", read)
    accepted, largest = 0, 0
    for i in range(MUTATIONS // 2):
        text, tensors = originals
        if i % 4 == 1:
            tensors = mutate(rng, tensors)
        elif i % 4 == 3:  # a damaged header whose length is right
            end = 8 + int.from_bytes(tensors[:8], "little")
            header = mutate(rng, tensors[8:end])
            tensors = len(header).to_bytes(8, "little") + header + tensors[end:]
        else:
            text = mutate(rng, text)
        if repair:
            text = repaired(text, originals[1], tensors)
        memory = {file.name: data for file, data in zip(files, (text, tensors), strict=True)}
        largest = max(largest, len(text) + len(tensors))
        result = outcome(load_export, tmp_path / "e")
        if result is not None:
            assert b"".join(dump_tensors(flatten(result.params))) == tensors
            assert json.loads(text)["config"] == result.config
            accepted += [text, tensors] != originals
    assert peak() <= MEMORY + 4 * largest
    assert accepted > 0 if repair else accepted == 0


def repaired(text: bytes, old: bytes, new: bytes) -> bytes:
    """The JSON with its checksums, and its description of the tensors, made right again."""
    for spell in (lambda d: b'"sha256": "%s"' % sha256(d), lambda d: b'"bytes": %d,' % len(d)):
        text = text.replace(spell(old), spell(new))
    body = text.rpartition(b',\n  "checksum"')[0] or text
    return body + b',\n  "checksum": "%s"\n}\n' % sha256(body)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def test_repair_repairs(tmp_path):
    save_export(tmp_path / "e", "tokenizer", {}, {"a": np.ones(3, np.float32)})
    text = (tmp_path / "e" / "export.json").read_bytes()
    tensors = (tmp_path / "e" / "params.safetensors").read_bytes()
    changed = tensors[:-1] + b"\x40"
    (tmp_path / "e" / "params.safetensors").write_bytes(changed)
    (tmp_path / "e" / "export.json").write_bytes(repaired(text, tensors, changed))
    assert flatten(load_export(tmp_path / "e").params)["a"][2] == 4


def crafted(numbers, payload: bytes) -> bytes:
    """An `.evt` file of these header numbers, with the right checksum."""
    body = evt.MAGIC + bytes([evt.VERSION]) + bytes(8) + bits.spell(numbers) + payload
    return body + evt._checksum(body)


# One token a clip, of one bit: few bytes that claim long videos.
SMALLEST = [2, 1, 1, 1, 4096, 1, 1, 1, 2, 240, 320, 0, 0, 0, 0, 1, 25]


@pytest.mark.parametrize("frames", [1, 4096, 1_500_000, 2_000_000, 2**31 - 1])
@pytest.mark.parametrize("variable", [False, True])
def test_evt_files_that_claim_much_stay_in_bounds(frames, variable, peak):
    payload = bytes(bits.packed_size(min(frames, 2_000_000) // 4096 + 1, 2))
    data = crafted([2 * variable, *SMALLEST, frames, 0, 1, *[2] * variable], payload)
    result = outcome(evt.loads, data)
    assert (result is not None) == (frames <= 1_500_000 and not variable)
    assert peak() <= MEMORY + 4 * len(data)


def test_a_clip_of_gigapixels_is_refused_before_its_levels_are_used():
    """A grid of 65536 x 65536 patches allows levels that no int32 holds."""
    levels, numbers = (1, 2**30, 2**31 + 2, 2**32), []
    for before, level in zip((0, *levels), levels, strict=False):
        numbers.append(bits.zigzag(level - 2 * before))
    grid, patch, picture, rest = [1, 65536, 65536], [1, 1, 1], [9, 9, 0, 65527, 0, 65527], [1, 25]
    header = [0, 2, *grid, *patch, len(levels), *numbers, *picture, *rest, 1, 0, 1]
    data = crafted(header, bits.pack(np.array([3]), 4) + bytes(1))
    with pytest.raises(ValueError, match=r"clips of .* exceed"):
        evt.loads(data)


def test_files_beyond_the_memory_bound_are_not_written_either(make_evt):
    times, lengths = np.arange(1_600_001), np.full((100_000, 4), 4)
    with pytest.raises(ValueError, match="is refused"):
        evt.dumps(make_evt(times=times, lengths=lengths, codebook=2))


@pytest.mark.parametrize("junk", [b"[],", b"{},", b"[", b"1.5,", b'"\\u1234",'])
@pytest.mark.parametrize("where", ["export.json", "params.safetensors"])
def test_json_that_unfolds_stays_in_bounds(junk, where, tmp_path, peak):
    save_export(tmp_path / "e", "tokenizer", {}, {})
    text = (tmp_path / "e" / "export.json").read_bytes()
    body = b'{"a":[' + junk * (2**20 // len(junk) - 40) + b"1]"
    if where == "export.json":
        (tmp_path / "e" / where).write_bytes(repaired(body, b"", b""))
    else:
        old = (tmp_path / "e" / where).read_bytes()
        new = (len(body) + 1).to_bytes(8, "little") + body + b"}"
        (tmp_path / "e" / where).write_bytes(new)
        (tmp_path / "e" / "export.json").write_bytes(repaired(text, old, new))
    assert outcome(load_export, tmp_path / "e") is None
    assert peak() <= MEMORY + 4 * 2**20
