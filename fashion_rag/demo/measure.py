"""Colour and pattern of a painted garment, read from pixels: no network, so no network can flatter itself.

The world knows where a garment shows and where a second colour would be under each pattern (`draw.pattern_maps`). For
every pattern the two best colours are fitted to the pixels; the pattern that leaves the least error names it, and its
first colour names the nearest entry of the palette. Called by the demo's evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fashion_rag.demo.world import PALETTE, lab

Floats = NDArray[np.float64]

FULL_COVERAGE = 0.99
# A second colour must differ this much in CIE Lab to be seen as one, and explain this share of the variation.
MIN_CONTRAST = 15.0
MIN_EXPLAINED = 0.4
_NAMES = tuple(PALETTE)
_LAB = np.stack([lab(PALETTE[name]) for name in _NAMES])


@dataclass(frozen=True)
class Reading:
    """What the pixels say; second_colour is None for a plain garment."""

    colour: str
    pattern: str
    second_colour: str | None


def read_garment(image: NDArray[np.uint8], coverage: Floats, patterns: Mapping[str, Floats]) -> Reading:
    """Colours and pattern of the garment in `image` uint8 [H, W, 3].

    coverage, patterns: [H, W] as from `draw.pattern_maps`. Raises ValueError where no pixel is fully garment.
    """
    inside = coverage >= FULL_COVERAGE
    if not inside.any():
        raise ValueError("coverage: no pixel shows the garment alone")
    pixels = image[inside].astype(np.float64)
    spread = float(((pixels - pixels.mean(axis=0)) ** 2).sum())
    fits = {name: _fit(pixels, share[inside]) for name, share in patterns.items()}
    pattern = min(fits, key=lambda name: fits[name][2])
    first, second, error = fits[pattern]
    contrast = float(np.linalg.norm(_lab(first) - _lab(second)))
    if contrast < MIN_CONTRAST or error > (1 - MIN_EXPLAINED) * spread:
        return Reading(nearest_colour(np.median(pixels, axis=0)), "plain", None)
    return Reading(nearest_colour(first), pattern, nearest_colour(second))


def nearest_colour(rgb: Floats) -> str:
    """The palette's colour nearest to `rgb` (0..255) in CIE Lab."""
    return _NAMES[int(np.linalg.norm(_LAB - _lab(rgb), axis=1).argmin())]


def _lab(rgb: Floats) -> Floats:
    red, green, blue = np.clip(rgb, 0, 255)
    return lab((red, green, blue))


def _fit(pixels: Floats, share: Floats) -> tuple[Floats, Floats, float]:
    """The two colours whose mixture by `share` [n] comes nearest to `pixels` [n, 3], and the squared error left."""
    basis = np.stack([1 - share, share], axis=1)
    colours, _, rank, _ = np.linalg.lstsq(basis, pixels, rcond=None)
    if rank < 2:
        return pixels.mean(axis=0), pixels.mean(axis=0), float("inf")
    return colours[0], colours[1], float(((pixels - basis @ colours) ** 2).sum())
