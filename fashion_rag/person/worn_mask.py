"""The repaint mask for shoppers' photos. It adds to the paper's rule, `data.masks`, what data sets never need."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fashion_rag.request import MaskType


def worn_mask(
    label_map: NDArray[np.uint8], keypoints: NDArray[np.float64] | None, category: str, mask_type: MaskType
) -> NDArray[np.uint8]:
    """Return where a garment of the category may come, uint8 [512, 384], 1 = repaint; all 0 if that is not in view.

    label_map: Dress Code's classes in the frame of Dress Code, uint8 [512, 384]. keypoints: [18, 2] in its pixels.
    """
    raise NotImplementedError
