"""What a search finds."""

import flax.struct
import numpy as np


@flax.struct.dataclass
class Scores:
    """float32 [n clips, assignments] each: LPIPS, PSNR in dB, MSE of pixels in [0, 1]."""

    lpips: np.ndarray
    psnr: np.ndarray
    mse: np.ndarray

    @classmethod
    def of(cls, lpips: np.ndarray, mse: np.ndarray) -> "Scores":
        """With the PSNR that belongs to the MSE (at most 100 dB)."""
        return cls(lpips, -10.0 * np.log10(np.maximum(mse, 1e-10)).astype(np.float32), mse)
