"""The names of other models for what the method numbers: the classes of label maps, and the joints of a person.

The human parser and the pose estimator use it. The classes are those of the Dress Code data set, the joints those of
OpenPose.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fashion_rag.data.pose import NUM_KEYPOINTS
from fashion_rag.errors import ArtifactError

# Dress Code's classes in the order of their numbers. `data/masks.py` says what each of them means for a mask.
CLASSES = (
    "background", "hat", "hair", "sunglasses", "upper_clothes", "skirt", "pants", "dress", "belt", "left_shoe",
    "right_shoe", "head", "left_leg", "right_leg", "left_arm", "right_arm", "bag", "scarf",
)  # fmt: skip

# The names that other parsers give their classes, and the class of Dress Code that each becomes. In Dress Code,
# - the bare skin of neck and chest belongs to the head. The mask rules repaint what lies below the shoulders. So bare
#   skin of the torso, and jewellery, which lies on neck and wrists mostly, become head;
# - hands belong to the arms. The mask rules keep them apart by the key points;
# - shoes are never repainted, and bare feet should not be either, so feet become shoes. Socks become legs, because
#   trousers and dresses may cover them;
# - a bag is never repainted. So what a person wears beside clothes ("apparel" in Sapiens) becomes a bag.
# Where a parser does not tell left from right, the left class is taken. The mask rules treat both sides alike.
_OTHER_NAMES = {
    # ATR, as in mattmdjaga/segformer_b2_clothes; its other names are Dress Code's.
    "face": "head",
    # FASHN's human parser.
    "top": "upper_clothes",
    "glasses": "sunglasses",
    "arms": "left_arm",
    "hands": "left_arm",
    "legs": "left_leg",
    "feet": "left_shoe",
    "torso": "head",
    "jewelry": "head",
    # Sapiens and Sapiens2, which know neither skirts nor dresses.
    "apparel": "bag",
    "eyeglass": "sunglasses",
    "face_neck": "head",
    "left_foot": "left_shoe",
    "right_foot": "right_shoe",
    "left_hand": "left_arm",
    "right_hand": "right_arm",
    "left_lower_arm": "left_arm",
    "right_lower_arm": "right_arm",
    "left_upper_arm": "left_arm",
    "right_upper_arm": "right_arm",
    "left_lower_leg": "left_leg",
    "right_lower_leg": "right_leg",
    "left_upper_leg": "left_leg",
    "right_upper_leg": "right_leg",
    "left_sock": "left_leg",
    "right_sock": "right_leg",
    "lower_clothing": "pants",
    "upper_clothing": "upper_clothes",
    "lower_lip": "head",
    "upper_lip": "head",
    "lower_teeth": "head",
    "upper_teeth": "head",
    "tongue": "head",
}

NUM_COCO_POINTS = 17
L_SHOULDER, R_SHOULDER = 5, 6
# For each joint of OpenPose its number among COCO's joints; None for the neck, which COCO does not have.
COCO_JOINTS = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
NECK = COCO_JOINTS.index(None)


def class_table(id2label: Mapping[Any, Any], source: Path) -> tuple[int, ...]:
    """Return the class of Dress Code for each class of a parser.

    id2label: the names of the parser's classes by number, as in transformers' `config.json`. Letter case, hyphens,
    underscores and spaces make no difference. source: the file that has the names.

    Raises ArtifactError, which lists the known names, for an unknown name, and for numbers that do not count from 0.
    """
    names = {int(number): str(name) for number, name in id2label.items()}
    if sorted(names) != list(range(len(names))) or not names:
        raise ArtifactError(f"{source}: id2label has the numbers {sorted(names)}; must count from 0")
    known = {_plain(name): number for number, name in enumerate(CLASSES)}
    known |= {_plain(name): known[_plain(meant)] for name, meant in _OTHER_NAMES.items()}
    if unknown := [name for name in names.values() if _plain(name) not in known]:
        raise ArtifactError(
            f"{source}: id2label has unknown names: {', '.join(unknown)}; known are "
            f"{', '.join(sorted((*CLASSES, *_OTHER_NAMES)))}"
        )
    return tuple(known[_plain(names[number])] for number in range(len(names)))


def _plain(name: str) -> str:
    """Return a name without letter case, hyphens, underscores and spaces."""
    return "".join(letter for letter in name.lower() if letter not in "-_ ")


def openpose_points(
    points: NDArray[np.float64], confidences: NDArray[np.float64], min_confidence: float
) -> NDArray[np.float64]:
    """Return OpenPose's 18 points, float64 [18, 2], made of COCO's 17.

    points: [17, 2]. confidences: [17]. A point of less than `min_confidence` is absent, which is (0, 0). The neck is
    the middle of the shoulders, and absent if one of them is.
    """
    present = confidences >= min_confidence
    keypoints = np.zeros((NUM_KEYPOINTS, 2))
    for joint, coco_joint in enumerate(COCO_JOINTS):
        if coco_joint is not None and present[coco_joint]:
            keypoints[joint] = points[coco_joint]
    if present[L_SHOULDER] and present[R_SHOULDER]:
        keypoints[NECK] = (points[L_SHOULDER] + points[R_SHOULDER]) / 2
    return keypoints
