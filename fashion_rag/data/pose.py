"""The UNet's pose channels, made from key points. Called by the pipeline and the training code.

Points are 18 OpenPose (x, y) pairs; (0, 0) = absent. Sizes are (height, width).
The functions that make tensors import PyTorch themselves, because a server that only scales points does without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

# The picture size in whose pixels Dress Code gives its key points.
KEYPOINT_FRAME = (512, 384)


def scale_keypoints(
    keypoints: NDArray[np.float64], from_size: tuple[int, int], to_size: tuple[int, int]
) -> NDArray[np.float64]:
    """Return key points [18, 2] in pixels of `to_size`, given in pixels of `from_size`; absent points stay (0, 0)."""
    scale = (to_size[1] / from_size[1], to_size[0] / from_size[0])
    return np.asarray(keypoints, dtype=np.float64) * scale


def heat_maps(keypoints: NDArray[np.float64], size: tuple[int, int], sigma: float = 9.0) -> torch.Tensor:
    """Return a map for each point, float32 [18, H, W]: exp(-d^2 / sigma^2) with peak 1, or zero for absent points.

    keypoints: [18, 2] in pixels of `size`. sigma: in pixels, 9 in the paper at 512x384.
    """
    import torch

    # In float64, because with float32 distances the map is off by up to 7e-7.
    points = torch.as_tensor(keypoints, dtype=torch.float64)
    x, y = points[:, 0, None, None], points[:, 1, None, None]
    columns = torch.arange(size[1], dtype=torch.float64)[None, None, :]
    rows = torch.arange(size[0], dtype=torch.float64)[None, :, None]
    maps = torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / sigma**2)
    # The peak falls between pixels; the small term also keeps a point far outside the picture from dividing 0 by 0.
    maps = maps / (maps.amax(dim=(1, 2), keepdim=True) + 1.19e-7)
    present = (x > 0) | (y > 0)
    return (maps * present).float()


def to_latent(maps: torch.Tensor, latent_size: tuple[int, int]) -> torch.Tensor:
    """Return heat maps [18, H, W] or [B, 18, H, W] at the latents' size, bilinear without antialiasing as published."""
    from torch.nn import functional

    batched = maps if maps.ndim == 4 else maps[None]
    reduced = functional.interpolate(batched, size=latent_size, mode="bilinear", align_corners=False)
    return reduced if maps.ndim == 4 else reduced[0]
