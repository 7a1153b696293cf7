"""The form in which the human parser and the pose estimator want their input pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class InputPicture:
    """The form of a network's input.

    size: (height, width). mean, std: of the RGB channels, by which pixels in [0, 1] are normalised.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def normalised(picture: Image.Image, wanted: InputPicture) -> Tensor:
    """Return the pixels of an RGB picture, float32 [3, H, W], normalised as wanted; the size stays as it is."""
    levels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float() / 255
    return (levels - torch.tensor(wanted.mean).view(3, 1, 1)) / torch.tensor(wanted.std).view(3, 1, 1)
