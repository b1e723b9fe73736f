"""Pictures: budgets, sizes, and how a strip is put together."""

import io

import numpy as np
import pytest
from PIL import Image

from evatok_jax.report import media


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def opened(webp):
    return Image.open(io.BytesIO(webp))


def test_quality_follows_the_budget():
    pictures = list(noise(3, 32, 32, 3))
    whole, words = media.fit(media.still, pictures, 100_000)
    assert words == "without loss"
    for webp, picture in zip(whole, pictures, strict=True):
        np.testing.assert_array_equal(np.asarray(opened(webp).convert("RGB")), picture)
    budget = sum(map(len, whole)) // 2
    less, words = media.fit(media.still, pictures, budget)
    assert sum(map(len, less)) <= budget
    assert words.startswith("as WebP of quality")


def test_any_budget_is_kept_by_smaller_pictures():
    clips = list(noise(2, 4, 64, 64, 3))
    encoded, words = media.fit(media.animation, clips, 4_000, (90, 25))
    assert sum(map(len, encoded)) <= 4_000
    assert words.endswith("of the size")
    assert opened(encoded[0]).n_frames == 4
    with pytest.raises(ValueError, match="exceed 10 bytes"):
        media.fit(media.animation, clips, 10)


def test_large_frames_are_shrunk_in_proportion():
    assert media.shrink(noise(2, 300, 400, 3)).shape == (2, 96, 128, 3)
    small = noise(2, 64, 32, 3)
    assert media.shrink(small) is small


def test_a_block_has_its_frames_above_their_reconstructions():
    original, decoded = noise(6, 8, 4, 3), 255 - noise(6, 8, 4, 3)
    pictures = media.block_pictures(original, decoded, np.array([8, 16]))
    assert [picture.shape for picture in pictures] == [(16, 12, 3)] * 2
    np.testing.assert_array_equal(pictures[1][:8, 4:8], original[4])
    np.testing.assert_array_equal(pictures[1][8:, 8:], decoded[5])
