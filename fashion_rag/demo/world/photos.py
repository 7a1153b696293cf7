"""Drawn photos of paper dolls with their truth: pictures of any shape, with persons of any size in any place.

The label map is that of Dress Code, in which a skirt is class 5. The training of the demo's human parser and pose
estimator draws its cases here, and so do the evaluations of what is found in a photo.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fashion_rag.data.window import Box, box_of
from fashion_rag.demo.world.attributes import DollGarment, DollPerson, sample_garment, sample_person
from fashion_rag.demo.world.backgrounds import draw_background, draw_room
from fashion_rag.demo.world.draw import PersonTruth, Placement, render_into
from fashion_rag.demo.world.figure import FLOOR_TOP, FLOOR_Y, HEIGHT, WIDTH

# Returns a random garment of a category.
GarmentSource: TypeAlias = Callable[[np.random.Generator, str], DollGarment]

# The shapes of photos as (height, width) in relation to each other, and how often each is drawn.
SHAPES = ((4, 3), (3, 4), (1, 1), (16, 9), (9, 16), (2, 1))
SHAPE_SHARES = (0.45, 0.15, 0.15, 0.1, 0.1, 0.05)
# The longer side of photos in pixels, as ranges, and how often each range is drawn.
LONG_SIDES = ((192, 192), (128, 200), (200, 320))
LONG_SIDE_SHARES = (0.3, 0.3, 0.4)
# How often a photo shows a person in the frame of the drawn world, a whole person elsewhere, or a part of a person.
VIEWS = ("frame", "whole", "upper", "lower", "portrait", "off_edge")
VIEW_SHARES = (0.4, 0.28, 0.1, 0.08, 0.06, 0.08)
NOBODY_SHARE = 0.04
SECOND_PERSON_SHARE = 0.5
# The least pixels for a 96th of a person's own picture, below which no garment can be made out.
MIN_SCALE = 0.7
# The row of a person's own picture above which little but a bun is drawn.
TOP_Y = 3.0
MIRRORED_CLASSES = ((9, 10), (12, 13), (14, 15))
# For each of OpenPose's 18 points, the point on the person's other side.
MIRRORED_POINTS = (0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16)


@dataclass(frozen=True, eq=False)
class DollPhoto:
    """A drawn photo and the truth about it.

    image: uint8 [H, W, 3]. label_map: the classes of everybody in the photo, uint8 [H, W]. person_map: the classes of
    the largest person alone, uint8 [H, W]. keypoints: their 18 OpenPose points (x, y) in pixels, (0, 0) for a point
    outside the photo, float64 [18, 2]. head_size: the distance between their ears in pixels. Without a person, the maps
    and the points are zero. person: the largest person; None for nobody.
    """

    image: NDArray[np.uint8]
    label_map: NDArray[np.uint8]
    person_map: NDArray[np.uint8]
    keypoints: NDArray[np.float64]
    head_size: float
    person: DollPerson | None

    @property
    def box(self) -> Box | None:
        """Return the box round the largest person in pixels; None for nobody."""
        return box_of(self.person_map > 0)


def sample_photo(rng: np.random.Generator, garments: GarmentSource = sample_garment) -> DollPhoto:
    """Return a random photo. garments: what draws the garments."""
    size = _sample_size(rng)
    if rng.random() < NOBODY_SHARE:
        empty = np.zeros(size, np.uint8)
        return DollPhoto(draw_background(rng, size), empty, empty, np.zeros((18, 2)), 0.0, None)
    person = sample_dressed(rng, garments)
    view = VIEWS[int(rng.choice(len(VIEWS), p=VIEW_SHARES))]
    if view == "frame":
        size = (size[0], round(size[0] * WIDTH / HEIGHT))
    place = _sample_place(rng, size, view)
    has_room = rng.random() < (0.8 if view == "frame" else 0.3)
    if has_room:
        image = draw_room(size, person.background, horizon=place.top + place.scale * FLOOR_TOP)
    else:
        image = draw_background(rng, size)
    label_map = np.zeros(size, np.uint8)
    # Of a person at the edge, less may be seen than of a smaller one beside them.
    has_neighbour = view != "off_edge" and rng.random() < SECOND_PERSON_SHARE
    neighbour_place = _beside(rng, size, place) if has_neighbour else None
    if neighbour_place is not None:
        image, neighbour = render_into(image, sample_dressed(rng, garments), neighbour_place, has_shadow=has_room)
        label_map = neighbour.label_map
    image, truth = render_into(image, person, place, has_shadow=has_room)
    label_map = np.where(truth.label_map > 0, truth.label_map, label_map)
    photo = _photo(image, label_map, truth, person)
    return mirrored(photo) if rng.random() < 0.3 else photo


def sample_dressed(rng: np.random.Generator, garments: GarmentSource = sample_garment) -> DollPerson:
    """Return a random person who wears a dress, or garments of the upper and lower body, all in any pattern."""
    if rng.random() < 1 / 3:
        return sample_person(rng, "dresses", garments(rng, "dresses"))
    upper = garments(rng, "upper_body")
    person = sample_person(rng, "upper_body", upper)
    return replace(person, outfit=(garments(rng, "lower_body"), upper))


def mirrored(photo: DollPhoto) -> DollPhoto:
    """Return the photo seen in a mirror: left and right are exchanged in the picture, the classes and the points."""
    classes = np.arange(256, dtype=np.uint8)
    for left, right in MIRRORED_CLASSES:
        classes[left], classes[right] = right, left
    points = photo.keypoints[list(MIRRORED_POINTS)]
    present = points.any(axis=1)
    points[present, 0] = photo.image.shape[1] - points[present, 0]
    return replace(
        photo,
        image=np.ascontiguousarray(photo.image[:, ::-1]),
        label_map=classes[photo.label_map[:, ::-1]],
        person_map=classes[photo.person_map[:, ::-1]],
        keypoints=points,
    )


def _photo(image: NDArray[np.uint8], label_map: NDArray[np.uint8], truth: PersonTruth, person: DollPerson) -> DollPhoto:
    """Return the photo with the points outside of it at (0, 0)."""
    points = truth.keypoints
    limits = np.array(image.shape[1::-1])
    is_inside = np.all((points >= 0) & (points < limits), axis=1, keepdims=True)
    head_size = float(np.linalg.norm(points[16] - points[17]))
    return DollPhoto(image, label_map, truth.label_map, np.where(is_inside, points, 0.0), head_size, person)


def _sample_size(rng: np.random.Generator) -> tuple[int, int]:
    """Return the (height, width) of a photo in pixels."""
    low, high = LONG_SIDES[int(rng.choice(len(LONG_SIDES), p=LONG_SIDE_SHARES))]
    shape = SHAPES[int(rng.choice(len(SHAPES), p=SHAPE_SHARES))]
    unit = rng.integers(low, high, endpoint=True) / max(shape)
    return round(unit * shape[0]), round(unit * shape[1])


def _sample_place(rng: np.random.Generator, size: tuple[int, int], view: str) -> Placement:
    """Return the place of the largest person in a photo of `size`."""
    height, width = size
    if view == "frame":
        return Placement(height / HEIGHT, 0.0, 0.0)
    person_height = FLOOR_Y - TOP_Y
    match view:
        case "whole" | "off_edge":
            scale = height / person_height * rng.uniform(0.45, 0.98)
            top_row = TOP_Y - rng.uniform(0, 1) * max(height / scale - person_height, 0)
        case "upper":
            scale = height / rng.uniform(40, 62)
            top_row = rng.uniform(-6, 4)
        case "lower":
            shown = rng.uniform(42, 60)
            scale = height / shown
            top_row = FLOOR_Y + rng.uniform(0, 5) - shown
        case _:
            scale = height / rng.uniform(26, 38)
            top_row = rng.uniform(-3, 4)
    scale = max(scale, MIN_SCALE)
    if view == "off_edge":
        centre = width * rng.choice([rng.uniform(0.0, 0.15), rng.uniform(0.85, 1.0)])
    else:
        reach = min(20 * scale, width / 2)
        centre = rng.uniform(reach, width - reach) if rng.random() < 0.7 else width / 2
    return Placement(scale, float(centre - scale * WIDTH / 2), -top_row * scale)


def _beside(rng: np.random.Generator, size: tuple[int, int], place: Placement) -> Placement | None:
    """Return a place beside the largest person for a smaller one; None if there is no room for them."""
    scale = max(place.scale * rng.uniform(0.4, 0.8), MIN_SCALE)
    centre = place.left + place.scale * WIDTH / 2
    distance = (place.scale + scale) * rng.uniform(24, 30)
    sides = [side for side in (-1, 1) if 0 <= centre + side * distance <= size[1]]
    if scale > 0.85 * place.scale or not sides:
        return None
    left = centre + sides[int(rng.integers(len(sides)))] * distance - scale * WIDTH / 2
    feet = place.top + place.scale * FLOOR_Y
    return Placement(scale, float(left), float(feet - rng.uniform(0, 10) * scale - scale * FLOOR_Y))
