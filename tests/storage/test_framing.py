"""Boxes keep the picture's shape and centre; fitting and undoing it give the size back."""

from fractions import Fraction

import numpy as np
import pytest

from evatok_jax.storage.framing import (
    Box,
    SourceInfo,
    box_for,
    fit_frame,
    unfit,
    unfit_frame,
)

SIZES = [(240, 320), (320, 240), (57, 101), (101, 57), (1, 1), (1, 500), (500, 1), (64, 64)]


def source_of(size, mode, frames=3, clip=(64, 64)):
    box = box_for(size, *clip, mode)
    times = np.arange(frames + 1)
    return SourceInfo(size[1], size[0], mode, box, Fraction(1, 25), times)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["letterbox", "crop"])
@pytest.mark.parametrize("clip", [(64, 64), (32, 64)])
def test_boxes_are_centred_and_touch_one_pair_of_sides(size, mode, clip):
    box = box_for(size, *clip, mode)
    outer = clip if mode == "letterbox" else size
    margins = [(box.top, outer[0] - box.top - box.height)]
    margins.append((box.left, outer[1] - box.left - box.width))
    assert all(0 <= after - before <= 1 and before >= 0 for before, after in margins)
    assert min(box.height, box.width) >= 1
    assert (0, 0) in margins


def test_known_boxes():
    assert box_for((240, 320), 128, 128, "letterbox") == Box(16, 0, 96, 128)
    assert box_for((240, 320), 128, 128, "crop") == Box(0, 40, 240, 240)


def test_letterbox_shows_the_whole_picture_on_black():
    frame = np.full((30, 60, 3), 200, np.uint8)
    fitted = fit_frame(frame, 64, 64, "letterbox")
    assert (fitted[16:48] == 200).all() and not fitted[:16].any() and not fitted[48:].any()


def test_crop_shows_the_middle():
    frame = np.zeros((30, 60, 3), np.uint8)
    frame[:, 15:45] = 200
    assert (fit_frame(frame, 64, 64, "crop") == 200).all()


@pytest.mark.parametrize("size", SIZES)
def test_letterbox_restores_the_source_size_and_crop_that_of_its_region(size):
    clip = np.zeros((64, 64, 3), np.uint8)
    assert unfit_frame(clip, source_of(size, "letterbox")).shape[:2] == size
    box = box_for(size, 64, 64, "crop")
    assert unfit_frame(clip, source_of(size, "crop")).shape[:2] == (box.height, box.width)


@pytest.mark.parametrize("mode", ["letterbox", "crop"])
def test_fit_and_back_keeps_smooth_pictures(mode, moving):
    frames = moving(2, 48, 80)
    box = box_for((48, 80), 64, 64, mode)
    fitted = np.stack([fit_frame(frame, 64, 64, mode) for frame in frames])
    source = source_of((48, 80), mode)
    back = np.stack([unfit_frame(frame, source) for frame in fitted]).astype(int)
    if mode == "crop":
        frames = frames[:, :, box.left : box.left + box.width]
    assert fitted.shape == (2, 64, 64, 3) and np.abs(back - frames).mean() < 2


def test_pictures_of_the_clip_size_pass_untouched():
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    for mode in ("letterbox", "crop"):
        fitted = np.stack([fit_frame(frame, 64, 64, mode) for frame in frames])
        assert np.array_equal(fitted, frames)
        assert np.array_equal(unfit_frame(fitted[0], source_of((64, 64), mode)), frames[0])


def test_fill_is_left_out_and_wrong_numbers_of_clips_are_refused():
    clips = np.zeros((2, 4, 64, 64, 3), np.uint8)
    assert len(list(unfit(clips, source_of((9, 9), "letterbox", frames=5)))) == 5
    for frames, reason in ((9, "hold 8 frames"), (4, "more clips")):
        with pytest.raises(ValueError, match=reason):
            list(unfit(clips, source_of((9, 9), "letterbox", frames=frames)))


def test_what_cannot_be_fitted_says_so():
    with pytest.raises(ValueError, match="letterbox or crop"):
        box_for((9, 9), 64, 64, "stretch")
    with pytest.raises(ValueError, match="cannot fit 0x9"):
        box_for((0, 9), 64, 64, "crop")
    with pytest.raises(ValueError, match="does not lie"):
        unfit_frame(np.zeros((8, 8, 3), np.uint8), source_of((9, 9), "letterbox"))
    with pytest.raises(ValueError, match="once all clips were read"):
        _ = source_of((9, 9), "crop", frames=0).frames


def test_what_is_lost_is_told():
    source = source_of((48, 80), "crop")
    source.had_audio = True
    assert source.lost == ("audio", "the picture outside the crop")
    assert source_of((48, 80), "letterbox").lost == ()
    assert source_of((48, 48), "crop").lost == ()


def test_rates():
    source = source_of((9, 9), "crop", frames=50)
    assert (source.seconds, source.rate, source.constant_rate) == (2, 25, True)
    source.timestamps = np.array([0, 1, 3])
    assert (source.rate, source.constant_rate) == (Fraction(50, 3), False)
