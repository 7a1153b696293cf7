"""How well a bundle's human parser and pose estimator read drawn photos in which everybody wears held-out garments.

`benchmarks.photo_alone` calls it. What is measured is what the pipeline has of a photo, that is a `PhotoReading`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.data.pose import KEYPOINT_FRAME, NUM_KEYPOINTS
from fashion_rag.data.window import present
from fashion_rag.demo.model.evaluate import HeldOutCase
from fashion_rag.demo.model.photo_cases import sample_test_photo
from fashion_rag.demo.model.photo_views import IGNORED
from fashion_rag.demo.world.draw import Placement, render, render_into
from fashion_rag.demo.world.figure import HEIGHT
from fashion_rag.person.labels import CLASSES, NECK
from fashion_rag.person.parser import HumanParser
from fashion_rag.person.pose_estimator import PoseEstimator
from fashion_rag.person.reading import OTHER_PERSON_SHARE, PhotoReading, read_photos
from fashion_rag.request import Window

# A point counts as right within this share of the head's size, which is the distance between the ears.
POINT_TOLERANCE = 0.1
BATCH = 20
JOINTS = (
    "nose", "neck", "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow", "left wrist",
    "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle", "right eye", "left eye",
    "right ear", "left ear",
)  # fmt: skip
# The neck is not judged, because by definition it is the middle of the shoulders.
JUDGED_JOINTS = tuple(joint for joint in range(NUM_KEYPOINTS) if joint != NECK)
RIGHT_EAR, LEFT_EAR = 16, 17


@dataclass(frozen=True, eq=False)
class TruePhoto:
    """A photo and the truth about the larger person in it.

    image: uint8 [H, W, 3]. label_map: Dress Code's classes of that person alone in the whole photo, uint8, at any
    resolution. keypoints: their points in pixels of the photo, (0, 0) = absent, float64 [18, 2]. head_size: the
    distance between their ears in pixels of the photo. num_persons: of at least OTHER_PERSON_SHARE of the larger one.
    """

    image: NDArray[np.uint8]
    label_map: NDArray[np.uint8]
    keypoints: NDArray[np.float64]
    head_size: float
    num_persons: int


@dataclass(frozen=True)
class ReadingReport:
    """How well a set of photos was read.

    mean_iou: the mean of iou. iou: the intersection over union of each class that the truth shows, over the pixels of
    all label maps that lie in their photo. points: the share of the points in the photos, but for the neck, that lie
    within POINT_TOLERANCE of the truth; points_by_joint: the same for each joint. num_persons: the share of the photos
    in which the number of persons is right. num_without_person: how many photos show nobody. num_seen_as_nobody: in how
    many of these nobody was seen.
    """

    num_photos: int
    mean_iou: float
    iou: dict[str, float]
    points: float
    points_by_joint: dict[str, float]
    num_persons: float
    num_without_person: int
    num_seen_as_nobody: int


def case_photos(cases: Sequence[HeldOutCase], size: tuple[int, int]) -> list[TruePhoto]:
    """Return photos of the persons of held-out cases, of `size`: at the model's own size, the photos that are edited.

    Their label maps are drawn in the frame of readings, so that they are exact. In the cases' own label maps, a skirt
    has the class of trousers, and edges are half a pixel too far out.
    """
    canvas = np.zeros((*KEYPOINT_FRAME, 3), np.uint8)
    photos = []
    for case in cases:
        _, truth = render_into(canvas, case.person, Placement(KEYPOINT_FRAME[0] / HEIGHT, 0.0, 0.0))
        drawn = render(case.person, size)
        head_size = float(np.linalg.norm(drawn.keypoints[RIGHT_EAR] - drawn.keypoints[LEFT_EAR]))
        photos.append(TruePhoto(drawn.image, truth.label_map, drawn.keypoints, head_size, num_persons=1))
    return photos


def drawn_photos(num_photos: int, seed: int) -> list[TruePhoto]:
    """Return random photos of the drawn world: of any shape, with one person, two persons or nobody."""
    photos = []
    for index in range(num_photos):
        drawn = sample_test_photo(seed, index)
        area = int((drawn.person_map > 0).sum())
        neighbour_area = int((drawn.label_map > 0).sum()) - area
        num_persons = 1 if area else 0
        if neighbour_area and neighbour_area >= OTHER_PERSON_SHARE * area:
            num_persons += 1
        photos.append(TruePhoto(drawn.image, drawn.person_map, drawn.keypoints, drawn.head_size, num_persons))
    return photos


@torch.inference_mode()
def evaluate_reading(
    parser: HumanParser, pose_estimator: PoseEstimator, photos: Sequence[TruePhoto], shape: tuple[int, int]
) -> ReadingReport:
    """Return how well the photos are read. shape: the (height, width) of the model's pictures."""
    readings: list[PhotoReading] = []
    for start in range(0, len(photos), BATCH):
        pictures = [Image.fromarray(photo.image) for photo in photos[start : start + BATCH]]
        readings += read_photos(parser, pose_estimator, pictures, shape)
    return judge_readings(readings, photos)


def judge_readings(readings: Sequence[PhotoReading], photos: Sequence[TruePhoto]) -> ReadingReport:
    """Return how well readings, which have key points, agree with the truth about their photos."""
    confusion = np.zeros((len(CLASSES),) * 2, np.int64)
    right, expected = [], []
    for reading, photo in zip(readings, photos, strict=True):
        truth = labels_in(reading.window, photo.label_map, (photo.image.shape[0], photo.image.shape[1]))
        confusion += _confusion(reading.label_map, truth)
        right.append(_right_points(reading, photo))
        expected.append(present(photo.keypoints))
    iou = _intersection_over_union(confusion)
    is_right, is_present = np.stack(right)[:, JUDGED_JOINTS], np.stack(expected)[:, JUDGED_JOINTS]
    points_by_joint = {}
    for number, joint in enumerate(JUDGED_JOINTS):
        shown = is_present[:, number]
        if shown.any():
            points_by_joint[JOINTS[joint]] = float(is_right[shown, number].mean())
    numbers = np.array(
        [(reading.num_persons, photo.num_persons) for reading, photo in zip(readings, photos, strict=True)]
    )
    seen, true = numbers.T
    return ReadingReport(
        num_photos=len(photos),
        mean_iou=sum(iou.values()) / len(iou),
        iou=iou,
        points=float(is_right[is_present].mean()),
        points_by_joint=points_by_joint,
        num_persons=float((seen == true).mean()),
        num_without_person=int((true == 0).sum()),
        num_seen_as_nobody=int((seen[true == 0] == 0).sum()),
    )


def labels_in(window: Window, label_map: NDArray[np.uint8], photo_size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the classes in a window, uint8 [512, 384], with IGNORED where the window lies beyond the photo.

    label_map: that of the whole photo, at any resolution; each pixel of the result has the class at its middle.
    """
    rows, rows_inside = _sampled(window.top, window.height, KEYPOINT_FRAME[0], photo_size[0], label_map.shape[0])
    columns, columns_inside = _sampled(window.left, window.width, KEYPOINT_FRAME[1], photo_size[1], label_map.shape[1])
    labels = np.full(KEYPOINT_FRAME, IGNORED, np.uint8)
    labels[np.ix_(rows_inside, columns_inside)] = label_map[np.ix_(rows[rows_inside], columns[columns_inside])]
    return labels


def _sampled(
    start: int, length: int, num_pixels: int, photo_side: int, map_side: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return which pixel of a map shows the middle of each pixel along a side of a window, and which lie in the photo.

    start, length: of the window's side in pixels of the photo.
    """
    middles = start + (np.arange(num_pixels) + 0.5) * length / num_pixels
    is_inside = (middles >= 0) & (middles < photo_side)
    return np.floor(middles * map_side / photo_side).astype(np.int64), is_inside


def _confusion(found: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the number of pixels by true and by found class, but for those that are IGNORED in the truth."""
    is_counted = truth != IGNORED
    pairs = truth[is_counted].astype(np.int64) * len(CLASSES) + found[is_counted]
    return np.bincount(pairs, minlength=len(CLASSES) ** 2).reshape(len(CLASSES), len(CLASSES))


def _intersection_over_union(confusion: NDArray[np.int64]) -> dict[str, float]:
    """Return the intersection over union of each class that the truth shows."""
    common = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - common
    shown = np.flatnonzero(confusion.any(axis=1))
    return {CLASSES[number]: float(common[number] / union[number]) for number in shown}


def _right_points(reading: PhotoReading, photo: TruePhoto) -> NDArray[np.bool_]:
    """Return which key points [18] were seen in the right place."""
    assert reading.keypoints is not None
    distance = np.linalg.norm(reading.keypoints - photo.keypoints, axis=1)
    is_near: NDArray[np.bool_] = distance <= POINT_TOLERANCE * photo.head_size
    return present(reading.keypoints) & is_near
