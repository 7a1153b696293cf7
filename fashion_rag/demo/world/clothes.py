"""The garments of a paper doll as layers of polygons on a skeleton, worn or in the shop. `draw` calls it."""

from collections.abc import Sequence

import numpy as np

from fashion_rag.demo.world.attributes import PALETTE, Colour, DollGarment
from fashion_rag.demo.world.figure import LABELS, Cloth, Layer, Points, Skeleton, ellipse, limb, moved, shade

WAIST_Y, SHOULDER_Y = 46.0, 26.0
# The row of the hem for each length.
LENGTHS = {"thigh": 64.0, "knee": 69.0, "cropped": 79.0, "ankle": 83.0, "full": 85.0}
# The left half of the bodice of each kind as points (dx, y), from the collar to the hem.
BODICES: dict[str, list[tuple[float, float]]] = {
    "t-shirt": [(-3.4, 25.0), (-11.4, 26.4), (-10.4, 34), (-9.4, 42), (-10.4, 50.5)],
    "tank top": [(-4.4, 25.4), (-7.6, 25.8), (-8.2, 31), (-10.0, 34), (-8.8, 42), (-10.2, 50.5)],
    "shirt": [(-3.4, 25.0), (-11.4, 26.2), (-10.8, 34), (-10.2, 42), (-11.0, 52.5)],
    "sweater": [(-3.4, 25.0), (-12.0, 26.2), (-11.6, 34), (-11.2, 42), (-11.0, 51.5)],
    "hoodie": [(-3.4, 25.0), (-12.0, 26.2), (-11.8, 34), (-11.8, 44), (-11.2, 52.5)],
    "summer dress": [(-6.0, 30.5), (-9.8, 31.0), (-9.6, 35), (-7.8, 43), (-10.4, 52), (-15.5, 69)],
    "shift dress": [(-3.4, 25.0), (-11.4, 26.4), (-10.4, 34), (-10.0, 43), (-11.0, 54), (-11.6, 68)],
    "gown, long sleeves": [(-3.4, 25.0), (-11.4, 26.4), (-9.8, 34), (-7.8, 43), (-10.6, 52), (-18.5, 87)],
    "gown": [(-6.0, 30.5), (-9.8, 31.0), (-9.6, 35), (-7.8, 43), (-10.6, 52), (-18.5, 87)],
}


def garment_layers(
    skeleton: Skeleton, garment: DollGarment, neck: Layer | None, arms: Sequence[Layer] = ()
) -> list[Layer]:
    """Return the layers of a garment from back to front.

    neck: the layer that shows in the neck opening; None in the shop. arms: the layers between the bodice and the
    sleeves; empty in the shop.
    """
    if garment.category == "lower_body":
        return _lower_layers(skeleton, garment)
    return _upper_layers(skeleton, garment, neck, arms)


def _lower_layers(skeleton: Skeleton, garment: DollGarment) -> list[Layer]:
    """Return the layers of trousers, shorts or a skirt."""
    bottom = LENGTHS[garment.length]
    if garment.kind in ("trousers", "shorts"):
        hips = skeleton.outline([(-8.6, WAIST_Y), (-9.8, 50.5), (-9.8, 54), (-1, 57)])
        polygons = [hips, *_trouser_leg(skeleton, garment, -1), *_trouser_leg(skeleton, garment, 1)]
    else:
        hem = 15.5 if garment.length == "knee" else 14.5
        polygons = [skeleton.outline([(-8.6, WAIST_Y), (-10.4, 51), (-hem, bottom), (-hem / 2, bottom + 1)])]
    return [_fabric(skeleton, garment, tuple(polygons), WAIST_Y, bottom)]


def _trouser_leg(skeleton: Skeleton, garment: DollGarment, side: int) -> list[Points]:
    """Return the polygons of one leg of trousers or shorts."""
    hip, knee, ankle = skeleton.leg(side)
    if garment.length == "thigh":
        end = moved(hip + 0.74 * (knee - hip), side, 0)
        return [_tube(hip, end, 4.9, 5.0)]
    end = ankle if garment.length == "full" else knee + 0.62 * (ankle - knee)
    return [_tube(hip, knee, 4.9, 4.3), limb(knee, knee, 4.3, 4.3), _tube(knee, end, 4.3, 4.0)]


def _tube(a: Points, b: Points, ra: float, rb: float) -> Points:
    """Return a polygon round the segment a-b with square ends of half-width `ra` and `rb`."""
    across = (b - a)[::-1] * (-1, 1) / np.linalg.norm(b - a)
    return np.stack([a + ra * across, b + rb * across, b - rb * across, a - ra * across])


def _upper_layers(skeleton: Skeleton, garment: DollGarment, neck: Layer | None, arms: Sequence[Layer]) -> list[Layer]:
    """Return the layers of a top or a dress."""
    bodice = BODICES.get(f"{garment.kind}, {garment.sleeve} sleeves", BODICES[garment.kind])
    top, bottom = bodice[0][1], bodice[-1][1]
    anchor = SHOULDER_Y if top < 30 else top
    polygons = [skeleton.outline(bodice)]
    if garment.sleeve == "straps":
        polygons += [limb(skeleton.at(dx, 25.8), skeleton.at(dx, 32), 1.0, 1.2) for dx in (-5.6, 5.6)]
    layers = [_fabric(skeleton, garment, tuple(polygons), anchor, bottom)]
    layers += _neckline(skeleton, garment, neck)
    layers += arms
    if garment.sleeve in ("short", "long"):
        for side in (-1, 1):
            layers.append(_fabric(skeleton, garment, _sleeve(skeleton, garment, side), anchor, bottom))
    return layers + _details(skeleton, garment, bottom)


def _sleeve(skeleton: Skeleton, garment: DollGarment, side: int) -> tuple[Points, ...]:
    """Return the polygons of one sleeve."""
    shoulder, elbow, wrist = skeleton.arm(side)
    extra_width = 0.7 if garment.kind in ("sweater", "hoodie") else 0.0
    if garment.sleeve == "short":
        return (limb(shoulder, shoulder, 3.5, 3.5), _tube(shoulder, shoulder + 0.72 * (elbow - shoulder), 3.5, 4.2))
    cuff = elbow + 0.88 * (wrist - elbow)
    upper = limb(shoulder, elbow, 3.5 + extra_width, 3.0 + extra_width)
    return (upper, _tube(elbow, cuff, 3.0 + extra_width, 2.7 + extra_width))


def _neckline(skeleton: Skeleton, garment: DollGarment, neck: Layer | None) -> list[Layer]:
    """Return the neck opening. It shows the skin when the garment is worn, and the inside of its back in the shop."""
    colour = PALETTE[garment.colour]
    if garment.kind == "tank top" and garment.neckline == "round":
        opening = ellipse(skeleton.at(0, 25.4), 5.4, 5.4, 0, 180)
    elif garment.neckline in ("round", "hood") and garment.sleeve != "straps":
        opening = ellipse(skeleton.at(0, 25.2), 4.6, 3.6, 0, 180)
    elif garment.neckline == "v" and garment.sleeve != "straps":
        opening = np.stack([skeleton.at(-4.6, 25.2), skeleton.at(0, 32.5), skeleton.at(4.6, 25.2)])
    elif garment.neckline == "v":
        opening = np.stack([skeleton.at(-4.6, 30.2), skeleton.at(0, 35.5), skeleton.at(4.6, 30.2)])
    elif garment.neckline == "collar":
        opening = np.stack([skeleton.at(-3.4, 25.2), skeleton.at(0, 29.5), skeleton.at(3.4, 25.2)])
    else:
        return [] if neck is None else [neck]
    if neck is None:
        return [Layer((opening,), shade(colour, 0.55), None, shade(colour))]
    return [Layer((opening,), neck.fill, neck.label, shade(colour)), neck]


def _details(skeleton: Skeleton, garment: DollGarment, bottom: float) -> list[Layer]:
    """Return the collar, buttons, hood, pocket or ribbing, by which the kinds can be told apart."""
    colour = PALETTE[garment.colour]
    dark = shade(colour, 0.86)
    label = LABELS[garment.category]

    def quad(*points: tuple[float, float]) -> Points:
        return np.stack([skeleton.at(dx, y) for dx, y in points])

    if garment.neckline == "collar":
        collars = tuple(quad((side * 3.0, 23.8), (side * 6.2, 26.4), (side * 4.0, 31.0), (0, 28.6)) for side in (-1, 1))
        buttons = tuple(ellipse(skeleton.at(0, y), 0.95, 0.95) for y in (33.5, 38.5, 43.5, 48.5))
        placket = quad((-0.3, 29), (0.3, 29), (0.3, bottom - 0.5), (-0.3, bottom - 0.5))
        return [Layer((placket, *buttons), shade(colour, 0.55), label), Layer(collars, colour, label, dark)]
    if garment.neckline == "hood":
        hood = tuple(limb(skeleton.at(side * 5.8, 24.4), skeleton.at(side * 1.6, 29.6), 2.3, 1.6) for side in (-1, 1))
        pocket = quad((-4.0, 43.5), (4.0, 43.5), (6.6, 49.5), (-6.6, 49.5))
        strings = tuple(limb(skeleton.at(dx, 30.5), skeleton.at(dx, 36), 0.5, 0.5) for dx in (-1.8, 1.8))
        line = shade(colour, 0.6)
        return [
            Layer(hood, dark, label, line),
            Layer((pocket,), dark, label, line),
            Layer(strings, (240, 236, 226), label),
        ]
    if garment.kind == "sweater":
        ribs = [quad((-10.6, bottom - 2.6), (10.6, bottom - 2.6), (10.4, bottom + 0.6), (-10.4, bottom + 0.6))]
        if garment.neckline == "high":
            ribs.append(quad((-3.6, 22.6), (3.6, 22.6), (4.2, 26.8), (-4.2, 26.8)))
        return [Layer(tuple(ribs), dark, label, shade(colour, 0.6))]
    return []


def _fabric(skeleton: Skeleton, garment: DollGarment, polygons: tuple[Points, ...], top: float, bottom: float) -> Layer:
    """Return the layer of a piece of cloth whose pattern spans the rows from `top` to `bottom`."""
    top_row, bottom_row = skeleton.row(top), skeleton.row(bottom)
    cloth = Cloth(garment, skeleton.centre, top_row, (top_row + bottom_row) / 2)
    colour: Colour = PALETTE[garment.colour]
    return Layer(polygons, colour, LABELS[garment.category], shade(colour), cloth)
