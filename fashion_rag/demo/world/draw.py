"""The renderer of the paper-doll world: pure functions from attributes to pixels.

`layout` calls it to write the pictures to disk, and the evaluations call it to compare edited pictures with.
The argument `size` is everywhere the (height, width) of a 4:3 portrait picture in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fashion_rag.demo.world.attributes import PALETTE, PATTERNS, Body, Colour, DollGarment, DollPerson
from fashion_rag.demo.world.clothes import garment_layers
from fashion_rag.demo.world.figure import (
    FLOOR_TOP,
    FLOOR_Y,
    HEIGHT,
    NEUTRAL_POSE,
    SKIRT,
    WIDTH,
    Cloth,
    Layer,
    Points,
    Skeleton,
    arm_layer,
    ellipse,
    hair_behind,
    head_layers,
    keypoints,
    leg_layers,
    neck_layer,
    torso_layer,
)
from fashion_rag.demo.world.patterns import second_colour_of

DEFAULT_SIZE = (96, 72)
OUTLINE_WIDTH = 0.65
# How many times larger a map is painted of which every pixel's centre is read. It must be odd.
CENTRED = 9
WHITE: Colour = (255, 255, 255)
# The share of an in-shop picture's height or width that the garment fills.
SHOP_FILL = 0.84


@dataclass(frozen=True, eq=False)
class Rendering:
    """A picture of a person with its label map and key points.

    image: uint8 [H, W, 3]. label_map: Dress Code's classes 0 to 17, uint8 [H, W]. keypoints: (x, y) in pixels in the
    order of OpenPose, float64 [18, 2].
    """

    image: NDArray[np.uint8]
    label_map: NDArray[np.uint8]
    keypoints: Points


def render(person: DollPerson, size: tuple[int, int] = DEFAULT_SIZE) -> Rendering:
    """Return the picture of a person with its label map and key points."""
    skeleton = Skeleton(person.body, person.pose)
    layers = _person_layers(skeleton, person)
    scale = size[0] / HEIGHT
    canvas = _paint(_background(skeleton, person) + layers, size)
    return Rendering(canvas, _label_map(layers, size), keypoints(skeleton) * scale)


@dataclass(frozen=True)
class Placement:
    """Where a person stands in a picture of any shape.

    scale: the pixels of the picture for a 96th of the height of the person's own picture. left, top: the pixel of the
    picture at which the upper left corner of the person's own picture lies.
    """

    scale: float
    left: float
    top: float


@dataclass(frozen=True, eq=False)
class PersonTruth:
    """What is known of a person in a picture of any shape.

    label_map: Dress Code's classes of this person alone, with 5 for a skirt, uint8 [H, W]. keypoints: (x, y) in pixels,
    inside the picture or not, float64 [18, 2].
    """

    label_map: NDArray[np.uint8]
    keypoints: Points


def render_into(
    background: NDArray[np.uint8], person: DollPerson, place: Placement, has_shadow: bool = False
) -> tuple[NDArray[np.uint8], PersonTruth]:
    """Return a picture, uint8 [H, W, 3], with a person painted on it, and the truth about them.

    has_shadow: paint the shadow under the feet, in the colour that the person's own floor gives it.
    """
    height, width = background.shape[:2]
    factor = _supersampling((height, width))
    skeleton = Skeleton(person.body, person.pose)
    layers = _person_layers(skeleton, person)
    offset = np.array([place.left, place.top]) / place.scale
    shadow = _background(skeleton, person)[2:] if has_shadow else []
    canvas = Image.fromarray(background).resize((width * factor, height * factor), Image.Resampling.NEAREST)
    _paint_layers(canvas, _transformed(shadow + layers, 1.0, offset), place.scale * factor)
    points = keypoints(skeleton) * place.scale + np.array([place.left, place.top])
    true_layers = _transformed([_with_true_class(layer) for layer in layers], 1.0, offset)
    label_map = _centre_labels(true_layers, (height, width), place.scale)
    return np.array(canvas.reduce(factor)), PersonTruth(label_map, points)


def _with_true_class(layer: Layer) -> Layer:
    """Return the layer with Dress Code's class for a skirt, if it shows one."""
    if layer.cloth is None or "skirt" not in layer.cloth.garment.kind:
        return layer
    return replace(layer, label=SKIRT)


def _centre_labels(layers: Sequence[Layer], size: tuple[int, int], scale: float) -> NDArray[np.uint8]:
    """Return the classes at the pixels' centres, uint8 [H, W]. scale: pixels for a unit.

    Pillow paints every pixel that a polygon touches. On a map of CENTRED times the size, the pixel in the middle of
    a pixel of the label map is painted only if the polygon comes very near its centre. This matters: shoes in a photo
    of 192x144 were 7 % too large where the map had three times the size.
    """
    labels = Image.new("L", (CENTRED * size[1], CENTRED * size[0]))
    _paint_labels(labels, layers, CENTRED * scale)
    return np.array(labels)[CENTRED // 2 :: CENTRED, CENTRED // 2 :: CENTRED]


def render_garment(garment: DollGarment, size: tuple[int, int] = DEFAULT_SIZE) -> NDArray[np.uint8]:
    """Return the in-shop picture of a garment, uint8 [H, W, 3]. The garment is large and on white."""
    return _paint(_shop_layers(garment), size)


def pattern_maps(
    person: DollPerson, category: str, size: tuple[int, int] = DEFAULT_SIZE
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """Return where the garment of `category` shows, and where each pattern would have its second colour.

    The first result is the coverage, float64 [H, W]: the share 0..1 of each pixel that shows the garment's fabric. The
    second holds a map for each pattern but plain, float64 [H, W]: the share of the pixel that would be fabric in the
    second colour, at most the coverage. A pixel of `render` with coverage 1 and share s has the colour
    (1 - s) * colour + s * second colour. Raises KeyError if the person wears no garment of `category`.
    """
    garment = person.worn(category)
    skeleton = Skeleton(person.body, person.pose)
    factor = _supersampling(size)
    visible = Image.new("L", (size[1] * factor, size[0] * factor))
    draw = ImageDraw.Draw(visible)
    scale = size[0] / HEIGHT * factor
    worn: Cloth | None = None
    for layer in _person_layers(skeleton, person):
        if layer.outline is not None:
            _draw_outline(draw, layer, 0, scale)
        is_garment = layer.cloth is not None and layer.cloth.garment is garment
        if is_garment:
            worn = layer.cloth
        for polygon in layer.polygons:
            draw.polygon(_flat(polygon, scale), fill=255 if is_garment else 0)
    assert worn is not None
    maps = {}
    mask = np.asarray(visible)
    for pattern in PATTERNS[1:]:
        second = second_colour_of(worn, pattern, (0, 0, visible.width, visible.height), scale)
        maps[pattern] = _shares(Image.fromarray(np.where(second, mask, np.uint8(0))), factor)
    return _shares(visible, factor), maps


def _shares(mask: Image.Image, factor: int) -> NDArray[np.float64]:
    """Return the share of each pixel that a mask of `factor` times the size covers, in 0..1."""
    return np.asarray(mask.reduce(factor), dtype=np.float64) / 255


def _person_layers(skeleton: Skeleton, person: DollPerson) -> list[Layer]:
    """Return the layers in front of the background, from back to front."""
    layers = hair_behind(skeleton, person.hair)
    for side in (-1, 1):
        layers += leg_layers(skeleton, side, person)
    layers.append(torso_layer(skeleton, person.skin))
    neck = neck_layer(skeleton, person.skin)
    arms = [arm_layer(skeleton, side, person.skin) for side in (-1, 1)]
    for garment in person.outfit:
        layers += garment_layers(skeleton, garment, neck, arms)
    return layers + head_layers(skeleton, person)


def _background(skeleton: Skeleton, person: DollPerson) -> list[Layer]:
    """Return the wall, the floor and the shadow under the feet."""
    wall, floor = person.background
    shadow: Colour = (round(floor[0] * 0.88), round(floor[1] * 0.88), round(floor[2] * 0.88))
    return [
        Layer((_rectangle(0, HEIGHT),), wall),
        Layer((_rectangle(FLOOR_TOP, HEIGHT),), floor),
        Layer((ellipse(skeleton.at(0, FLOOR_Y), 17, 2.4),), shadow),
    ]


def _rectangle(top: float, bottom: float) -> Points:
    return np.array([[0, top], [WIDTH, top], [WIDTH, bottom], [0, bottom]])


def _shop_layers(garment: DollGarment) -> list[Layer]:
    """Return a white background and the garment on a neutral skeleton, enlarged in the middle of the canvas."""
    layers = garment_layers(Skeleton(Body(1, 1, 0), NEUTRAL_POSE), garment, None)
    points = np.concatenate([polygon for layer in layers for polygon in layer.polygons])
    low, high = points.min(axis=0), points.max(axis=0)
    scale = float(SHOP_FILL * min((WIDTH, HEIGHT) / (high - low)))
    offset = np.array([WIDTH, HEIGHT]) / 2 - scale * (low + high) / 2

    return [Layer((_rectangle(0, HEIGHT),), WHITE), *_transformed(layers, scale, offset)]


def _transformed(layers: Sequence[Layer], scale: float, offset: Points) -> list[Layer]:
    """Return layers enlarged by `scale` about the upper left corner and then moved by `offset`, float64 [2]."""
    transformed = []
    for layer in layers:
        cloth = layer.cloth
        if cloth is not None:
            cloth = Cloth(
                garment=cloth.garment,
                centre=offset[0] + scale * cloth.centre,
                top=offset[1] + scale * cloth.top,
                middle=offset[1] + scale * cloth.middle,
                scale=scale * cloth.scale,
            )
        polygons = tuple(offset + scale * polygon for polygon in layer.polygons)
        transformed.append(replace(layer, polygons=polygons, cloth=cloth))
    return transformed


def _supersampling(size: tuple[int, int]) -> int:
    """Return how many times larger along each side a picture is drawn before it is reduced to `size`."""
    return 4 if size[0] <= 192 else 2


def _flat(polygon: Points, scale: float) -> list[float]:
    """Return the coordinates of a polygon in pixels as Pillow wants them, where pixel centres are whole numbers."""
    return (polygon * scale - 0.5).ravel().tolist()


def _draw_outline(draw: ImageDraw.ImageDraw, layer: Layer, ink: Colour | int, scale: float) -> None:
    for polygon in layer.polygons:
        closed = np.concatenate([polygon, polygon[:2]])
        draw.line(_flat(closed, scale), fill=ink, width=round(2 * OUTLINE_WIDTH * scale), joint="curve")


def _paint(layers: Sequence[Layer], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the picture, uint8 [H, W, 3], of layers given from back to front."""
    factor = _supersampling(size)
    canvas = Image.new("RGB", (size[1] * factor, size[0] * factor))
    _paint_layers(canvas, layers, size[0] / HEIGHT * factor)
    return np.array(canvas.reduce(factor))


def _paint_layers(canvas: Image.Image, layers: Sequence[Layer], scale: float) -> None:
    """Paint layers on the canvas, from back to front. scale: the pixels of the canvas for a unit."""
    draw = ImageDraw.Draw(canvas)
    for layer in layers:
        if layer.outline is not None:
            _draw_outline(draw, layer, layer.outline, scale)
        for polygon in layer.polygons:
            draw.polygon(_flat(polygon, scale), fill=layer.fill)
        if layer.cloth is not None and layer.cloth.garment.second_colour is not None:
            _paint_pattern(canvas, layer.polygons, layer.cloth, scale)


def _paint_pattern(canvas: Image.Image, polygons: Sequence[Points], cloth: Cloth, scale: float) -> None:
    """Paint the second colour of a cloth inside its polygons."""
    assert cloth.garment.second_colour is not None
    points = np.concatenate(polygons) * scale
    left, top = np.maximum(np.floor(points.min(axis=0)).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 2, canvas.size)
    if left >= right or top >= bottom:
        return
    mask = Image.new("L", (int(right - left), int(bottom - top)))
    draw = ImageDraw.Draw(mask)
    for polygon in polygons:
        draw.polygon(_flat(polygon - np.array([left, top]) / scale, scale), fill=255)
    second = second_colour_of(cloth, cloth.garment.pattern, (left, top, right, bottom), scale)
    mask = Image.fromarray(np.where(second, np.asarray(mask), np.uint8(0)))
    canvas.paste(PALETTE[cloth.garment.second_colour], (int(left), int(top)), mask)


def _label_map(layers: Sequence[Layer], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the label map, uint8 [H, W], of layers given from back to front."""
    labels = Image.new("L", (size[1], size[0]))
    _paint_labels(labels, layers, size[0] / HEIGHT)
    return np.array(labels)


def _paint_labels(labels: Image.Image, layers: Sequence[Layer], scale: float) -> None:
    """Paint the classes of layers on a label map, from back to front. scale: the pixels of the map for a unit."""
    draw = ImageDraw.Draw(labels)
    for layer in layers:
        if layer.label is not None:
            for polygon in layer.polygons:
                draw.polygon(_flat(polygon, scale), fill=layer.label)
