"""Borders round pictures of garments, so that a picture of another shape than the model's is not stretched."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fashion_rag.data.window import has_shape


def with_border(picture: Image.Image, shape: tuple[int, int]) -> Image.Image:
    """Return an RGB picture in the middle of a border that gives it the shape of a (height, width).

    The border has the colour of the picture's background, which is the median of its outermost pixels. A picture that
    has the shape is returned as it is.
    """
    width, height = picture.size
    if has_shape((height, width), shape):
        return picture
    size = max(width, round(height * shape[1] / shape[0])), max(height, round(width * shape[0] / shape[1]))
    pixels = np.asarray(picture)
    outermost = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    red, green, blue = np.median(outermost, axis=0).round().astype(int).tolist()
    bordered = Image.new("RGB", size, (red, green, blue))
    bordered.paste(picture, ((size[0] - width) // 2, (size[1] - height) // 2))
    return bordered
