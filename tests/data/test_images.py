"""Images are videos of one frame: the same records, the same decoding, the same clips."""

import json

import numpy as np
import pytest
from PIL import Image

from evatok_jax.data.builders import source
from evatok_jax.data.builders.build import SKIPPED
from evatok_jax.data.builders.command import build_main
from evatok_jax.data.clips import Clips
from evatok_jax.data.pipeline import train_clips

ORIENTATION, QUARTER_CLOCKWISE = 0x0112, 6  # of EXIF


def picture(height=48, width=64):
    """uint8 [height, width, 3], smooth and nowhere symmetric."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 4, y * 5, 255 - x * 2], axis=-1).clip(0, 255).astype(np.uint8)


@pytest.fixture
def imagenet(tmp_path):
    """Two classes and two splits, laid out as ImageNet, with what is to be met there."""
    root, image = tmp_path / "images", Image.fromarray(picture())
    exif = Image.Exif()
    exif[ORIENTATION] = QUARTER_CLOCKWISE
    for name, kind, options in (
        ("train/n01/a.JPEG", image, {"quality": 95}),
        ("train/n01/cmyk.jpg", image.convert("CMYK"), {"quality": 95}),
        ("train/n01/grey.jpg", image.convert("L"), {"quality": 95}),
        ("train/n02/b.png", image, {}),
        ("train/n02/c.webp", image, {"lossless": True}),
        ("train/n02/png.jpg", image, {"format": "PNG"}),
        ("train/n02/turned.jpg", image, {"quality": 95, "exif": exif}),
        ("val/n02/d.jpeg", image, {}),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind.save(path, **options)
    return root


def test_a_folder_of_images(tmp_path, imagenet):
    """Byte for byte in the records; decoded, cropped and upright in the clips."""
    (imagenet / "val/n01").mkdir()
    (imagenet / "val/n01/no.jpg").write_bytes(b"\xff\xd8 no picture")
    out = tmp_path / "out"
    manifest = build_main("imagenet", out, imagenet, max_bad=0.2, workers=0)
    assert manifest["splits"] == {"train": 7, "val": 1}
    assert manifest["classes"] == ["n01", "n02"]
    (bad,) = (out / SKIPPED).read_text().splitlines()
    assert json.loads(bad)["key"] == "val/n01/no.jpg"
    clips, want = Clips(out, "train", 1, 48, 48), picture()[:, 8:56].astype(int)
    wanted = {"train/n02/turned.jpg": np.rot90(picture(), -1)[8:56].astype(int)}
    wanted["train/n01/grey.jpg"] = (want @ [[0.299], [0.587], [0.114]]).repeat(3, axis=-1)
    for record, key in enumerate(clips.index["key"]):
        stored = clips.records[record]
        assert stored["video"] == (imagenet / key).read_bytes()
        assert (stored["first"], stored["last"], stored["frames"]) == (0, 1, 1)
        clip = clips.read(record, 0)
        assert clip["video"].shape == (1, 48, 48, 3)
        assert clip["label"] == ("n02" in key)
        apart = np.abs(clip["video"][0] - wanted.get(key, want)).mean()
        lossless = key.endswith((".png", ".webp", "png.jpg"))
        assert apart == 0 if lossless else apart < 1.5, key
    batch = next(train_clips(Clips(out, "train", 1, 32, 32), batch_size=4, seed=0))
    assert batch["video"].shape == (4, 1, 32, 32, 3)
    assert len(clips.windows()) == 7


def test_what_cannot_be_a_folder_of_images(tmp_path, imagenet):
    """Videos are no images; images beside the folders of classes have none."""
    with pytest.raises(FileNotFoundError, match=r"no image \(\.jpeg, "):
        source("images", _with(tmp_path / "other", "v.mp4"))
    _with(imagenet / "val", "loose.png")
    with pytest.raises(ValueError, match=r"has images in folders and 1 beside them \(loose\.png\)"):
        source("images", imagenet)


def _with(directory, name):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(b"")
    return directory
