"""Digits and numbers survive packing, at the size that information theory asks for, in one form."""

import math

import numpy as np
import pytest

from evatok_jax.storage import bits


@pytest.mark.parametrize("base", [1, 2, 5, 256, 1000, 8197, 16384, 2**31])
@pytest.mark.parametrize("count", [0, 1, 7, 774, bits.GROUP, 2 * bits.GROUP + 3])
def test_digits_return_at_their_entropy(base, count):
    digits = np.random.default_rng(count).integers(0, base, count)
    data = bits.pack(digits, base)
    assert np.array_equal(bits.unpack(memoryview(data), count, base), digits)
    assert len(data) == bits.packed_size(count, base)
    assert len(data) <= math.ceil(count * math.log2(base) / 8) + count // bits.GROUP


def test_size_of_absurd_counts_costs_nothing():
    assert bits.packed_size(2**60, 16384) == 2**60 * 14 // 8


def test_digits_outside_the_base_are_refused():
    for digits in ([3], [-1]):
        with pytest.raises(ValueError, match="allowed is"):
            bits.pack(np.array(digits), 3)


def test_a_group_beyond_its_base_is_refused():
    with pytest.raises(ValueError, match="exceeds base"):
        bits.unpack(memoryview(b"\xff"), 1, 255)
    with pytest.raises(ValueError, match="take 1 bytes, not 2"):
        bits.unpack(memoryview(b"ab"), 1, 255)


def test_numbers_return_and_count_their_bytes():
    values = [0, 7, 8, 63, 64, 10**18, 2**64 - 1, 1]
    data = bits.spell(map(int, values))
    numbers = bits.Numbers(memoryview(data))
    assert [numbers.take("number", high=2**64) for _ in values] == values
    assert numbers.end() == len(data)


@pytest.mark.parametrize("number", [0, 1, -1, 2, -(2**62), 2**62])
def test_zigzag_is_a_bijection(number):
    assert bits.zigzag(number) >= 0
    assert bits.unzigzag(bits.zigzag(number)) == number


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "ends inside field"),
        (b"\x88", "ends inside field"),
        (b"\x80", "leading zeros"),
        (b"\xff" * 40, "more than 64 bits"),
        (b"\x70", "field is 7, allowed is 0..5"),
    ],
)
def test_numbers_are_strict(data, reason):
    with pytest.raises(ValueError, match=reason):
        bits.Numbers(memoryview(data)).take("field", high=5)


def test_padding_must_be_zero():
    numbers = bits.Numbers(memoryview(b"\x01"))
    numbers.take("field")
    with pytest.raises(ValueError, match="padding"):
        numbers.end()
