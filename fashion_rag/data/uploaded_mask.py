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

An opaque mask must be a picture of two levels, whose edges may be soft. A photo, or another grey picture, is refused,
because its lighter part is hardly what the caller wants repainted. It is told from a soft mask in two ways: too much of
it is grey, or its levels are not those of the part that it marks, blurred.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

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
# The blurs that a mask's levels are compared with, as shares of its longer side. Brushes and feathering are narrower.
BLURS = (0.0, 0.005, 0.01, 0.02, 0.04, 0.06)
# How much the levels of a mask may differ on average from the best of these, as a share of their range. Drawn shapes of
# a sixth of each side and more, blurred by 0.04 of the shorter side, differ by up to 0.04; photos by 0.11 to 0.36.
MAX_DIFFERENCE = 0.1
# A level is grey if it is so far from both ends of the range. Of the pixels of such masks, up to 0.3 are grey.
GREY = 0.16
MAX_GREY = 0.6
# The comparison is made on so many pixels a side, which are picked from all.
COMPARED_SIDE = 256
CLEAR_RULE = (
    "must be clear: white where to repaint on opaque black, white strokes on a transparent canvas, "
    "or a copy of the photo with that part transparent"
)


def marked(image: Image.Image, field: str) -> NDArray[np.uint8]:
    """Return what to repaint as uint8 [H, W], 1 = repaint.

    image: in mode RGB or RGBA. Raises InvalidRequest, naming `field`, for a mask that marks nothing or is unclear.
    """
    levels = np.asarray(image.convert("L"))
    mask = levels >= 128
    alpha = np.asarray(image.getchannel("A")) if image.mode == "RGBA" else None
    if alpha is not None and alpha.min() < 255:
        transparent = alpha < 128
        if transparent.all():
            raise InvalidRequest(field, "a picture that is transparent everywhere", CLEAR_RULE)
        mask = mask & ~transparent if _white_marks(image, alpha, transparent, field) else transparent
    elif _is_grey(levels):
        rule = "must be black and white, with soft edges at most; the white part is repainted"
        raise InvalidRequest(field, "a picture in many levels of grey, as a photo is", rule)
    if not mask.any():
        raise InvalidRequest(field, "nothing marked", "must mark the part to repaint: white, or transparent")
    return mask.astype(np.uint8)


def edge_share(area: NDArray[np.bool_]) -> float:
    """Return the share of the outermost pixels of a picture that are in the area, [H, W]."""
    return float(np.concatenate([area[[0, -1]].ravel(), area[1:-1, [0, -1]].ravel()]).mean())


def _is_grey(levels: NDArray[np.uint8]) -> bool:
    """Return whether an opaque mask, uint8 [H, W], is neither a picture of two levels nor one with soft edges.

    A mask of one level is grey unless it is black or white.
    """
    step = -(-max(levels.shape) // COMPARED_SIDE)
    # Picked and not averaged, because averages of thin lines are grey.
    picked = levels[::step, ::step]
    darkest, lightest = int(picked.min()), int(picked.max())
    if darkest == lightest:
        return BLACK < darkest < WHITE
    shares = (picked.astype(np.float32) - darkest) / (lightest - darkest)
    if ((shares > GREY) & (shares < 1 - GREY)).mean() > MAX_GREY:
        return True
    marks = Image.fromarray(np.where(picked >= 128, 255, 0).astype(np.uint8))
    for blur in BLURS:
        blurred = np.asarray(marks.filter(ImageFilter.GaussianBlur(blur * max(picked.shape)))).astype(np.float32) / 255
        if np.abs(shares - blurred).mean() <= MAX_DIFFERENCE:
            return False
    return True


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
    edge = edge_share(transparent)
    if edge <= 1 - CANVAS:
        return False
    if is_white and edge >= CANVAS:
        return True
    shown = "white" if is_white else "a single colour"
    raise InvalidRequest(field, f"{shown} and transparency, either of which may be what to repaint", CLEAR_RULE)
