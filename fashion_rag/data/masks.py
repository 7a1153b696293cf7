"""The repaint mask of a person, made from a Dress Code label map and key points. Evaluation, training and demo call it.

The rule is that of the paper (arXiv 2504.14011, Dress Code preparation) with all its edge cases, so that our figures
are comparable. Some of its widths are fixed numbers of pixels, chosen for 512x384. Sizes are (height, width).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch.nn import functional

from fashion_rag.data.pose import KEYPOINT_FRAME
from fashion_rag.errors import InvalidRequest
from fashion_rag.request import MaskType

BoolMap = NDArray[np.bool_]

# The classes of a Dress Code label map: 0 background, 1 hat, 2 hair, 3 sunglasses, 4 upper garment, 5 skirt,
# 6 trousers, 7 dress, 8 belt, 9 and 10 shoes, 11 head, 12 and 13 legs, 14 and 15 arms, 16 bag, 17 scarf.
HEAD = (1, 2, 3, 11)
ARMS = (14, 15)
ALWAYS_KEPT = (1, 2, 3, 9, 10, 16, 17)
# The further classes that each category keeps, and those that it repaints.
KEPT = {"dresses": (), "upper_body": (5, 6), "lower_body": (4, 14, 15)}
CHANGED = {"dresses": (7, 12, 13), "upper_body": (4,), "lower_body": (6, 12, 13)}

# The numbers of OpenPose joints.
R_SHOULDER, R_ELBOW, R_WRIST, L_SHOULDER, L_ELBOW, L_WRIST = 2, 3, 4, 5, 6, 7

# These are pixels at every size of the picture.
ARM_WIDTH = 45
DILATION = 10
# These are pixels at a height of 512, and are scaled with the height.
NECK_ABOVE_SHOULDERS = 20


def repaint_mask(
    label_map: NDArray[np.uint8], keypoints: NDArray[np.float64], category: str, mask_type: MaskType = "bounding_box"
) -> NDArray[np.uint8]:
    """Return the repaint mask for the category's garment, uint8 [H, W], 1 where the picture is repainted.

    The mask is all zero if the garment is not in the picture.
    label_map: uint8 [H, W], 4:3; the rule works at its size. keypoints: [18, 2] in pixels of KEYPOINT_FRAME.
    mask_type: "mask" follows the garment and "bounding_box" fills its box. Neither covers the parts that are kept.
    Raises InvalidRequest for an unknown category or mask type.
    """
    if category not in CHANGED:
        raise InvalidRequest("category", category, f"must be one of {', '.join(CHANGED)}")
    if mask_type not in ("bounding_box", "mask"):
        raise InvalidRequest("mask_type", mask_type, "must be bounding_box or mask")
    change = np.isin(label_map, CHANGED[category])
    keep = np.isin(label_map, ALWAYS_KEPT + KEPT[category])
    head = np.isin(label_map, HEAD)
    if category == "lower_body":
        keep |= head
    else:
        # The rule is for 4:3 pictures, so x is scaled with the height as well.
        points = keypoints * (label_map.shape[0] / KEYPOINT_FRAME[0])
        arms = _arm_area(points, missing=np.all(keypoints <= 1, axis=1), shape=label_map.shape)
        hands = np.isin(label_map, ARMS) & ~arms
        neck = head & _below_shoulders(points, label_map.shape)
        change |= arms | neck
        keep |= hands | (head & ~neck)
    repaint = _dilate(change) & ~keep
    if mask_type == "bounding_box":
        repaint = _bounding_box(repaint) & ~keep
    return repaint.astype(np.uint8)


def repaint_mask_for(
    label_map: NDArray[np.uint8],
    keypoints: NDArray[np.float64],
    category: str,
    mask_type: MaskType,
    size: tuple[int, int],
    rule_size: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """Return `repaint_mask` at `size`, from a label map of any size.

    rule_size: the size at which the rule works; None for `size` itself, as in the paper. The mask is then resized to
    `size` with the nearest value. For a model of small pictures it should be 512x384, because the rule's fixed widths
    would cover most of a 96x72 picture.
    """
    mask = repaint_mask(nearest(label_map, rule_size or size), keypoints, category, mask_type)
    return nearest(mask, size)


def nearest(array: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a label map or mask [H, W] at `size`, with the value of the nearest pixel."""
    return np.array(Image.fromarray(array).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _arm_area(points: NDArray[np.float64], missing: BoolMap, shape: tuple[int, ...]) -> BoolMap:
    """Return the area of a thick line from wrist to wrist over the shoulders, [H, W].

    points: in pixels of the picture. missing: [18], the key points that were not found.
    As in the paper's rule, missing joints are left out for one arm only: the right one if its wrist is missing,
    otherwise the left one. For any other missing wrist or elbow, the line runs to the corner (0, 0).
    """
    path = [L_WRIST, L_ELBOW, L_SHOULDER, R_SHOULDER, R_ELBOW, R_WRIST]
    for wrist, elbow in ((R_WRIST, R_ELBOW), (L_WRIST, L_ELBOW)):
        if missing[wrist]:
            path.remove(wrist)
            if missing[elbow]:
                path.remove(elbow)
            break
    canvas = Image.new("1", (shape[1], shape[0]))
    line = [(int(points[joint, 0]), int(points[joint, 1])) for joint in path]
    ImageDraw.Draw(canvas).line(line, fill=1, width=ARM_WIDTH, joint="curve")
    return np.array(canvas)


def _below_shoulders(points: NDArray[np.float64], shape: tuple[int, ...]) -> BoolMap:
    """Return the area below the line through both shoulders, raised by NECK_ABOVE_SHOULDERS, [H, W]."""
    height, width = shape
    (x0, y0), (x1, y1) = points[L_SHOULDER], points[R_SHOULDER]
    slope = (y1 - y0) / (x1 - x0) if x0 != x1 else 0.0
    line = y0 + slope * (np.arange(width) - x0)
    first_row = (line - NECK_ABOVE_SHOULDERS * height / KEYPOINT_FRAME[0]).astype(int)
    # As in the paper's rule, a row above the picture counts from its bottom, like the start of a Python slice.
    first_row = np.where(first_row < 0, np.maximum(first_row + height, 0), first_row)
    below: BoolMap = np.arange(height)[:, None] >= first_row[None, :]
    return below


def _dilate(area: BoolMap) -> BoolMap:
    """Return the area grown by DILATION pixels in every direction, corners included."""
    # Growing along one axis after the other takes 2 x 21 comparisons for a pixel in place of 21 x 21.
    grown = torch.from_numpy(area).float()[None]
    for kernel, padding in (((2 * DILATION + 1, 1), (DILATION, 0)), ((1, 2 * DILATION + 1), (0, DILATION))):
        grown = functional.max_pool2d(grown, kernel, stride=1, padding=padding)
    dilated: BoolMap = grown[0].numpy() > 0
    return dilated


def _bounding_box(area: BoolMap) -> BoolMap:
    """Return the smallest box round the area; an empty area has none."""
    box = np.zeros_like(area)
    if area.any():
        rows, columns = np.nonzero(area)
        box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return box
