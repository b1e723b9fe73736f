"""PSNR and SSIM against their definitions."""

import numpy as np
import pytest
from scipy.ndimage import correlate1d

from evatok_jax.chunks import in_chunks
from evatok_jax.evaluators.psnr_ssim import clip_psnr, clip_ssim


def clips(n=3, t=2, h=20, w=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, t, h, w, 3), np.uint8)


def noisy(video, amount, seed=1):
    noise = np.random.default_rng(seed).normal(0, amount, video.shape)
    return np.clip(np.rint(video + noise), 0, 255).astype(np.uint8)


def test_psnr_is_that_of_the_clip():
    a = clips()
    b = noisy(a, 20)
    b[1] = a[1]
    error = np.mean((a / 255.0 - b / 255.0) ** 2, axis=(1, 2, 3, 4))
    found = clip_psnr(a, b)
    np.testing.assert_allclose(found[[0, 2]], -10 * np.log10(error[[0, 2]]), rtol=1e-5)
    assert found[1] == 100.0


def test_ssim_follows_its_definition():
    a = clips()
    b = noisy(a, 40)
    place = np.arange(-5, 6)
    window = np.exp(-(place**2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(x):
        for axis in (2, 3):
            x = correlate1d(x, window, axis)
        return x[:, :, 5:-5, 5:-5]

    x, y = a.astype(np.float64), b.astype(np.float64)
    ux, uy = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - ux * ux, mean(y * y) - uy * uy, mean(x * y) - ux * uy
    c1, c2 = 2.55**2, 7.65**2
    expected = (2 * ux * uy + c1) * (2 * vxy + c2) / ((ux**2 + uy**2 + c1) * (vx + vy + c2))
    np.testing.assert_allclose(clip_ssim(a, b), expected.mean(axis=(1, 2, 3, 4)), atol=1e-5)
    np.testing.assert_allclose(clip_ssim(a, a), 1.0, atol=1e-6)
    np.testing.assert_allclose(clip_ssim(a, b), clip_ssim(b, a), atol=1e-6)


def test_ssim_refuses_frames_smaller_than_its_window():
    with pytest.raises(ValueError, match="11 pixels"):
        clip_ssim(clips(h=10), clips(h=10))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_chunks_change_nothing(size):
    seen = []

    def function(a, b):
        seen.append(len(a))
        return a + b

    a = np.arange(5.0)
    np.testing.assert_array_equal(in_chunks(function, size, a, 10 * a), 11 * a)
    assert set(seen) == {size}


def test_chunks_refuse_what_does_not_fit():
    for arrays in ((np.zeros(0),), (np.zeros(2), np.zeros(3))):
        with pytest.raises(ValueError, match="items"):
            in_chunks(np.add, 2, *arrays)
