"""What the human parser and the pose estimator see in photos. The pipeline and the parser's replicas call it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.request import Window

if TYPE_CHECKING:
    from fashion_rag.person.parser import HumanParser
    from fashion_rag.person.pose_estimator import PoseEstimator


@dataclass(frozen=True, eq=False)
class PhotoReading:
    """What was seen in a photo.

    window: the window round the person, in the shape of the model.
    label_map: Dress Code's classes in the window, uint8 [512, 384]; of the larger person only, all 0 without a person.
    keypoints: float64 [18, 2] in pixels of the photo, (0, 0) = absent; None if the bundle has no pose estimator.
    num_persons: how many persons were seen.
    """

    window: Window
    label_map: NDArray[np.uint8]
    keypoints: NDArray[np.float64] | None
    num_persons: int


def read_photos(
    parser: HumanParser, pose_estimator: PoseEstimator | None, photos: Sequence[Image.Image], shape: tuple[int, int]
) -> list[PhotoReading]:
    """Return what is seen in each photo, which is RGB, in sRGB, and of any size.

    shape: the (height, width) of the model's pictures. All photos go through the networks together.
    """
    raise NotImplementedError
