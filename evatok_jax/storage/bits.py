"""Digits and numbers as bytes, with one spelling for each value.

Two codes are all that an `.evt` file needs. Tokens and lengths are digits of one base: `pack` joins
up to `GROUP` of them into one big integer, so that a codebook of 1000 costs 9.97 bits a token and
not 10. Header fields are numbers of any size: `Numbers` spells them in nibbles, small ones short.
Both readers refuse a second spelling of the same value, so a file has exactly one valid form.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Integer, UInt

GROUP = 1024  # digits of one big integer: at most one byte of padding for so many
_WORD_BITS = 62  # a numpy word; the sums of products below must fit uint64


@lru_cache(maxsize=4096)
def _group_size(count: int, base: int) -> int:
    """Bytes that hold every number below base ** count."""
    return ((base**count - 1).bit_length() + 7) // 8


def packed_size(count: int, base: int) -> int:
    """Bytes that `count` digits of `base` take; exact for any count, without allocating."""
    full, rest = divmod(count, GROUP)
    return full * _group_size(GROUP, base) + _group_size(rest, base)


def _word_digits(base: int) -> int:
    """Digits that fit a machine word."""
    return max(1, _WORD_BITS // max(1, (base - 1).bit_length()))


def pack(digits: Integer[np.ndarray, " n"], base: int) -> bytes:
    """Packs digits in 0..base-1: each group is the integer sum d_i base^i, little-endian.

    Raises ValueError on a digit outside the base.
    """
    if digits.size and not (int(digits.min()) >= 0 and int(digits.max()) < base):
        raise ValueError(f"digits reach {digits.min()}..{digits.max()}, allowed is 0..{base - 1}")
    width = _word_digits(base)
    powers = np.array([base**i for i in range(width)], np.uint64)
    parts = []
    for start in range(0, digits.size, GROUP):
        group = digits[start : start + GROUP].astype(np.uint64)
        words = np.pad(group, (0, -group.size % width)).reshape(-1, width) @ powers
        value, radix = 0, base**width
        for word in reversed(words.tolist()):
            value = value * radix + word
        parts.append(value.to_bytes(_group_size(group.size, base), "little"))
    return b"".join(parts)


def unpack(
    data: memoryview, count: int, base: int, dtype: np.dtype | type = np.uint32
) -> UInt[np.ndarray, " n"]:
    """The `count` digits that `pack` wrote into exactly `data`.

    Raises ValueError where the size is another, or where a group is no number below base^digits.
    """
    if len(data) != packed_size(count, base):
        raise ValueError(f"{count} digits take {packed_size(count, base)} bytes, not {len(data)}")
    digits = np.empty(count, dtype)
    width, position = _word_digits(base), 0
    powers = np.array([base**i for i in range(width)], np.uint64)
    for start in range(0, count, GROUP):
        size = min(GROUP, count - start)
        step = _group_size(size, base)
        value = int.from_bytes(data[position : position + step], "little")
        if value >= base**size:
            raise ValueError(f"a group of {size} digits exceeds base {base}")
        words = np.array(_split(value, -(-size // width), base**width), np.uint64)
        group = words[:, None] // powers % np.uint64(base)
        digits[start : start + size] = group.reshape(-1)[:size]
        position += step
    return digits


def _split(value: int, count: int, radix: int) -> list[int]:
    """The lowest `count` digits of value, lowest first; halving keeps long divisions few."""
    values, span = [value], 1 << max(0, count - 1).bit_length()
    while span > 1:
        span //= 2
        power = radix**span
        values = [half for v in values for half in reversed(divmod(v, power))]
    return values[:count]


def zigzag(number: int) -> int:
    """Signed to unsigned: 0, -1, 1, -2 ... become 0, 1, 2, 3 ..."""
    return 2 * number if number >= 0 else -2 * number - 1


def unzigzag(number: int) -> int:
    """The inverse of `zigzag`."""
    return -(number + 1) // 2 if number & 1 else number // 2


def spell(numbers) -> bytes:
    """Numbers >= 0 as nibbles: three bits each, lowest first, the top bit set while more follow.

    The high nibble of a byte comes first; a zero nibble fills the last byte.
    """
    nibbles = bytearray()
    for number in numbers:
        while number > 7:
            nibbles.append(8 | number & 7)
            number >>= 3
        nibbles.append(number)
    if len(nibbles) % 2:
        nibbles.append(0)
    pairs = np.frombuffer(nibbles, np.uint8).reshape(-1, 2)
    return (pairs[:, 0] << 4 | pairs[:, 1]).tobytes()


class Numbers:
    """Reads what `spell` wrote, number by number, and knows where it stands."""

    def __init__(self, data: memoryview):
        self._data = data
        self._nibble = 0

    def take(self, name: str, low: int = 0, high: int = 2**31 - 1) -> int:
        """The next number; ValueError names it where it is cut off, misspelt or out of range."""
        value = shift = 0
        while True:
            if self._nibble >= 2 * len(self._data):
                raise ValueError(f"the file ends inside {name}")
            byte = self._data[self._nibble // 2]
            nibble = byte & 15 if self._nibble & 1 else byte >> 4
            self._nibble += 1
            value |= (nibble & 7) << shift
            if not nibble & 8:
                break
            shift += 3
            if shift > 63:
                raise ValueError(f"{name} has more than 64 bits")
        if shift and not nibble:
            raise ValueError(f"{name} is spelt with leading zeros")
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}, allowed is {low}..{high}")
        return value

    def left(self) -> int:
        """Nibbles not yet read."""
        return 2 * len(self._data) - self._nibble

    def end(self) -> int:
        """Bytes read so far, after the zero nibble that fills the last one."""
        if self._nibble & 1 and self._data[self._nibble // 2] & 15:
            raise ValueError("the header's padding is not zero")
        return (self._nibble + 1) // 2
