"""Geometries: how a clip is cut into blocks and patches, and how many tokens a block may have.

A geometry fixes the clip, the patch and the token levels; widths and depths are another word
(`models/sizes.py`). The names are those of the configs: `nano`, `mini64`, `paper128`. An image is a
clip of one frame and so of one block: `image256` (EVATok's supplement), `image32` for tests.
"""

from dataclasses import dataclass

from evatok_jax.names import nearest


@dataclass(frozen=True)
class Geometry:
    """The shape of a clip and of its token budget (EVATok sec. 3.1).

    Attributes:
      frames, height, width: size of a clip, in frames and pixels.
      patch: frames, rows and columns of one patch; a block is `patch[0]` frames long.
      levels: token counts that a block may have, strictly increasing.

    Raises ValueError where the patch does not divide the clip, where the query pyramid cannot halve
    the patch grid, or where a level exceeds the 2 h w queries of the pyramid.
    """

    frames: int
    height: int
    width: int
    patch: tuple[int, int, int]
    levels: tuple[int, ...]

    def __post_init__(self):
        clip = (self.frames, self.height, self.width)
        if any(size % patch for size, patch in zip(clip, self.patch, strict=True)):
            raise ValueError(f"patch {self.patch} does not divide the clip {clip}")
        h, w = self.grid
        if h & (h - 1) or w not in (h, 2 * h):
            raise ValueError(
                f"the query pyramid halves its grid down to 1x1, width first: it needs h x h or "
                f"h x 2h patches with h a power of two, not {h} x {w}"
            )
        if not self.levels or list(self.levels) != sorted(set(self.levels)) or self.levels[0] < 1:
            raise ValueError(f"levels must be positive and strictly increasing, not {self.levels}")
        if self.levels[-1] > 2 * h * w:
            raise ValueError(
                f"level {self.levels[-1]} exceeds the {2 * h * w} queries of a {h} x {w} pyramid"
            )

    @property
    def blocks(self) -> int:
        """Temporal blocks of a clip."""
        return self.frames // self.patch[0]

    @property
    def block_frames(self) -> int:
        """Frames of one block."""
        return self.patch[0]

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of a block: rows, columns."""
        return self.height // self.patch[1], self.width // self.patch[2]

    @property
    def block_patches(self) -> int:
        """Patches of a block."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_values(self) -> int:
        """Pixel values of one patch, three colours."""
        return self.patch[0] * self.patch[1] * self.patch[2] * 3

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """Shape of one clip: frames, height, width, 3."""
        return self.frames, self.height, self.width, 3

    @property
    def max_block(self) -> int:
        """Tokens of the longest block."""
        return self.levels[-1]

    @property
    def max_length(self) -> int:
        """Tokens of the longest clip."""
        return self.blocks * self.levels[-1]

    @property
    def assignments(self) -> int:
        """Number of assignments: levels to the power of blocks."""
        return len(self.levels) ** self.blocks


GEOMETRIES = {
    "nano": Geometry(16, 32, 32, (4, 8, 8), (4, 16, 32)),
    "mini64": Geometry(16, 64, 64, (4, 8, 8), (8, 16, 32, 64, 128)),
    "paper128": Geometry(16, 128, 128, (4, 8, 8), (32, 64, 128, 256, 512)),
    # Levels between powers of two end inside a scale of the pyramid: they hold its top rows.
    "image32": Geometry(1, 32, 32, (1, 8, 8), (4, 8, 12, 16, 32)),
    "image256": Geometry(1, 256, 256, (1, 16, 16), (32, 64, 96, 128, 192, 256, 384, 512)),
}


def geometry(name: str) -> Geometry:
    """The geometry of that name; ValueError names the nearest of those that there are."""
    if name not in GEOMETRIES:
        raise ValueError(f"unknown geometry {name!r}: {nearest(name, GEOMETRIES)}")
    return GEOMETRIES[name]
