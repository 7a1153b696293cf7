"""The colours and the pattern of a painted garment, read from pixels. No network is used, so none judges its own work.

`draw.pattern_maps` tells where a garment shows, and where each pattern would have its second colour. For every pattern
the two best colours are fitted to the pixels, and the pattern with the smallest error is the one that is read. The main
colour is the one that most pixels are nearest to. The demo's evaluation calls it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fashion_rag.demo.world.attributes import PALETTE, DollGarment, lab

Floats = NDArray[np.float64]

# The least coverage at which a pixel counts as part of the garment.
FULL_COVERAGE = 0.99
# A second colour counts only if it differs this much in CIE Lab and explains this share of the variance.
MIN_CONTRAST = 15.0
MIN_EXPLAINED = 0.4
# A colour on at least this share of a garment is one of its main colours.
MAIN_SHARE = 0.4
_NAMES = tuple(PALETTE)
_LAB = np.stack([lab(PALETTE[name]) for name in _NAMES])


@dataclass(frozen=True)
class Reading:
    """The colours and pattern that were read from pixels; second_colour is None for a plain garment."""

    colour: str
    pattern: str
    second_colour: str | None


def read_garment(image: NDArray[np.uint8], coverage: Floats, patterns: Mapping[str, Floats]) -> Reading:
    """Return the colours and pattern of the garment in `image` uint8 [H, W, 3].

    coverage, patterns: [H, W], from `draw.pattern_maps`. Raises ValueError if no pixel shows the garment alone.
    """
    inside = _inside(coverage)
    pixels = image[inside].astype(np.float64)
    variation = float(((pixels - pixels.mean(axis=0)) ** 2).sum())
    fits = {name: _fit(pixels, share[inside]) for name, share in patterns.items()}
    pattern = min(fits, key=lambda name: fits[name][2])
    first, second, error = fits[pattern]
    contrast = float(np.linalg.norm(lab(np.clip(first, 0, 255)) - lab(np.clip(second, 0, 255))))
    if contrast < MIN_CONTRAST or error > (1 - MIN_EXPLAINED) * variation:
        return Reading(nearest_colour(np.median(pixels, axis=0)), "plain", None)
    return Reading(nearest_colour(first), pattern, nearest_colour(second))


def main_colour(image: NDArray[np.uint8], coverage: Floats) -> str:
    """Return the palette's colour that most pixels of the garment in `image` uint8 [H, W, 3] are nearest to.

    coverage: [H, W], from `draw.pattern_maps`. Raises ValueError if no pixel shows the garment alone.
    """
    return _NAMES[int(np.bincount(_nearest(image[_inside(coverage)])).argmax())]


def main_colours(garment: DollGarment, coverage: Floats, patterns: Mapping[str, Floats]) -> set[str]:
    """Return the colours that cover at least MAIN_SHARE of the visible garment, each of which `main_colour` may return.

    The two colours of stripes, checks and two tones cover about the same share, so that both are main colours.
    """
    if garment.second_colour is None:
        return {garment.colour}
    second_share = float(patterns[garment.pattern][_inside(coverage)].mean())
    shares = {garment.colour: 1 - second_share, garment.second_colour: second_share}
    return {colour for colour, share in shares.items() if share >= MAIN_SHARE}


def nearest_colour(rgb: Floats) -> str:
    """Return the palette's colour nearest to `rgb` (0..255) in CIE Lab."""
    return _NAMES[int(_nearest(rgb))]


def _nearest(rgb: NDArray[Any]) -> NDArray[np.int64]:
    """Return for each colour `rgb` [..., 3] the number [...] of the nearest colour of the palette."""
    distance = np.linalg.norm(lab(np.clip(rgb, 0, 255))[..., None, :] - _LAB, axis=-1)
    nearest: NDArray[np.int64] = distance.argmin(axis=-1)
    return nearest


def _inside(coverage: Floats) -> NDArray[np.bool_]:
    """Return the pixels that show the garment alone. Raises ValueError if there is none."""
    inside: NDArray[np.bool_] = coverage >= FULL_COVERAGE
    if not inside.any():
        raise ValueError("coverage: no pixel shows the garment alone")
    return inside


def _fit(pixels: Floats, share: Floats) -> tuple[Floats, Floats, float]:
    """Return the two colours whose mixture comes nearest to `pixels` [n, 3], and the remaining squared error.

    share: the share of the second colour in each pixel, [n].
    """
    basis = np.stack([1 - share, share], axis=1)
    colours, _, rank, _ = np.linalg.lstsq(basis, pixels, rcond=None)
    if rank < 2:
        return pixels.mean(axis=0), pixels.mean(axis=0), float("inf")
    return colours[0], colours[1], float(((pixels - basis @ colours) ** 2).sum())
