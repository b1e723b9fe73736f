"""Clips that are written come back: bit for bit as arrays, nearly as videos."""

import numpy as np

from evatok_jax.files import load_clips, save_clips


def test_clips_are_saved_and_loaded(tmp_path):
    y, x = np.mgrid[:32, :48]
    frames = [np.stack([5 * y, 4 * x, 8 * n + y], axis=2) for n in range(6)]
    clips = np.stack([frames, frames[::-1]]).astype(np.uint8)
    for target, tolerance in (("clips.npy", 0), ("clips", 4)):
        report = save_clips(clips, tmp_path / target)
        assert report["clips"] == 2
        back = load_clips(tmp_path / target, 6)
        assert back.shape == clips.shape and back.dtype == np.uint8
        assert np.abs(back.astype(int) - clips).mean() <= tolerance
