"""The parts of a body as areas of its label map: hands, neck, and what arms, torso and legs may be covered with.

`worn_mask` puts them together. Where joints are known, parts are drawn along them; else the classes have to do. Areas
are bool [H, W], label maps uint8 [H, W].
"""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fashion_rag.data.window import box_of
from fashion_rag.person.areas import Area, Point, beyond, disc, empty, far_end, filled_rows, hull, line
from fashion_rag.person.body import (
    ARM_JOINTS,
    ARMS,
    DRESS,
    FACE,
    HEAD_SKIN,
    HIPS,
    LEG_JOINTS,
    LEGS,
    LOWER_CLOTHES,
    SHOULDERS,
    UPPER,
    Body,
)

# The paper's widths, in pixels of the frame, are the least: it covers arms 22.5 pixels to each side, which the rounding
# of its points can move by two, and the neck from 20 above the shoulders on.
MIN_ARM_RADIUS, MIN_NECK = 25.0, 20.0
# The following are shares of the torso's length, first those of arms and neck.
ARM_RADIUS, NECK = 0.17, 0.14
# How far a loose top reaches to the sides of shoulders and hips.
TOP_RADII = (0.15, 0.25)
# How far a wide skirt reaches to the sides of hips, knees and ankles.
SKIRT_RADII = (0.2, 0.35, 0.45)
# How long the hand is where the wrist is not known. A hand takes the end of the arm's class.
HAND_OF_TORSO = 0.3
# How long a hand is as a share of the longest part of the arms, and how many pixels beyond its wrist it starts.
HAND_OF_ARM, HAND_AFTER_WRIST = 0.9, 3.0
# How far the face reaches round its key points, as a share of the largest distance between two of them.
FACE_OF_POINTS = 0.55


def torso_area(label_map: NDArray[np.uint8], body: Body, above_hips: Area) -> Area:
    """Return where the trunk of a top may come: the torso with a loose top round it, whatever is worn now."""
    if not body.has(*SHOULDERS, *HIPS):
        worn = box_of(np.isin(label_map, (UPPER, DRESS)) & above_hips)
        area = empty(label_map.shape)
        if worn is not None:
            area[worn.top :, worn.left : worn.right] = above_hips[worn.top :, worn.left : worn.right]
        return area
    right_shoulder, left_shoulder = body.joints[list(SHOULDERS)]
    right_hip, left_hip = body.joints[list(HIPS)]
    area = hull(label_map.shape, [right_shoulder, left_shoulder, right_hip, left_hip])
    at_shoulders, at_hips = (share * body.torso for share in TOP_RADII)
    area |= line(label_map.shape, right_shoulder, right_hip, at_shoulders, at_hips)
    area |= line(label_map.shape, left_shoulder, left_hip, at_shoulders, at_hips)
    return area


def arms_area(label_map: NDArray[np.uint8], body: Body) -> Area:
    """Return where sleeves may come: wide lines along the arms and over the shoulders, and the arms themselves."""
    radius = max(MIN_ARM_RADIUS, ARM_RADIUS * body.torso)
    area: Area = np.isin(label_map, ARMS)
    for _, elbow, _ in ARM_JOINTS:
        if body.has(elbow):
            area |= disc(label_map.shape, body.joints[elbow], radius)
    for start, end in (*_known_bones(body), SHOULDERS, SHOULDERS[::-1]):
        if body.has(start, end):
            area |= line(label_map.shape, body.joints[start], body.joints[end], radius, tail=HAND_AFTER_WRIST)
    return area


def legs_area(label_map: NDArray[np.uint8], body: Body, below_hips: Area) -> Area:
    """Return where the legs of trousers or a skirt may come: down to the ankles, to the sides, and between the legs."""
    legs = np.isin(label_map, (*LOWER_CLOTHES, *LEGS)) | ((label_map == DRESS) & below_hips)
    area = filled_rows(legs)
    lines = [_leg(body, joints) for joints in LEG_JOINTS]
    box = box_of(legs)
    if box is not None and not any(lines):
        ankles = np.array([body.hips[0], box.bottom - 1])
        area |= line(label_map.shape, body.hips, ankles, *(share * body.torso for share in SKIRT_RADII[::2]))
    for points in lines:
        for number, (start, end) in enumerate(pairwise(points)):
            start_radius, end_radius = (share * body.torso for share in SKIRT_RADII[number : number + 2])
            area |= line(label_map.shape, start, end, start_radius, end_radius)
    right, left = (list(pairwise(points)) for points in lines)
    for right_bone, left_bone in zip(right, left, strict=False):
        area |= hull(label_map.shape, [*right_bone, *left_bone])
    return area


def neck(label_map: NDArray[np.uint8], body: Body) -> Area:
    """Return what necklines may cover of the head's class: what lies below a line above the shoulders and is no face.

    Without shoulders, the line is at the upper edge of the top or dress, or lower where that is in front of the head.
    """
    skin: Area = label_map == HEAD_SKIN
    rise = max(MIN_NECK, NECK * body.torso)
    known = [body.joints[joint] for joint in SHOULDERS if body.has(joint)]
    worn = box_of(np.isin(label_map, (UPPER, DRESS)))
    if known:
        skin &= _below_line(label_map.shape, known[0], known[-1], rise)
    elif worn is not None:
        # The head may be bowed and in front of the garment.
        skin[: max(worn.top, round(body.shoulders[1] - rise), 0)] = False
    else:
        return empty(label_map.shape)
    points = [body.joints[joint] for joint in FACE if body.has(joint)]
    reach = max((float(np.hypot(*(a - b))) for a, b in combinations(points, 2)), default=0.0) * FACE_OF_POINTS
    for point in points:
        skin &= ~disc(label_map.shape, point, reach)
    return skin


def hands(label_map: NDArray[np.uint8], body: Body) -> Area:
    """Return the hands: what arms have beyond their wrists, and the ends of the arms whose wrists are not known."""
    area = empty(label_map.shape)
    with_wrist: set[int] = set()
    for joints in ARM_JOINTS:
        if body.has(joints[-1]):
            labels = _labels_of_arm(label_map, body, joints)
            area |= np.isin(label_map, labels) & _round_hand(label_map.shape, body, joints)
            with_wrist.update(labels)
    known_bones = empty(label_map.shape)
    for start, end in _known_bones(body):
        known_bones |= line(label_map.shape, body.joints[start], body.joints[end], MIN_ARM_RADIUS)
    for label in set(ARMS) - with_wrist:
        outermost = _outermost_piece(label_map == label, body.shoulders)
        hand = far_end(outermost, body.shoulders, HAND_OF_TORSO * body.torso)
        # Where shoulders were found but no wrist, an arm that runs out of the picture has its hand outside.
        cut_off = hand[-1].any() or hand[:, 0].any() or hand[:, -1].any()
        if not (cut_off and (body.has(SHOULDERS[0]) or body.has(SHOULDERS[1]))):
            area |= hand & ~known_bones
    return area


def _known_bones(body: Body) -> list[tuple[int, int]]:
    """Return the joints at both ends of the upper and lower arms that are known, from the body outwards."""
    bones = []
    for joints in ARM_JOINTS:
        bones += [bone for bone in pairwise(joints) if body.has(*bone)]
    return bones


def _hand_length(body: Body) -> float:
    lengths = [float(np.hypot(*(body.joints[end] - body.joints[start]))) for start, end in _known_bones(body)]
    return HAND_OF_ARM * max(lengths) if lengths else HAND_OF_TORSO * body.torso


def _round_hand(shape: tuple[int, ...], body: Body, joints: tuple[int, int, int]) -> Area:
    """Return the half of a disc round a known wrist that lies beyond it, or all of the disc where the arm is not known.

    joints: shoulder, elbow and wrist.
    """
    wrist = body.joints[joints[-1]]
    area = disc(shape, wrist, _hand_length(body))
    for joint in (joints[1], joints[0]):
        arm = wrist - body.joints[joint]
        if body.has(joint) and np.hypot(*arm) > 0:
            return area & beyond(shape, wrist, arm / np.hypot(*arm), HAND_AFTER_WRIST)
    return area


def _labels_of_arm(label_map: NDArray[np.uint8], body: Body, joints: tuple[int, int, int]) -> tuple[int, ...]:
    """Return the class, of the two for arms, that most pixels round a known wrist have. Both, if they have as many."""
    labels = label_map[disc(label_map.shape, body.joints[joints[-1]], _hand_length(body))]
    first, second = (int((labels == label).sum()) for label in ARMS)
    if first == second:
        return ARMS
    return ARMS[:1] if first > second else ARMS[1:]


def _outermost_piece(area: Area, centre: Point) -> Area:
    """Return the connected piece of an area that is furthest from a point. Pieces below a tenth of it do not count.

    An arm is in pieces where a bag is in front of it.
    """
    pieces, num_pieces = ndimage.label(area, np.ones((3, 3)))
    outermost, furthest = empty(area.shape), -1.0
    for number in range(1, num_pieces + 1):
        piece = pieces == number
        rows, columns = np.nonzero(piece)
        distance = float(np.hypot(columns - centre[0], rows - centre[1]).min())
        if len(rows) >= area.sum() / 10 and distance > furthest:
            outermost, furthest = piece, distance
    return outermost


def _leg(body: Body, joints: tuple[int, int, int]) -> list[Point]:
    """Return hip, knee and ankle of a leg, or nothing if hip or knee are not known. An unknown ankle is estimated.

    joints: hip, knee and ankle.
    """
    if not body.has(*joints[:2]):
        return []
    hip, knee, ankle = body.joints[list(joints)]
    return [hip, knee, ankle if body.has(joints[2]) else 2 * knee - hip]


def _below_line(shape: tuple[int, ...], right: Point, left: Point, rise: float) -> Area:
    """Return what lies below the line through two points, raised by `rise` pixels."""
    (x0, y0), (x1, y1) = right, left
    slope = (y1 - y0) / (x1 - x0) if x0 != x1 else 0.0
    # The paper's rule cuts the row off to a whole number.
    first_rows = np.floor(y0 + slope * (np.arange(shape[1]) - x0) - rise)
    below: Area = np.arange(shape[0])[:, None] >= first_rows[None, :]
    return below
