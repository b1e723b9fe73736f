"""An `.evt` file gives back what was put in, costs what it should, and refuses the rest."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest

from evatok_jax.geometry import GEOMETRIES, Geometry
from evatok_jax.storage import evt
from evatok_jax.storage.framing import Box, SourceInfo


def assert_same(found, expected):
    for name in ("codebook", "geometry", "tokenizer"):
        assert getattr(found, name) == getattr(expected, name)
    for name in ("lengths", "codes"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    ours, theirs = vars(found.source).copy(), vars(expected.source).copy()
    assert np.array_equal(ours.pop("timestamps"), theirs.pop("timestamps"))
    assert ours == theirs


VARIABLE = np.cumsum(np.random.default_rng(3).integers(1, 5000, 50)) - 2000
CASES = {
    "constant": {},
    "one frame": {"frames": 1},
    "one clip": {"frames": 16},
    "codebook of two": {"codebook": 2},
    "large codebook": {"codebook": 2**18},
    "cropped": {"mode": "crop", "width": 101, "height": 57},
    "portrait": {"width": 57, "height": 101},
    "audio and aspect": {"had_audio": True, "pixel_aspect": Fraction(16, 11)},
    "broadcast rate": {"time_base": Fraction(1001, 30000), "times": 7 + np.arange(33)},
    "variable rate": {"times": VARIABLE, "time_base": Fraction(1, 90000)},
    "early start": {"times": np.arange(-20, 21) * 512, "time_base": Fraction(1, 12800)},
    "paper128": {"name": "paper128", "codebook": 16384},
}


@pytest.mark.parametrize("case", CASES)
def test_round_trip(case, make_evt):
    written = make_evt(**CASES[case])
    data = evt.dumps(written)
    assert_same(evt.loads(data), written)
    assert evt.dumps(evt.loads(data)) == data


def test_files_round_trip_and_leave_nothing_beside(tmp_path, make_evt):
    written = make_evt()
    assert evt.write_evt(tmp_path / "a.evt", written) == (tmp_path / "a.evt").stat().st_size
    assert_same(evt.read_evt(tmp_path / "a.evt"), written)
    assert [path.name for path in tmp_path.iterdir()] == ["a.evt"]


@pytest.mark.parametrize("codebook", [1000, 8192, 8197, 16384, 2**18])
@pytest.mark.parametrize("rate", [(Fraction(1, 25), 1), (Fraction(1, 12800), 512)])
def test_one_clip_costs_at_most_five_percent_more_than_its_codes(codebook, rate, make_evt):
    time_base, step = rate
    written = make_evt(
        name="paper128",
        codebook=codebook,
        lengths=[[512, 128, 64, 64]],
        times=np.arange(17) * step,
        time_base=time_base,
    )
    size = len(evt.dumps(written))
    assert 8 * size <= 1.05 * written.codes.size * math.log2(codebook)


def test_long_videos_cost_less_than_one_percent_more(make_evt):
    written = make_evt(frames=1600, name="paper128", codebook=8197)
    assert 8 * len(evt.dumps(written)) <= 1.01 * written.codes.size * math.log2(8197)


def test_variable_rate_with_few_changes_costs_half_a_byte_a_frame(make_evt):
    steps = np.full(320, 40)
    steps[[7, 100]] = 80
    times = np.concatenate([[0], np.cumsum(steps)])
    extra = len(evt.dumps(make_evt(times=times))) - len(evt.dumps(make_evt(times=np.arange(321))))
    assert extra <= 320 / 2 + 8


def test_padded_and_flat_codes_are_inverse(make_evt):
    written = make_evt(frames=80)
    padded = evt.padded_codes(written, 1, 4, written.geometry.max_length)
    assert padded.shape == (3, written.geometry.max_length)
    flat = evt.flat_codes(padded, written.lengths[1:4])
    first = written.lengths[0].sum()
    assert np.array_equal(flat, written.codes[first : first + flat.size])
    with pytest.raises(ValueError, match="more than 5"):
        evt.padded_codes(written, 0, 1, 5)
    with pytest.raises(ValueError, match="have 5 columns"):
        evt.flat_codes(padded[:, :5], written.lengths[1:4])


def test_info_is_json_and_shows_the_tokens_of_each_block(make_evt):
    written = make_evt(had_audio=True, mode="crop")
    told = json.loads(json.dumps(evt.info(written)))
    assert told["tokens_per_block"] == written.lengths.tolist()
    assert told["bytes"] == len(evt.dumps(written))
    assert told["bits_per_token"] == 8 * told["bytes"] / written.codes.size
    assert told["source"]["lost"] == ["audio", "the picture outside the crop"]
    assert told["source"]["frames_per_second"] == "25"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"codes": lambda e: e.codes[:-1]}, "lengths need integer codes"),
        ({"codes": lambda e: e.codes.astype(np.int64) + 1000}, "exceed a codebook of 1000"),
        ({"codes": lambda e: e.codes.astype(np.float32)}, "integer codes"),
        ({"lengths": lambda e: e.lengths[:1]}, "40 frames need integer lengths"),
        ({"lengths": lambda e: e.lengths + 1}, "is none of the levels"),
        ({"codebook": lambda e: 1}, "codebook of 1"),
        ({"tokenizer": lambda e: "xyz"}, "hex digits"),
        ({"geometry": lambda e: Geometry(32, 32, 32, (8, 8, 8), (8, 16, 32))}, "lengths"),
        ({"box": lambda e: Box(0, 1, 32, 32)}, "does not lie in"),
        ({"mode": lambda e: "stretch"}, "letterbox or crop"),
        ({"width": lambda e: 0}, "1..65536 is allowed"),
        ({"time_base": lambda e: Fraction(0)}, "time base"),
        ({"timestamps": lambda e: np.zeros(41, np.int64)}, "must increase"),
        ({"timestamps": lambda e: np.zeros(0, np.int64)}, "time stamps must be"),
    ],
)
def test_contradictions_are_refused_before_they_are_written(change, reason, make_evt):
    parts = vars(make_evt()).copy()
    for name, value in change.items():
        if name in parts:
            parts[name] = value(make_evt())
        else:
            setattr(parts["source"], name, value(make_evt()))
    with pytest.raises(ValueError, match=reason):
        evt.EvtFile(**parts)


# The example of docs/formats.md: version 1 is these bytes, and stays them.
EXAMPLE = bytes.fromhex(
    "45565401 0123456789abcdef 08df1444481813818208688144001935 01 00"
    "68a61bf0219f2756a3e41e91f5286db26a40a102"
    "77c449770f35e358"
)


def test_the_documented_example_is_what_is_written_and_read():
    source = SourceInfo(64, 48, "letterbox", Box(4, 0, 24, 32), Fraction(1, 25), np.arange(6))
    lengths, codes = np.full((1, 4), 4), np.arange(16)
    example = evt.EvtFile(1000, GEOMETRIES["nano"], "0123456789abcdef", source, lengths, codes)
    assert evt.dumps(example) == EXAMPLE
    assert_same(evt.loads(EXAMPLE), example)


def repaired(data: bytes) -> bytes:
    return data[: -evt.CHECKSUM] + evt._checksum(data[: -evt.CHECKSUM])


def test_every_single_flipped_bit_is_noticed(make_evt):
    data = evt.dumps(make_evt(frames=16))
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"checksum|not an \.evt"):
            evt.loads(bytes(damaged))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d: b"", "not an .evt file"),
        (lambda d: b"hello, world", "not an .evt file"),
        (lambda d: d[:-1], "checksum does not match"),
        (lambda d: repaired(b"RIFF" + d[4:]), "not an .evt file"),
        (lambda d: repaired(b"EVT" + bytes(8)), "not an .evt file"),
        (lambda d: repaired(b"EVT\x02" + d[4:]), "version 2 is unknown"),
        (lambda d: repaired(d[:12] + b"\x92" + d[13:]), "flags is"),
        (lambda d: repaired(d[:-8] + b"\0" + d[-8:]), "the file has"),
        (lambda d: repaired(d[:-20] + d[-8:]), "the file has"),
    ],
)
def test_what_is_unknown_is_refused_with_its_reason(damage, reason, make_evt):
    data = evt.dumps(make_evt())
    with pytest.raises(ValueError, match=reason):
        evt.loads(damage(data))


def test_reading_names_the_file(tmp_path):
    path = tmp_path / "bad.evt"
    with pytest.raises(ValueError, match=r"bad\.evt: there is no such file"):
        evt.read_evt(path)
    path.write_bytes(b"EVT\x01 and then nothing of use")
    with pytest.raises(ValueError, match=r"bad\.evt: the checksum"):
        evt.read_evt(path)
