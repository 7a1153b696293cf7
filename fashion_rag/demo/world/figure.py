"""The body of a paper doll: its skeleton, key points and layers of polygons, made from its attributes.

The unit of length is a 96th of the picture height, so the canvas is 96 high and 72 wide; x grows to the right and y
downwards. `clothes` dresses the same skeleton, and `draw` paints the layers of both.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fashion_rag.demo.world.attributes import Arm, Body, Colour, DollGarment, DollPerson, Hair, Pose

Points = NDArray[np.float64]  # [n, 2]

HEIGHT, WIDTH = 96.0, 72.0
# Dress Code's classes. A skirt gets class 6 (trousers) in place of 5, because the repaint mask of lower_body covers
# class 6 and the legs: it would leave out a garment of class 5. `draw.render_into` gives a skirt class 5.
LABELS = {"hair": 2, "upper_body": 4, "lower_body": 6, "dresses": 7, "head": 11}
SKIRT = 5
LEFT_SHOE, RIGHT_SHOE, LEFT_LEG, RIGHT_LEG, LEFT_ARM, RIGHT_ARM = 9, 10, 12, 13, 14, 15
FLOOR_Y = 90.0
# The row at which the floor begins.
FLOOR_TOP = 80
# The factor on all widths of the body.
BREADTH = 1.13
NEUTRAL_POSE = Pose(Arm(26, 20), Arm(26, 20), 1.0, 1.0)


@dataclass(frozen=True)
class Cloth:
    """The fabric of a layer.

    centre, top: the x and y at which its pattern starts. middle: the y at which the second of two tones starts. scale:
    the factor by which the pattern is enlarged.
    """

    garment: DollGarment
    centre: float
    top: float
    middle: float
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Layer:
    """Polygons that are filled in one colour and form one shape.

    label: the class in the label map; None leaves the label map as it is. outline: the colour of the line round the
    shape; None for no line. cloth: the fabric whose pattern is painted on the polygons; None for no fabric.
    """

    polygons: tuple[Points, ...]
    fill: Colour
    label: int | None = None
    outline: Colour | None = None
    cloth: Cloth | None = None


@dataclass(frozen=True)
class Skeleton:
    """The joints and widths of a person.

    The argument `side` of the methods is -1 for the person's right, which is the viewer's left, and 1 for their left.
    """

    body: Body
    pose: Pose

    @property
    def centre(self) -> float:
        """Return the x of the body's centre line."""
        return WIDTH / 2 + self.body.shift

    def at(self, dx: float, y: float) -> Points:
        """Return the point at an offset from the centre line and a row, both given for a body of width and height 1."""
        return np.array([self.centre + dx * BREADTH * self.body.width, self.row(y)])

    def row(self, y: float) -> float:
        """Return the row in the picture of a row on a body of height 1. The feet stay on the floor at any height."""
        return FLOOR_Y - (FLOOR_Y - y) * self.body.height

    def outline(self, half: Iterable[tuple[float, float]]) -> Points:
        """Return a smooth symmetric polygon, given the (dx, y) points of its left half from top to bottom."""
        left = list(half)
        right = [(-dx, y) for dx, y in reversed(left)]
        return smooth(np.array([self.at(dx, y) for dx, y in left + right]))

    def arm(self, side: int) -> tuple[Points, Points, Points]:
        """Return the shoulder, elbow and wrist of an arm."""
        arm = self.pose.left_arm if side > 0 else self.pose.right_arm
        shoulder = self.at(side * 9.8, 29.0)
        elbow = shoulder + 11.0 * self.body.height * _swing(side, arm.upper)
        return shoulder, elbow, elbow + 10.0 * self.body.height * _swing(side, arm.fore)

    def leg(self, side: int) -> tuple[Points, Points, Points]:
        """Return the hip, knee and ankle of a leg."""
        stance = self.pose.left_stance if side > 0 else self.pose.right_stance
        return (
            self.at(side * 5.0, 51.0),
            self.at(side * (4.8 + stance / 2), 69.0),
            self.at(side * (4.4 + stance), 85.5),
        )


def _swing(side: int, degrees: float) -> Points:
    """Return the unit vector from the vertical, `degrees` away from the body."""
    return np.array([side * np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))])


def smooth(points: Points) -> Points:
    """Return the polygon with its corners cut off three times, by Chaikin's algorithm."""
    for _ in range(3):
        following = np.roll(points, -1, axis=0)
        points = np.stack([0.8 * points + 0.2 * following, 0.2 * points + 0.8 * following], axis=1).reshape(-1, 2)
    return points


def ellipse(centre: Points, rx: float, ry: float, start: float = 0.0, stop: float = 360.0) -> Points:
    """Return the points of an ellipse, or of its arc from `start` to `stop`.

    rx, ry: the radii. start, stop: degrees, clockwise from the right.
    """
    angles = np.deg2rad(np.linspace(start, stop, 28))
    return centre + np.stack([rx * np.cos(angles), ry * np.sin(angles)], axis=1)


def moved(point: Points, dx: float, dy: float) -> Points:
    """Return the point moved right and down."""
    return np.array([point[0] + dx, point[1] + dy])


def limb(a: Points, b: Points, ra: float, rb: float) -> Points:
    """Return a polygon round the segment a-b with round ends of radius `ra` and `rb`."""
    along = np.arctan2(*(b - a)[::-1])
    turn = np.linspace(np.pi / 2, 3 * np.pi / 2, 9) + along
    end_a = a + ra * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    end_b = b - rb * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return np.concatenate([end_a, end_b])


def shade(colour: Colour, factor: float = 0.7) -> Colour:
    """Return a darker tone of a colour, in which a line on the colour can be seen.

    A very dark colour gets a lighter tone instead, and a very light one gets an even darker one.
    """
    if sum(colour) < 120:
        return (92, 92, 104)
    if min(colour) > 240:
        factor *= 0.88
    r, g, b = (round(channel * factor) for channel in colour)
    return (r, g, b)


def keypoints(skeleton: Skeleton) -> Points:
    """Return the 18 OpenPose (COCO) key points in 96ths of the picture height: float64 [18, 2]."""
    head = head_centre(skeleton)
    face = [moved(head, dx, dy) for dx, dy in ((0.0, 1.6), (-3.0, 0.2), (3.0, 0.2), (-7.2, 0.8), (7.2, 0.8))]
    neck = skeleton.at(0, 27.0)
    rows = [face[0], neck, *skeleton.arm(-1), *skeleton.arm(1), *skeleton.leg(-1), *skeleton.leg(1), *face[1:]]
    return np.stack(rows)


def head_centre(skeleton: Skeleton) -> Points:
    """Return the middle of the face. Heads have the same size on all bodies."""
    return moved(skeleton.at(0, 26.0), 0, -11.6)


def torso_layer(skeleton: Skeleton, skin: Colour) -> Layer:
    """Return the chest and shoulders, which show beside straps and in neck openings."""
    torso = skeleton.outline([(-2.6, 25.4), (-10.6, 26.6), (-9.6, 33), (-8.0, 42), (-9.6, 50), (-5, 54)])
    return Layer((torso,), skin, LABELS["head"], shade(skin, 0.78))


def neck_layer(skeleton: Skeleton, skin: Colour) -> Layer:
    """Return the neck, without an outline so that it joins the chest."""
    neck = limb(moved(head_centre(skeleton), 0, 6), skeleton.at(0, 25.4), 2.6, 2.6)
    return Layer((neck,), skin, LABELS["head"])


def leg_layers(skeleton: Skeleton, side: int, person: DollPerson) -> list[Layer]:
    """Return one leg and its shoe."""
    hip, knee, ankle = skeleton.leg(side)
    leg_label, shoe_label = (LEFT_LEG, LEFT_SHOE) if side > 0 else (RIGHT_LEG, RIGHT_SHOE)
    leg = (limb(hip, knee, 4.4, 3.2), limb(knee, ankle, 3.2, 2.2))
    shoe = ellipse(moved(ankle, side, 4.8), 3.9, 3.0, 180, 360)
    return [
        Layer(leg, person.skin, leg_label, shade(person.skin, 0.78)),
        Layer((shoe,), person.shoes, shoe_label, shade(person.shoes)),
    ]


def arm_layer(skeleton: Skeleton, side: int, skin: Colour) -> Layer:
    """Return one bare arm with its hand."""
    shoulder, elbow, wrist = skeleton.arm(side)
    hand = ellipse(wrist + (wrist - elbow) * 0.12, 2.3, 2.5)
    arm = (limb(shoulder, elbow, 2.7, 2.3), limb(elbow, wrist, 2.3, 1.8), hand)
    return Layer(arm, skin, LEFT_ARM if side > 0 else RIGHT_ARM, shade(skin, 0.78))


def head_layers(skeleton: Skeleton, person: DollPerson) -> list[Layer]:
    """Return the head, the face and the hair in front of it."""
    centre = head_centre(skeleton)
    skin, line, label = person.skin, shade(person.skin, 0.78), LABELS["head"]
    ears = tuple(ellipse(moved(centre, dx, 0.8), 1.5, 2.0) for dx in (-7.2, 7.2))
    eyes = tuple(ellipse(moved(centre, dx, 0.2), 0.85, 1.25) for dx in (-3.0, 3.0))
    cheeks = tuple(ellipse(moved(centre, dx, 3.0), 1.5, 0.95) for dx in (-4.5, 4.5))
    mouth = moved(centre, 0, 3.2)
    smile = np.concatenate([ellipse(mouth, 2.2, 2.0, 10, 170), ellipse(mouth, 2.0, 1.0, 170, 10)])
    blush = (min(skin[0] + 12, 255), round(skin[1] * 0.8), round(skin[2] * 0.8))
    return [
        Layer(ears, skin, label, line),
        Layer((ellipse(centre, 7.2, 7.9),), skin, label, line),
        Layer(cheeks, blush, label),
        Layer(eyes, (44, 34, 40), label),
        Layer((smile,), (196, 66, 74), label),
        *hair_in_front(centre, person.hair),
    ]


def hair_behind(skeleton: Skeleton, hair: Hair) -> list[Layer]:
    """Return the hair that shows round the head and beside the neck."""
    centre = head_centre(skeleton)
    crown = ellipse(moved(centre, 0, -1.2), 8.6, 8.6)
    curls = [(8.2 * np.cos(angle), 7.6 * np.sin(angle) - 1.0) for angle in np.deg2rad(np.arange(150, 400, 30))]
    parts = {
        "short": (crown,),
        "bob": (
            crown,
            limb(moved(centre, -6.2, 0), moved(centre, -6.6, 7), 3.0, 2.8),
            limb(moved(centre, 6.2, 0), moved(centre, 6.6, 7), 3.0, 2.8),
        ),
        "long": (
            crown,
            limb(moved(centre, -6, 0), moved(centre, -6.8, 15), 3.4, 3.4),
            limb(moved(centre, 6, 0), moved(centre, 6.8, 15), 3.4, 3.4),
        ),
        "bun": (crown, ellipse(moved(centre, 0, -10.0), 3.8, 3.4)),
        "ponytail": (
            crown,
            limb(moved(centre, 6, -6), moved(centre, 10.4, 4), 2.6, 2.8),
            limb(moved(centre, 10.4, 4), moved(centre, 9.2, 10), 2.8, 1.2),
        ),
        "curly": tuple(ellipse(moved(centre, *curl), 3.4, 3.4) for curl in curls),
        "twin_tails": (
            crown,
            limb(moved(centre, -9, -2), moved(centre, -10.6, 9), 2.6, 2.0),
            limb(moved(centre, 9, -2), moved(centre, 10.6, 9), 2.6, 2.0),
        ),
    }[hair.style]
    return [Layer(parts, hair.colour, LABELS["hair"], shade(hair.colour))]


def hair_in_front(centre: Points, hair: Hair) -> list[Layer]:
    """Return the fringe over the forehead."""
    cap = ellipse(moved(centre, 0, -0.6), 7.9, 8.2, 200, 340)
    fringe = {
        "short": [(4.0, -5.0), (-1.0, -3.4), (-5.0, -4.6)],
        "bob": [(5.0, -2.8), (0.0, -2.4), (-5.0, -2.8)],
        "long": [(4.4, -3.6), (1.0, -6.6), (-4.4, -3.6)],
        "bun": [(5.0, -4.6), (0.0, -5.4), (-5.0, -4.6)],
        "ponytail": [(5.6, -3.4), (-2.0, -5.4), (-5.8, -2.6)],
        "curly": [(4.6, -4.6), (2.0, -3.4), (0.0, -4.6), (-2.0, -3.4), (-4.6, -4.6)],
        "twin_tails": [(4.6, -3.2), (0.0, -6.8), (-4.6, -3.2)],
    }[hair.style]
    return [Layer((np.concatenate([cap, centre + np.array(fringe)]),), hair.colour, LABELS["hair"])]
