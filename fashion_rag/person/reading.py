"""What the human parser and the pose estimator see in photos. The pipeline and the parser's replicas call it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from fashion_rag.data.pose import KEYPOINT_FRAME, NUM_KEYPOINTS
from fashion_rag.data.window import PERSON_SHARE, Box, box_of, visible_part, whole, window_round
from fashion_rag.request import Window

if TYPE_CHECKING:
    from fashion_rag.person.parser import HumanParser
    from fashion_rag.person.pose_estimator import PersonBox, PoseEstimator

BoolMap = NDArray[np.bool_]

# Parts of a person that are at most twice this share of the picture's longer side apart, as where a strap was not seen,
# are one person.
JOINED_WITHIN = 0.005
# Persons are looked for in a label map whose longer side has so many pixels.
SEARCH_SIDE = 512
# What is smaller than this share of the picture is a mistake of the parser, and not a person.
MIN_PERSON_SHARE = 0.002
# What has at least this share of the larger person's area is a person of its own, and not a mistake of the parser.
OTHER_PERSON_SHARE = 0.15
# A large photo is first reduced, by averaging, to about so many times the size that it is then resized to.
REDUCING_GAP = 3.0


@dataclass(frozen=True, eq=False)
class PhotoReading:
    """What was seen in a photo.

    window: the window round the person, in the shape of the model.
    label_map: Dress Code's classes in the window, uint8 [512, 384]; of the larger person only, all 0 without a person.
    keypoints: float64 [18, 2] in pixels of the photo, (0, 0) = absent; None if the bundle has no pose estimator.
    num_persons: how many persons were seen.
    """

    window: Window
    label_map: NDArray[np.uint8]
    keypoints: NDArray[np.float64] | None
    num_persons: int


def read_photos(
    parser: HumanParser, pose_estimator: PoseEstimator | None, photos: Sequence[Image.Image], shape: tuple[int, int]
) -> list[PhotoReading]:
    """Return what is seen in each photo, which is RGB, in sRGB, and of any size.

    shape: the (height, width) of the model's pictures. All photos go through the networks together.

    The parser looks at the whole photo to find the person, and then at the window round that person. Where the window
    is the whole photo, it looks once.
    """
    if not photos:
        return []
    looks = parser.look_at(photos)
    windows, numbers = [], []
    for photo, look in zip(photos, looks, strict=True):
        person, num_persons = larger_person(look.label_map(_search_size(photo)))
        numbers.append(num_persons)
        windows.append(_window(person, (photo.height, photo.width), shape))
    again = [
        row for row, photo in enumerate(photos) if numbers[row] and windows[row] != whole((photo.height, photo.width))
    ]
    if again:
        pictures = [_in_window(parser, photos[row], windows[row]) for row in again]
        for row, look in zip(again, parser.look_at(pictures), strict=True):
            looks[row] = look
    label_maps = []
    for look, num_persons in zip(looks, numbers, strict=True):
        label_map = look.label_map(KEYPOINT_FRAME) if num_persons else np.zeros(KEYPOINT_FRAME, np.uint8)
        label_maps.append(label_map * larger_person(label_map)[0])
    keypoints = _keypoints(pose_estimator, photos, windows, label_maps)
    rows = zip(windows, label_maps, keypoints, numbers, strict=True)
    return [
        PhotoReading(window, label_map, points, num_persons if label_map.any() else 0)
        for window, label_map, points, num_persons in rows
    ]


def larger_person(label_map: NDArray[np.uint8]) -> tuple[BoolMap, int]:
    """Return where the larger person is, bool [H, W], and how many persons there are in a label map.

    Without a person, it is nowhere.
    """
    shown = label_map != 0
    reach = max(1, round(JOINED_WITHIN * max(label_map.shape)))
    square = np.ones((3, 3), np.bool_)
    regions, _ = ndimage.label(ndimage.binary_dilation(shown, square, iterations=reach), square)
    areas = np.bincount(regions[shown], minlength=2)
    areas[0] = 0
    largest = int(areas.argmax())
    if areas[largest] < MIN_PERSON_SHARE * label_map.size:
        return np.zeros_like(shown), 0
    person: BoolMap = shown & (regions == largest)
    return person, int((areas >= OTHER_PERSON_SHARE * areas[largest]).sum())


def _search_size(photo: Image.Image) -> tuple[int, int]:
    """Return the size of the label map in which the persons in a photo are looked for; it has the photo's shape."""
    scale = SEARCH_SIDE / max(photo.size)
    return max(1, round(photo.height * scale)), max(1, round(photo.width * scale))


def _window(person: BoolMap, photo_size: tuple[int, int], shape: tuple[int, int]) -> Window:
    """Return the window round a person, who is marked in a picture of the whole photo, of any size."""
    box = box_of(person)
    if box is not None:
        rows, columns = photo_size[0] / person.shape[0], photo_size[1] / person.shape[1]
        box = Box(
            int(np.floor(box.top * rows)),
            int(np.floor(box.left * columns)),
            int(np.ceil(box.bottom * rows)),
            int(np.ceil(box.right * columns)),
        )
    return window_round(box, photo_size, shape, PERSON_SHARE)


def _in_window(parser: HumanParser, photo: Image.Image, window: Window) -> Image.Image:
    """Return the part of a photo in the window, at the size at which the parser sees it.

    Beyond its edges, the photo is continued, as by `data.window.crop`. The photo is not copied for it, as it may be
    large.
    """
    fitted = parser.fitted((window.height, window.width))
    row_scale, column_scale = fitted.height / window.height, fitted.width / window.width
    seen = visible_part(window, (photo.height, photo.width))
    left, right = (round((side - window.left) * column_scale) for side in (seen.left, seen.right))
    top, bottom = (round((side - window.top) * row_scale) for side in (seen.top, seen.bottom))
    part = photo.resize(
        (max(1, right - left), max(1, bottom - top)),
        Image.Resampling.BICUBIC,
        (seen.left, seen.top, seen.right, seen.bottom),
        reducing_gap=REDUCING_GAP,
    )
    beyond = ((top, fitted.height - bottom), (left, fitted.width - right), (0, 0))
    return Image.fromarray(np.pad(np.asarray(part), beyond, mode="edge"))


def _keypoints(
    pose_estimator: PoseEstimator | None,
    photos: Sequence[Image.Image],
    windows: Sequence[Window],
    label_maps: Sequence[NDArray[np.uint8]],
) -> list[NDArray[np.float64] | None]:
    """Return the key points of the person in each photo, as a PhotoReading has them."""
    if pose_estimator is None:
        return [None] * len(photos)
    keypoints: list[NDArray[np.float64] | None] = [np.zeros((NUM_KEYPOINTS, 2)) for _ in photos]
    boxes = {}
    for row, (window, label_map) in enumerate(zip(windows, label_maps, strict=True)):
        if label_map.any():
            boxes[row] = _person_box(window, label_map)
    if boxes:
        found = pose_estimator.keypoints([photos[row] for row in boxes], list(boxes.values()))
        for row, points in zip(boxes, found, strict=True):
            keypoints[row] = points
    return keypoints


def _person_box(window: Window, label_map: NDArray[np.uint8]) -> PersonBox:
    """Return the box in the photo of a person in a window's label map, which shows no other person."""
    from fashion_rag.person.pose_estimator import PersonBox

    box = box_of(label_map != 0)
    assert box is not None
    rows, columns = window.height / label_map.shape[0], window.width / label_map.shape[1]
    return PersonBox(
        left=window.left + box.left * columns,
        top=window.top + box.top * rows,
        width=(box.right - box.left) * columns,
        height=(box.bottom - box.top) * rows,
    )
