"""The parts of an edit request that a caller left out, as they follow from what was seen in the photo.

`find` needs what was read in the photo and returns a small object that can travel between processes. `complete` puts it
into the request. The pipeline calls both; in the graph the parser's replicas find, and every stage completes. Nothing
here needs PyTorch.

What the caller gives always wins. A window follows from what is known about the person:

| known                                        | the window                                                        |
|----------------------------------------------|-------------------------------------------------------------------|
| a window in the request                      | that one, which must hold the mask                                |
| the person was read in the photo             | the reading's, widened if the given mask reaches out of it        |
| a mask, a photo of the model's shape         | the whole photo                                                   |
| a mask and key points, another shape         | round both, which take PERSON_SHARE of it                         |
| a mask alone, another shape                  | round the mask, which takes MASK_SHARE of it                      |
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.data.pose import KEYPOINT_FRAME
from fashion_rag.data.window import (
    MASK_SHARE,
    PERSON_SHARE,
    Box,
    box_of,
    box_round,
    has_shape,
    mask_out,
    points_in,
    present,
    resized,
    visible_part,
    whole,
    widened,
    window_round,
)
from fashion_rag.errors import InvalidRequest
from fashion_rag.person.reading import PhotoReading
from fashion_rag.person.worn_mask import worn_mask
from fashion_rag.request import CompleteRequest, EditRequest, Window

# What people call Dress Code's classes from 1 on; the background, 0, is nothing that is seen.
SEEN_AS = ("hat", "hair", "sunglasses", "upper garment", "skirt", "trousers", "dress", "belt", "shoes", "shoes",
           "face", "legs", "legs", "arms", "arms", "bag", "scarf")  # fmt: skip
# A class with fewer pixels of the 512x384 frame is not named as seen, because a few stray pixels are often wrong.
MIN_SEEN_PIXELS = 50
BODY_PARTS = {
    "dresses": "the body from the shoulders down",
    "lower_body": "the legs, or a garment on them",
    "upper_body": "the trunk, or a garment on it",
}


@dataclass(frozen=True)
class CategoryChoice:
    """The category of an edit, and how sure it is: from 0 to 1; None where the caller or a named garment decided."""

    category: str
    confidence: float | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """What is known about a request beside what it says itself.

    mask: uint8 [512, 384] of the window, 1 = repaint; None if the caller gave one.
    keypoints: float64 [18, 2] in pixels of the photo, the caller's if there are such; None if they are not known.
    warnings: sentences for the caller, such as that there are two persons in the photo.
    """

    choice: CategoryChoice
    window: Window
    mask: NDArray[np.uint8] | None
    keypoints: NDArray[np.float64] | None
    warnings: tuple[str, ...] = ()


def wants_reading(request: EditRequest) -> bool:
    """Return whether the photo of the request must be read: where its mask or its key points are to be found."""
    return not isinstance(request, CompleteRequest) and (request.mask is None or request.keypoints is None)


def find(request: EditRequest, choice: CategoryChoice, shape: tuple[int, int], reading: PhotoReading | None) -> Found:
    """Return what the request leaves open. What the request has wins.

    shape: the (height, width) of the model's pictures. reading: None where the photo was not read.
    Raises InvalidRequest, naming the field, if there is no mask and the photo was not read, shows nobody, or does not
    show the part to be dressed, and for a window that does not hold the mask.
    """
    if request.mask is None and reading is None:
        rule = "must be given, or the photo be transparent where to repaint: the model has no human parser to find it"
        raise InvalidRequest("mask", None, rule, "missing_required_parameter")
    person = reading if reading is not None and _is_person_of(request, reading) else None
    keypoints = request.keypoints
    if keypoints is None and person is not None and person.keypoints is not None and present(person.keypoints).any():
        keypoints = person.keypoints
    warnings: tuple[str, ...] = ()
    if person is not None and person.num_persons > 1:
        warnings = (f"There are {person.num_persons} persons in the photo; the largest was taken for the edit.",)
    if request.mask is not None:
        return Found(choice, _window_of(request, request.mask, shape, person), None, keypoints, warnings)
    if person is None:
        rule = "must show a person to dress; give a mask to edit it all the same"
        raise InvalidRequest("image", "a photo in which nobody was seen", rule)
    window = request.window or person.window
    mask = _mask_of(request, choice.category, window, keypoints, person)
    return Found(choice, window, mask, keypoints, warnings)


def complete(request: EditRequest, found: Found) -> CompleteRequest:
    """Return the request with what was found in it. A found mask is brought to the photo's resolution."""
    mask = request.mask
    if mask is None:
        assert found.mask is not None, "a mask is found for a request without one"
        mask = mask_out(found.window, found.mask, _photo_size(request))
    given = {entry.name: getattr(request, entry.name) for entry in fields(EditRequest)}
    known = {
        "mask": mask,
        "category": found.choice.category,
        "window": found.window,
        "keypoints": found.keypoints,
    }
    return CompleteRequest(**given | known)


def _photo_size(request: EditRequest) -> tuple[int, int]:
    return request.image.shape[0], request.image.shape[1]


def _is_person_of(request: EditRequest, reading: PhotoReading) -> bool:
    """Return whether somebody was seen in the photo who is to be dressed: who is touched by the mask, if one is given.

    Else the mask is on another person, whose key points are not those that were read.
    """
    if request.mask is None:
        return bool(reading.label_map.any())
    in_window = np.asarray(resized(request.mask, reading.window, reading.label_map.shape, Image.Resampling.NEAREST))
    return bool(reading.label_map[in_window != 0].any())


def _window_of(
    request: EditRequest, mask: NDArray[np.uint8], shape: tuple[int, int], person: PhotoReading | None
) -> Window:
    """Return the window of a request that has a mask."""
    photo_size, box = _photo_size(request), box_of(mask != 0)
    assert box is not None, "a request's mask marks something"
    if request.window is not None:
        if widened(request.window, box, photo_size, shape) != request.window:
            raise InvalidRequest("window", tuple(request.window), f"must hold all that the mask marks, {tuple(box)}")
        return request.window
    if person is not None:
        return widened(person.window, box, photo_size, shape)
    if has_shape(photo_size, shape):
        return whole(photo_size)
    pose = None if request.keypoints is None else _box_of_points(request.keypoints, photo_size)
    share = MASK_SHARE if pose is None else PERSON_SHARE
    return window_round(box_round(box, pose), photo_size, shape, share)


def _box_of_points(keypoints: NDArray[np.float64], photo_size: tuple[int, int]) -> Box | None:
    """Return the smallest box of whole pixels round the key points [18, 2] in the photo, or None if there are none."""
    points = keypoints[present(keypoints) & (keypoints >= 0).all(axis=1) & (keypoints < photo_size[::-1]).all(axis=1)]
    if not len(points):
        return None
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return Box(int(top), int(left), int(bottom) + 1, int(right) + 1)


def _mask_of(
    request: EditRequest,
    category: str,
    window: Window,
    keypoints: NDArray[np.float64] | None,
    person: PhotoReading,
) -> NDArray[np.uint8]:
    """Return the found mask, uint8 [512, 384] of `window`. Raises InvalidRequest if the part is not in the photo."""
    photo_size = _photo_size(request)
    in_photo = _in_photo(person.window, photo_size)
    labels = np.where(in_photo, person.label_map, np.uint8(0))
    points = None if keypoints is None else points_in(person.window, keypoints, KEYPOINT_FRAME)
    mask = worn_mask(labels, points, category, request.mask_type)
    if window != person.window:
        photo_mask = mask_out(person.window, mask, photo_size)
        mask = np.asarray(resized(photo_mask, window, KEYPOINT_FRAME, Image.Resampling.NEAREST))
        in_photo = _in_photo(window, photo_size)
    if not mask[in_photo].any():
        seen = ", ".join(_seen(labels)) or "nothing of a person"
        rule = f"must show the part to dress, category {category}: {BODY_PARTS[category]}"
        raise InvalidRequest("image", f"a photo with {seen}", rule)
    return mask


def _in_photo(window: Window, photo_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which pixels of the window's frame, bool [512, 384], lie in the photo, and not where it is continued."""
    seen = visible_part(window, photo_size)
    rows = (np.arange(KEYPOINT_FRAME[0]) + 0.5) * window.height / KEYPOINT_FRAME[0] + window.top
    columns = (np.arange(KEYPOINT_FRAME[1]) + 0.5) * window.width / KEYPOINT_FRAME[1] + window.left
    inside_rows = (rows >= seen.top) & (rows <= seen.bottom)
    inside_columns = (columns >= seen.left) & (columns <= seen.right)
    return np.asarray(inside_rows[:, None] & inside_columns)


def _seen(label_map: NDArray[np.uint8]) -> list[str]:
    """Return in words which classes were seen, the largest first."""
    areas: dict[str, int] = {}
    for label, word in enumerate(SEEN_AS, start=1):
        areas[word] = areas.get(word, 0) + int((label_map == label).sum())
    words = [word for word, area in areas.items() if area >= MIN_SEEN_PIXELS]
    return sorted(words, key=lambda word: -areas[word])
