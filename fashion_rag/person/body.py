"""The body under the clothes: how large it is, and where its neck and hips are, from key points or from a label map.

`worn_mask` calls it. A photo of a shopper may show a part of the body only, and key points may be missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fashion_rag.data.window import box_of
from fashion_rag.person.areas import Point

# The numbers of OpenPose joints.
NOSE, R_EYE, L_EYE, R_EAR, L_EAR = 0, 14, 15, 16, 17
SHOULDERS, HIPS, FACE = (2, 5), (8, 11), (NOSE, R_EYE, L_EYE, R_EAR, L_EAR)
# The joints of the limbs of the right and the left side, from the body outwards.
ARM_JOINTS, LEG_JOINTS = ((2, 3, 4), (5, 6, 7)), ((8, 9, 10), (11, 12, 13))

# The classes of a Dress Code label map, as `data.masks` lists them.
UPPER, DRESS, BELT, HEAD_SKIN = 4, 7, 8, 11
LOWER_CLOTHES, SHOES, LEGS, ARMS = (5, 6), (9, 10), (12, 13), (14, 15)
HEAD = (1, 2, 3, HEAD_SKIN)

# Where joints are in a standing person, as shares of the height from the crown down. The torso is between them.
SHOULDERS_AT, HIPS_AT = 0.2, 0.52
# A torso is at least this share of the width of the shoulders; it looks shorter in a person who bends forward.
TORSO_OF_SHOULDERS = 0.9
# A torso shorter than this, in pixels of the frame, is a slip of the key points.
MIN_TORSO = 16.0


@dataclass(frozen=True, eq=False)
class Body:
    """The measures of a body in pixels of the label map.

    joints: float64 [18, 2], NaN where absent. torso: the length from the shoulders to the hips.
    shoulders, hips: the points in their middle, estimated where the joints are absent. down: the unit vector from the
    shoulders to the hips. shoulders_known: whether a shoulder was among the key points.
    """

    joints: NDArray[np.float64]
    torso: float
    shoulders: Point
    hips: Point
    down: Point
    shoulders_known: bool

    def has(self, *joints: int) -> bool:
        """Return whether all these joints are known."""
        return not np.isnan(self.joints[list(joints)]).any()


def body_in(label_map: NDArray[np.uint8], keypoints: NDArray[np.float64] | None) -> Body:
    """Return the body in a label map, uint8 [H, W], with a person in it. keypoints: [18, 2], (0, 0) = absent."""
    joints = np.full((18, 2), np.nan)
    if keypoints is not None:
        present = (np.abs(keypoints) > 1).any(axis=1)
        joints[present] = keypoints[present]
    seen_shoulders, seen_hips, torso = _estimated(label_map)
    shoulders, hips = _middle(joints, SHOULDERS), _middle(joints, HIPS)
    known_torso = _torso(joints, shoulders, hips)
    if known_torso >= MIN_TORSO:
        torso = known_torso
    down = np.array([0.0, 1.0])
    if shoulders is not None and hips is not None and np.hypot(*(hips - shoulders)) >= MIN_TORSO:
        down = (hips - shoulders) / np.hypot(*(hips - shoulders))
    if hips is None:
        # Labels know more of hips that were not found than shoulders do, but hips are below shoulders.
        lowest = -np.inf if shoulders is None else shoulders[1] + MIN_TORSO
        hips = np.array([seen_hips[0] if shoulders is None else shoulders[0], max(seen_hips[1], lowest)])
    shoulders_known = shoulders is not None
    if shoulders is None:
        shoulders = np.array([hips[0], min(seen_shoulders[1], hips[1] - MIN_TORSO)])
    return Body(joints, torso, shoulders, hips, down, shoulders_known)


def _middle(joints: NDArray[np.float64], pair: tuple[int, int]) -> Point | None:
    """Return the middle of two joints, or the joint of the two that is known, or None."""
    known = joints[list(pair)]
    known = known[~np.isnan(known).any(axis=1)]
    return known.mean(axis=0) if len(known) else None


def _torso(joints: NDArray[np.float64], shoulders: Point | None, hips: Point | None) -> float:
    """Return the length of the torso as the joints have it, 0 if they do not."""
    if shoulders is None or hips is None:
        return 0.0
    right, left = joints[list(SHOULDERS)]
    width = float(np.nan_to_num(np.hypot(*(right - left))))
    return max(float(np.hypot(*(hips - shoulders))), TORSO_OF_SHOULDERS * width)


def _estimated(label_map: NDArray[np.uint8]) -> tuple[Point, Point, float]:
    """Return the middle of the shoulders, the middle of the hips and the torso's length, as the labels suggest.

    They follow from the height of the person, which is measured where head and feet are in view; else from the distance
    of the crown and the clothes; else from the clothes alone.
    """
    height = label_map.shape[0]
    person = box_of(label_map != 0)
    assert person is not None, "a body needs a person"
    head = box_of(np.isin(label_map, HEAD))
    upper, lower = box_of(np.isin(label_map, (UPPER, DRESS))), box_of(np.isin(label_map, (*LOWER_CLOTHES, *LEGS)))
    clothes = upper or lower or person
    x = (clothes.left + clothes.right - 1) / 2
    stature = 0.0
    if head is not None:
        feet_in_view = bool(np.isin(label_map, SHOES).any()) or person.bottom < height
        stature = person.bottom - head.top if feet_in_view else (clothes.top - head.top) / SHOULDERS_AT
    if head is not None and stature > 0:
        shoulders, hips = head.top + SHOULDERS_AT * stature, head.top + HIPS_AT * stature
    elif upper is not None:
        # Without a head the upper garment shows where the shoulders are; its hem, or its middle, is at the hips.
        bottom = upper.bottom if (label_map == UPPER).any() else (upper.top + person.bottom) / 2
        shoulders, hips = upper.top, max(bottom, upper.top + MIN_TORSO)
    else:
        # Legs alone are one and a half times as long as a torso.
        hips = clothes.top
        shoulders = hips - max((person.bottom - clothes.top) / 1.5, MIN_TORSO)
    torso = max(float(hips - shoulders), MIN_TORSO)
    return np.array([x, shoulders]), np.array([x, hips]), torso
