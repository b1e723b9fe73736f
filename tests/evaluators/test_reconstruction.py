"""Evaluation under rules: what was measured is kept, and a stopped evaluation goes on from it."""

import numpy as np
import pytest

from evatok_jax.evaluators.reconstruction import at_budget, evaluate_rules

CLIPS = np.random.default_rng(0).integers(0, 256, (5, 4, 12, 12, 3), np.uint8)
RULES = {
    "all": lambda clips, rows: np.full((len(clips), 1), 8),
    "by row": lambda clips, rows: 1 + rows[:, None] % 3,
}


def batches():
    """Two batches of three places, the last one empty."""
    for first in (0, 3):
        index = np.minimum(np.arange(first, first + 3), 4)
        yield {"video": CLIPS[index], "mask": np.arange(first, first + 3) < 5}


class Reconstruct:
    """Darkens a clip the more, the fewer tokens it has; `left` batches may be asked for."""

    def __init__(self, left):
        self.left = left

    def __call__(self, clips, lengths):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        codes = np.where(np.arange(8) < lengths, np.arange(8), -1)
        return clips // (10 - lengths[:, :, None, None, None]).astype(np.uint8), codes


def evaluate(table, left, rules=RULES):
    return evaluate_rules(batches(), rules, Reconstruct(left), 16, table, nets=())


def test_stopped_and_continued_equals_undisturbed(tmp_path):
    whole = evaluate(tmp_path / "whole", 4)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "stopped", 3)
    continued = evaluate(tmp_path / "stopped", 2)
    for name in RULES:
        a, b = whole.rules[name], continued.rules[name]
        np.testing.assert_array_equal(a.lengths, b.lengths)
        assert set(a.values) == set(b.values) == {"psnr", "ssim"}
        for key in a.values:
            np.testing.assert_array_equal(a.values[key], b.values[key])
    np.testing.assert_array_equal(whole.codes_used, continued.codes_used)
    assert whole.codes_used.tolist() == [10, 8, 6, 5, 5, 5, 5, 5] + [0] * 8
    assert (whole.rules["all"].values["psnr"] > whole.rules["by row"].values["psnr"]).all()


def test_rules_that_agree_on_a_clip_share_what_was_measured(tmp_path, monkeypatch):
    """Features as if each rule stood alone, but of every reconstruction once."""
    seen = []

    def features(_, video):
        seen.append(len(video))
        return video.reshape(len(video), -1)[:, :7].astype(np.float32)

    monkeypatch.setattr("evatok_jax.evaluators.reconstruction.clip_features", features)
    rules = RULES | {"two": lambda clips, rows: np.full((len(clips), 1), 2), "again": RULES["all"]}
    together = evaluate_rules(
        batches(), rules, Reconstruct(8), 16, tmp_path / "together", i3d={}, nets=()
    )
    # Two batches of 3 and 2 clips: the real ones, then what is new ("two" agrees with a third).
    assert seen == [3, 3 + 3 + 2, 2, 2 + 2 + 1]
    for name, rule in rules.items():
        alone = evaluate_rules(
            batches(), {name: rule}, Reconstruct(2), 16, tmp_path / name, i3d={}, nets=()
        )
        np.testing.assert_array_equal(together.rules[name].features, alone.rules[name].features)
        for key, value in alone.rules[name].values.items():
            np.testing.assert_array_equal(together.rules[name].values[key], value)


def test_other_lengths_are_refused(tmp_path):
    evaluate(tmp_path / "table", 4)
    with pytest.raises(ValueError, match="other lengths for 'all': delete"):
        evaluate(
            tmp_path / "table", 0, RULES | {"all": lambda clips, rows: np.full((len(clips), 1), 7)}
        )


def test_a_curve_is_read_between_its_points_and_holds_beyond_them():
    points = [{"tokens": 64, "lpips": 0.5}, {"tokens": 16, "lpips": 0.7}]
    assert at_budget(points, 32, "lpips") == pytest.approx(0.6)
    assert at_budget(points, 8, "lpips") is None and at_budget(points, 256, "lpips") == 0.5
