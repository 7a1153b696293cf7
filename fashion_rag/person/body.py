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

# Where shoulders and hips are in a standing person, as shares of the height from the crown down.
SHOULDERS_AT, HIPS_AT = 0.2, 0.52
# The length of a torso as a share of that of a thigh and of a whole leg.
TORSO_OF_THIGH, TORSO_OF_LEG = 1.3, 0.67
# A torso is at least this share of the width of the shoulders; it looks shorter in a person who bends forward.
TORSO_OF_SHOULDERS = 0.9
# A torso shorter or longer than this, in pixels of the frame, is a slip of the key points.
MIN_TORSO, MAX_TORSO = 16.0, 1024.0


@dataclass(frozen=True, eq=False)
class Body:
    """The measures of a body in pixels of the label map.

    joints: float64 [18, 2], NaN where absent. torso: the length from the shoulders to the hips.
    shoulders, hips: the points in their middle, estimated where the joints are absent. down: the unit vector from the
    shoulders to the hips.
    """

    joints: NDArray[np.float64]
    torso: float
    shoulders: Point
    hips: Point
    down: Point

    def has(self, *joints: int) -> bool:
        """Return whether all these joints are known."""
        return not np.isnan(self.joints[list(joints)]).any()


def body_in(label_map: NDArray[np.uint8], keypoints: NDArray[np.float64] | None) -> Body:
    """Return the body in a label map, uint8 [H, W], with a person in it. keypoints: [18, 2], (0, 0) = absent."""
    joints = np.full((18, 2), np.nan)
    if keypoints is not None:
        present = (np.abs(keypoints) > 1).any(axis=1)
        joints[present] = keypoints[present]
    seen_shoulders, seen_hips = _estimated(label_map)
    shoulders, hips = _middle(joints[list(SHOULDERS)]), _middle(joints[list(HIPS)])
    torso, down = float(seen_hips[1] - seen_shoulders[1]), np.array([0.0, 1.0])
    # Of one side alone the way from shoulder to hip slants, so that down is then taken to be straight down.
    side = _middle(joints[list(HIPS)] - joints[list(SHOULDERS)])
    thigh = _middle(joints[[9, 12]] - joints[list(HIPS)])
    if side is not None and np.hypot(*side) >= MIN_TORSO:
        torso = float(np.hypot(*side))
        if not np.isnan(joints[[*SHOULDERS, *HIPS]]).any():
            down = side / torso
            torso = max(torso, TORSO_OF_SHOULDERS * float(np.hypot(*(joints[SHOULDERS[0]] - joints[SHOULDERS[1]]))))
    elif shoulders is None and thigh is not None:
        torso = max(TORSO_OF_THIGH * float(np.hypot(*thigh)), MIN_TORSO)
    if hips is None and shoulders is None:
        shoulders, hips = seen_shoulders, seen_hips
    elif hips is None:
        assert shoulders is not None
        hips = np.array([shoulders[0], max(seen_hips[1], shoulders[1] + MIN_TORSO)])
    elif shoulders is None:
        shoulders = hips - torso * down
    return Body(joints, min(torso, MAX_TORSO), shoulders, hips, down)


def _middle(points: NDArray[np.float64]) -> Point | None:
    """Return the middle of the points [n, 2] that are known, None if none is."""
    known = points[~np.isnan(points).any(axis=1)]
    return known.mean(axis=0) if len(known) else None


def _estimated(label_map: NDArray[np.uint8]) -> tuple[Point, Point]:
    """Return the middle of the shoulders and the middle of the hips, as the labels suggest.

    They follow from the person's height, which is measured where head and feet are in view, else from the distance of
    the crown and the clothes. Without a head they follow from the clothes.
    """
    person = box_of(label_map != 0)
    assert person is not None, "a body needs a person"
    head = box_of(np.isin(label_map, HEAD))
    upper, lower = box_of(np.isin(label_map, (UPPER, DRESS))), box_of(np.isin(label_map, (*LOWER_CLOTHES, *LEGS)))
    clothes = upper or lower or person
    feet_in_view = bool(np.isin(label_map, SHOES).any()) or person.bottom < label_map.shape[0]
    if head is not None:
        height = float(person.bottom - head.top)
        if not feet_in_view:
            height = max(height, (clothes.top - head.top) / SHOULDERS_AT)
        shoulders, hips = head.top + SHOULDERS_AT * height, head.top + HIPS_AT * height
    elif upper is not None and (label_map == UPPER).any():
        hips = float(upper.bottom)
        shoulders = hips - TORSO_OF_LEG * (person.bottom - hips) if feet_in_view else float(upper.top)
    elif upper is not None:
        shoulders = float(upper.top)
        hips = shoulders + (HIPS_AT - SHOULDERS_AT) / (1 - SHOULDERS_AT) * (person.bottom - upper.top)
    else:
        hips = float(clothes.top)
        shoulders = hips - TORSO_OF_LEG * (person.bottom - clothes.top)
    x = (clothes.left + clothes.right - 1) / 2
    return np.array([x, min(shoulders, hips - MIN_TORSO)]), np.array([x, hips])
