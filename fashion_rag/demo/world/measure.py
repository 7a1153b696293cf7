"""Colour and pattern of a painted garment, read from pixels: no network, so no network can flatter itself.

The world knows where a garment shows and where a second colour would be under each pattern (`draw.pattern_maps`). For
every pattern the two best colours are fitted to the pixels, and the pattern that leaves the least error is the one
read. The main colour is simply what most pixels are nearest to. Called by the demo's evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fashion_rag.demo.world.attributes import PALETTE, DollGarment, lab

Floats = NDArray[np.float64]

FULL_COVERAGE = 0.99
# A second colour must differ this much in CIE Lab to be seen as one, and explain this share of the variation.
MIN_CONTRAST = 15.0
MIN_EXPLAINED = 0.4
# A colour on this share of a garment is one of its main colours.
MAIN_SHARE = 0.4
_NAMES = tuple(PALETTE)
_LAB = np.stack([lab(PALETTE[name]) for name in _NAMES])


@dataclass(frozen=True)
class Reading:
    """What the pixels say; second_colour is None for a plain garment."""

    colour: str
    pattern: str
    second_colour: str | None


def read_garment(image: NDArray[np.uint8], coverage: Floats, patterns: Mapping[str, Floats]) -> Reading:
    """Return the colours and pattern of the garment in `image` uint8 [H, W, 3].

    coverage, patterns: [H, W] as from `draw.pattern_maps`. Raises ValueError where no pixel is fully garment.
    """
    inside = _inside(coverage)
    pixels = image[inside].astype(np.float64)
    spread = float(((pixels - pixels.mean(axis=0)) ** 2).sum())
    fits = {name: _fit(pixels, share[inside]) for name, share in patterns.items()}
    pattern = min(fits, key=lambda name: fits[name][2])
    first, second, error = fits[pattern]
    contrast = float(np.linalg.norm(lab(np.clip(first, 0, 255)) - lab(np.clip(second, 0, 255))))
    if contrast < MIN_CONTRAST or error > (1 - MIN_EXPLAINED) * spread:
        return Reading(nearest_colour(np.median(pixels, axis=0)), "plain", None)
    return Reading(nearest_colour(first), pattern, nearest_colour(second))


def main_colour(image: NDArray[np.uint8], coverage: Floats) -> str:
    """Return the palette's colour that most pixels of the garment in `image` uint8 [H, W, 3] are nearest to.

    coverage: [H, W] as from `draw.pattern_maps`. Raises ValueError where no pixel is fully garment.
    """
    return _NAMES[int(np.bincount(_nearest(image[_inside(coverage)])).argmax())]


def main_colours(garment: DollGarment, coverage: Floats, patterns: Mapping[str, Floats]) -> set[str]:
    """Return what `main_colour` may say of `garment`: the colours that cover 40 % or more of what shows of it.

    Stripes, checks and two tones share the garment about equally, so that neither of their colours is its only one.
    """
    if garment.second_colour is None:
        return {garment.colour}
    second = float(patterns[garment.pattern][_inside(coverage)].mean())
    shares = {garment.colour: 1 - second, garment.second_colour: second}
    return {colour for colour, share in shares.items() if share >= MAIN_SHARE}


def nearest_colour(rgb: Floats) -> str:
    """Return the palette's colour nearest to `rgb` (0..255) in CIE Lab."""
    return _NAMES[int(_nearest(rgb))]


def _nearest(rgb: NDArray[Any]) -> NDArray[np.int64]:
    """Return the numbers [...] of the palette's colours nearest to `rgb` [..., 3]."""
    distance = np.linalg.norm(lab(np.clip(rgb, 0, 255))[..., None, :] - _LAB, axis=-1)
    nearest: NDArray[np.int64] = distance.argmin(axis=-1)
    return nearest


def _inside(coverage: Floats) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = coverage >= FULL_COVERAGE
    if not inside.any():
        raise ValueError("coverage: no pixel shows the garment alone")
    return inside


def _fit(pixels: Floats, share: Floats) -> tuple[Floats, Floats, float]:
    """Return the two colours whose mixture by `share` [n] comes nearest to `pixels` [n, 3], and the squared
    error left.
    """
    basis = np.stack([1 - share, share], axis=1)
    colours, _, rank, _ = np.linalg.lstsq(basis, pixels, rcond=None)
    if rank < 2:
        return pixels.mean(axis=0), pixels.mean(axis=0), float("inf")
    return colours[0], colours[1], float(((pixels - basis @ colours) ** 2).sum())
