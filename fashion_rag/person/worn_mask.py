"""The repaint mask for shoppers' photos. `person.completion` makes it where the caller gives none.

It adds to the paper's rule, `data.masks`, what data sets never need: people who wear another kind of garment than the
one they ask for, key points that are missing, and photos that show a part of a person. Where the new garment may come
follows from the body, so that the outline of the old garment does not show in the new one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fashion_rag.data.window import box_of
from fashion_rag.errors import InvalidRequest
from fashion_rag.person.areas import Area, beyond, empty, grown
from fashion_rag.person.body import (
    ARMS,
    BELT,
    DRESS,
    HEAD_SKIN,
    HIPS,
    LEGS,
    LOWER_CLOTHES,
    SHOULDERS,
    UPPER,
    Body,
    body_in,
)
from fashion_rag.person.body_parts import arms_area, hands, legs_area, neck, torso_area
from fashion_rag.request import CATEGORIES, MASK_TYPES, MaskType

# Hat, hair, sunglasses, shoes, bag and scarf are never repainted.
ALWAYS_KEPT = (1, 2, 3, 9, 10, 16, 17)
# The place of a garment is in view if what is there takes this share of the frame.
IN_VIEW_SHARE = 0.01
# The mask grows by this share of the torso, and at least by as many pixels as in the paper's rule.
GROWTH, MIN_GROWTH = 0.08, 10
# How far below the hips the hem of a top hangs, as a share of the torso.
HEM_BELOW_HIPS = 0.1


def worn_mask(
    label_map: NDArray[np.uint8], keypoints: NDArray[np.float64] | None, category: str, mask_type: MaskType
) -> NDArray[np.uint8]:
    """Return where a garment of the category may come, uint8 [512, 384], 1 = repaint; all 0 if that is not in view.

    label_map: Dress Code's classes in the frame of Dress Code, uint8 [512, 384]. keypoints: [18, 2] in its pixels,
    (0, 0) = absent; what they do not say is estimated from the label map. mask_type: "mask" follows the body and the
    garments on it, and "bounding_box" fills the box round that. Neither covers the parts that are kept.

    Face, hair, hat, sunglasses, scarf, hands, shoes and bag are always kept. Categories repaint:
    upper_body: tops, dresses above the hips, arms and neck. Trousers and skirts are kept below the hem of a top.
    lower_body: trousers, skirts, legs and what is between them, and dresses below the hips. Tops and arms are kept. A
        coat that hides the legs is repainted below the hips.
    dresses: what the two others repaint.

    The place of an upper garment is in view if the frame has some of the upper half of the torso and, unless shoulders
    and hips are known, tops and dresses above the hips take IN_VIEW_SHARE of it. The place of a lower one is in view if
    trousers, skirts, legs, and what tops and dresses have below the hips take this share. For a dress, one of the two
    places must be in view.
    Raises InvalidRequest for an unknown category or mask type.
    """
    if category not in CATEGORIES:
        raise InvalidRequest("category", category, f"must be one of {', '.join(CATEGORIES)}")
    if mask_type not in MASK_TYPES:
        raise InvalidRequest("mask_type", mask_type, f"must be one of {', '.join(MASK_TYPES)}")
    repaint = empty(label_map.shape)
    if not label_map.any():
        return repaint.astype(np.uint8)
    body = body_in(label_map, keypoints)
    below_hips = beyond(label_map.shape, body.hips, body.down)
    if category != "lower_body" and _upper_in_view(label_map, body, below_hips):
        repaint |= _upper_area(label_map, body, below_hips)
    if category != "upper_body" and _lower_in_view(label_map, below_hips):
        repaint |= _lower_area(label_map, body, below_hips)
    if category == "dresses" and repaint.any():
        repaint |= np.isin(label_map, (UPPER, DRESS, *LOWER_CLOTHES))
    keep = _kept(label_map, body, below_hips, category)
    repaint = grown(repaint, max(MIN_GROWTH, round(GROWTH * body.torso))) & ~keep
    box = box_of(repaint)
    if mask_type == "bounding_box" and box is not None:
        filled = empty(label_map.shape)
        filled[box.top : box.bottom, box.left : box.right] = True
        if category == "upper_body":
            # Hands that hang low make the box of a top high. It may reach legs, which the top does not.
            keep |= np.isin(label_map, LEGS) & _below_hem(label_map, body)
        repaint |= filled & ~keep
    return repaint.astype(np.uint8)


def _upper_in_view(label_map: NDArray[np.uint8], body: Body, below_hips: Area) -> bool:
    """Return whether the place of an upper garment is in view."""
    height, width = label_map.shape
    chest = np.linspace(body.shoulders, (body.shoulders + body.hips) / 2, 5)
    if not ((chest >= 0) & (chest < (width, height))).all(axis=1).any():
        return False
    worn = (label_map == UPPER) | ((label_map == DRESS) & ~below_hips)
    return body.has(*SHOULDERS, *HIPS) or bool(worn.mean() >= IN_VIEW_SHARE)


def _lower_in_view(label_map: NDArray[np.uint8], below_hips: Area) -> bool:
    """Return whether the place of a lower garment is in view."""
    hanging = np.isin(label_map, (UPPER, DRESS, BELT)) & below_hips
    return bool((np.isin(label_map, (*LOWER_CLOTHES, *LEGS)) | hanging).mean() >= IN_VIEW_SHARE)


def _upper_area(label_map: NDArray[np.uint8], body: Body, below_hips: Area) -> Area:
    """Return where a top may come, before the mask grows."""
    worn = (label_map == UPPER) | ((label_map == DRESS) & ~below_hips)
    area: Area = worn | torso_area(label_map, body, ~below_hips)
    return area | arms_area(label_map, body) | neck(label_map, body)


def _lower_area(label_map: NDArray[np.uint8], body: Body, below_hips: Area) -> Area:
    """Return where a lower garment may come, before the mask grows."""
    worn: Area = np.isin(label_map, LOWER_CLOTHES) | (_cut_at_hips(label_map) & below_hips)
    return worn | legs_area(label_map, body, below_hips)


def _cut_at_hips(label_map: NDArray[np.uint8]) -> Area:
    """Return what a new lower garment ends at the hips: a dress, or a coat that hides the legs."""
    legs_hidden = np.isin(label_map, (*LOWER_CLOTHES, *LEGS)).mean() < IN_VIEW_SHARE
    cut: Area = np.isin(label_map, (DRESS, UPPER) if legs_hidden else (DRESS,))
    return cut


def _kept(label_map: NDArray[np.uint8], body: Body, below_hips: Area, category: str) -> Area:
    """Return what the category does not repaint."""
    keep: Area = np.isin(label_map, ALWAYS_KEPT)
    if category == "lower_body":
        repainted = _cut_at_hips(label_map) & below_hips
        keep |= np.isin(label_map, (UPPER, DRESS, *ARMS, HEAD_SKIN)) & ~repainted
        return keep
    keep |= hands(label_map, body) | ((label_map == HEAD_SKIN) & ~neck(label_map, body))
    if category == "upper_body":
        keep |= np.isin(label_map, LOWER_CLOTHES) & _below_hem(label_map, body)
        keep |= (label_map == DRESS) & below_hips
    return keep


def _below_hem(label_map: NDArray[np.uint8], body: Body) -> Area:
    """Return what lies below the hem of a top."""
    return beyond(label_map.shape, body.hips, body.down, HEM_BELOW_HIPS * body.torso)
