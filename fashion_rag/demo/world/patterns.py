"""Where the patterns of cloth have their second colour. The renderer, `draw`, calls it."""

import numpy as np
from numpy.typing import NDArray

from fashion_rag.demo.world.attributes import PATTERNS
from fashion_rag.demo.world.figure import Cloth

STRIPE_PERIOD, CHECK_SIZE, DOT_RADIUS = 9.6, 5.0, 2.9


def second_colour_of(cloth: Cloth, pattern: str, box: tuple[int, int, int, int], scale: float) -> NDArray[np.bool_]:
    """Return where a pattern has its second colour, bool [h, w].

    box: the part of the canvas that is looked at, as (left, top, right, bottom) in pixels. scale: pixels for a unit.
    Raises ValueError for a pattern without a second colour.
    """
    left, top, right, bottom = box
    x = ((np.arange(left, right) + 0.5) / scale - cloth.centre)[None, :] / cloth.scale
    y = ((np.arange(top, bottom) + 0.5) / scale - cloth.top)[:, None] / cloth.scale
    half = STRIPE_PERIOD / 2
    match pattern:
        case "horizontal_stripes":
            second = y % STRIPE_PERIOD >= half
        case "vertical_stripes":
            second = (x + half / 2) % STRIPE_PERIOD >= half
        case "checks":
            second = (np.floor(x / CHECK_SIZE + 0.5) + np.floor(y / CHECK_SIZE)) % 2 == 1
        case "dots":
            dx, dy = (x + half) % STRIPE_PERIOD - half, y % STRIPE_PERIOD - half
            second = dx**2 + dy**2 <= DOT_RADIUS**2
        case "two_tone":
            second = y >= (cloth.middle - cloth.top) / cloth.scale
        case _:
            raise ValueError(f"pattern: got {pattern!r}; must be one of {PATTERNS[1:]}")
    return np.broadcast_to(second, (y.shape[0], x.shape[1]))
