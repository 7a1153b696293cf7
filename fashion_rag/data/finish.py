"""The last step of an edit, which puts the model's picture into the request's own photo. It needs no PyTorch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fashion_rag.data.colour import from_srgb
from fashion_rag.data.image import paste_outside
from fashion_rag.request import EditRequest


def finish(request: EditRequest, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the request's own photo at its own size and in its own colours, with `picture` where the mask says.

    picture: uint8 [H, W, 3] in sRGB, of any size.
    """
    picture = from_srgb(picture, request.icc_profile)
    # The seam's width grows with the photo; it is 3 pixels at the paper's 512x384.
    return paste_outside(request.image, request.mask, picture, feather_px=min(request.mask.shape) // 128)
