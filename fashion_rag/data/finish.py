"""The last step of an edit, which puts the model's picture into the request's own photo. It needs no PyTorch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.data.colour import from_srgb
from fashion_rag.data.image import paste_outside
from fashion_rag.data.window import picture_out, visible_part, whole
from fashion_rag.request import CompleteRequest


def finish(request: CompleteRequest, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the request's own photo at its own size and in its own colours, with `picture` where the mask says.

    picture: uint8 [h, w, 3] in sRGB, of any size. It shows the request's window; outside, the photo is not changed.
    """
    picture = from_srgb(picture, request.icc_profile)
    photo_size = (request.image.shape[0], request.image.shape[1])
    seen = visible_part(request.window, photo_size)
    # The seam's width grows with the window; it is 3 pixels at the paper's 512x384.
    feather_px = min(seen.size) // 128
    if request.window == whole(photo_size):
        return paste_outside(request.image, request.mask, picture, feather_px)
    rows, columns = slice(seen.top, seen.bottom), slice(seen.left, seen.right)
    part = picture_out(request.window, picture, photo_size, Image.Resampling.BICUBIC)
    edited = request.image.copy()
    edited[rows, columns] = paste_outside(request.image[rows, columns], request.mask[rows, columns], part, feather_px)
    return edited
