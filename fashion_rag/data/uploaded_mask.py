"""The rules that say which part of an uploaded mask is to be repainted. Called by `image.open_mask`.

People send two kinds of masks. In one kind the part to repaint is white; in the other, as for OpenAI's image edits, it
is transparent. A picture with transparent parts may be of either kind, so its opaque part and its edge decide:

| the mask                                                                   | to repaint           |
|----------------------------------------------------------------------------|----------------------|
| opaque everywhere                                                          | the white part       |
| transparent parts, the rest a picture, such as a copy of the photo         | the transparent part |
| transparent parts, the rest black and white                                | the white part       |
| transparent parts, the rest white, and its edge transparent: white strokes | the white part       |
| transparent parts, the rest of one colour, which has the edge: a canvas    | the transparent part |
| transparent parts, the rest white, and its edge has much of both           | refused as unclear   |
| transparent parts, the rest of one other colour, black too, edge otherwise | refused as unclear   |
| transparent everywhere, or translucent and nowhere transparent             | refused: nothing     |

White is a grey level of 128 or more, transparent an alpha below 128. "The rest" is the part of the highest alpha, so
that soft edges of strokes do not count.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.errors import InvalidRequest

# A part counts as black and white if at least MIN_DRAWN of its pixels are at most BLACK or at least WHITE.
BLACK, WHITE = 5, 250
MIN_DRAWN = 0.97
# A smaller share of black pixels beside white ones is taken for specks.
MIN_BLACK = 0.005
# In a part of one colour, levels may differ by so much, because lossy files change them.
ONE_COLOUR = 16
# A part is the canvas if it has at least this share of the picture's outermost pixels.
CANVAS = 0.75
CLEAR_RULE = (
    "must be clear: white where to repaint on opaque black, white strokes on a transparent canvas, "
    "or a copy of the photo with that part transparent"
)


def marked(image: Image.Image, field: str) -> NDArray[np.uint8]:
    """Return what to repaint as uint8 [H, W], 1 = repaint.

    image: in mode RGB or RGBA. Raises InvalidRequest, naming `field`, for a mask that marks nothing or is unclear.
    """
    mask = np.asarray(image.convert("L")) >= 128
    alpha = np.asarray(image.getchannel("A")) if image.mode == "RGBA" else None
    if alpha is not None and alpha.min() < 255:
        transparent = alpha < 128
        if transparent.all():
            raise InvalidRequest(field, "a picture that is transparent everywhere", CLEAR_RULE)
        mask = mask & ~transparent if _white_marks(image, alpha, transparent, field) else transparent
    if not mask.any():
        raise InvalidRequest(field, "nothing marked", "must mark the part to repaint: white, or transparent")
    return mask.astype(np.uint8)


def _white_marks(image: Image.Image, alpha: NDArray[np.uint8], transparent: NDArray[np.bool_], field: str) -> bool:
    """Return whether the white part of a picture that is not opaque is to be repainted, and not the transparent part.

    Raises InvalidRequest, naming `field`, if that is unclear.
    """
    if not transparent.any():
        return False
    solid = alpha == alpha.max()
    channels = [np.asarray(image.getchannel(name))[solid] for name in "RGB"]
    white = (np.minimum.reduce(channels) >= WHITE).mean()
    black = (np.maximum.reduce(channels) <= BLACK).mean()
    is_drawn = white + black >= MIN_DRAWN
    if is_drawn and white > 0 and black >= MIN_BLACK:
        return True
    is_white = is_drawn and white > 0
    if not is_white and any(np.ptp(channel) > ONE_COLOUR for channel in channels):
        return False
    edge = np.concatenate([transparent[[0, -1]].ravel(), transparent[1:-1, [0, -1]].ravel()]).mean()
    if edge <= 1 - CANVAS:
        return False
    if is_white and edge >= CANVAS:
        return True
    shown = "white" if is_white else "a single colour"
    raise InvalidRequest(field, f"{shown} and transparency, either of which may be what to repaint", CLEAR_RULE)
