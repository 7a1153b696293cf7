"""How well the human parser and the pose estimator read drawn photos in which everybody wears held-out garments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fashion_rag.data.pose import KEYPOINT_FRAME
from fashion_rag.demo.model import recipe
from fashion_rag.demo.model.photo_cases import sample_test_photo
from fashion_rag.demo.model.photo_stages import COCO_POINTS
from fashion_rag.demo.model.photo_views import IGNORED, crop, crop_labels, cut_person, letterboxed, window_round
from fashion_rag.demo.world.photos import DollPhoto

# A point counts as found within this share of the head's size, which is the distance between the ears.
POINT_TOLERANCE = 0.1
# A point counts as absent if its heat map stays below this value.
MIN_SCORE = 0.3
BATCH = 20
COCO_NAMES = (
    "nose",
    "left eye",
    "right eye",
    "left ear",
    "right ear",
    "left shoulder",
    "right shoulder",
    "left elbow",
    "right elbow",
    "left wrist",
    "right wrist",
    "left hip",
    "right hip",
    "left knee",
    "right knee",
    "left ankle",
    "right ankle",
)


def test_photos(num_photos: int, seed: int) -> list[DollPhoto]:
    """Return drawn photos of at least one person each, who wears held-out garments."""
    photos: list[DollPhoto] = []
    index = 0
    while len(photos) < num_photos:
        photo = sample_test_photo(seed, index)
        if photo.box is not None:
            photos.append(photo)
        index += 1
    return photos


@torch.inference_mode()
def parser_report(network: nn.Module, photos: Sequence[DollPhoto]) -> dict[str, Any]:
    """Return the intersection over union of each class in the windows and in the whole photos, and their means.

    A class is counted over the pixels of all photos, and the mean is over the classes that the photos show.
    """
    windows, wholes = Confusion(), Confusion()
    for photo in photos:
        assert photo.box is not None
        size = (photo.image.shape[0], photo.image.shape[1])
        view = window_round(photo.box, size, None)
        windows.add(parse(network, crop(photo.image, view)), crop_labels(photo.label_map, view))
        wholes.add(parse(network, photo.image), photo.label_map)
    return {"window": windows.means(), "whole": wholes.means()}


def parse(network: nn.Module, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the label map of a picture at its own size, uint8 [H, W].

    A picture of the model's shape is looked at in Dress Code's frame, like a window; any other one at its own size.
    """
    height, width = image.shape[:2]
    pixels = torch.from_numpy(letterboxed(image, recipe.PARSER_SIZE, None)).permute(2, 0, 1)[None]
    logits = network(pixels).logits
    scale = min(recipe.PARSER_SIZE[0] / height, recipe.PARSER_SIZE[1] / width)
    large = functional.interpolate(logits, size=KEYPOINT_FRAME, mode="bilinear", align_corners=False)
    labels = large[0].argmax(dim=0).numpy().astype(np.uint8)
    # The centre of each pixel of the picture, in pixels of the frame.
    factor = KEYPOINT_FRAME[0] / recipe.PARSER_SIZE[0]
    rows = _centres(height, scale, recipe.PARSER_SIZE[0]) * factor
    columns = _centres(width, scale, recipe.PARSER_SIZE[1]) * factor
    return labels[rows.astype(np.int64)[:, None], columns.astype(np.int64)[None, :]]


def _centres(length: int, scale: float, input_length: int) -> NDArray[np.float64]:
    """Return the centres of `length` pixels along a side of the parser's input, in pixels of the input."""
    shown = max(round(length * scale), 1)
    start = (input_length - shown) // 2
    return start + (np.arange(length) + 0.5) * shown / length


class Confusion:
    """The counts of pixels by true and by found class."""

    def __init__(self) -> None:
        self.counts = np.zeros((len(recipe.CLASSES),) * 2, np.int64)

    def add(self, found: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
        """Count the pixels of a picture, but for those that are IGNORED in the truth."""
        is_counted = truth != IGNORED
        pairs = truth[is_counted].astype(np.int64) * len(recipe.CLASSES) + found[is_counted]
        self.counts += np.bincount(pairs, minlength=self.counts.size).reshape(self.counts.shape)

    def means(self) -> dict[str, float]:
        """Return the intersection over union of each class that the truth shows, and the mean of all of them."""
        common = np.diag(self.counts)
        union = self.counts.sum(axis=0) + self.counts.sum(axis=1) - common
        shares = {}
        for number, name in enumerate(recipe.CLASSES):
            if self.counts[number].any():
                shares[name] = float(common[number] / union[number])
        shares["mean"] = sum(shares.values()) / len(shares)
        return {name: round(share, 4) for name, share in shares.items()}


@torch.inference_mode()
def pose_report(network: nn.Module, photos: Sequence[DollPhoto]) -> dict[str, Any]:
    """Return the share of the present points that are found within POINT_TOLERANCE, by point and for all points.

    "absent" is the share of the absent points whose heat map stays below MIN_SCORE, and "seen" the share of the present
    points whose heat map does not.
    """
    is_right, is_present, is_seen = [], [], []
    for start in range(0, len(photos), BATCH):
        part = photos[start : start + BATCH]
        cuts = [cut_person(photo.image, photo.box or (0, 0, 1, 1), recipe.POSE_SIZE, None) for photo in part]
        pixels = torch.from_numpy(np.stack([cut.pixels for cut in cuts])).permute(0, 3, 1, 2).contiguous()
        points, scores = peaks(network(pixels).heatmaps)
        for row, (photo, cut) in enumerate(zip(part, cuts, strict=True)):
            truth = photo.keypoints[list(COCO_POINTS)]
            extent = cut.scale * 200.0
            located = points[row] / (np.array(recipe.POSE_MAP_SIZE[::-1]) - 1) * extent + cut.centre - extent / 2
            distance = np.linalg.norm(located - truth, axis=1)
            is_right.append(distance <= POINT_TOLERANCE * photo.head_size)
            is_present.append(truth.any(axis=1))
            is_seen.append(scores[row] >= MIN_SCORE)
    right, present, seen = np.stack(is_right), np.stack(is_present), np.stack(is_seen)
    report: dict[str, Any] = {
        "all": round(float(right[present].mean()), 4),
        "seen": round(float(seen[present].mean()), 4),
        "absent": round(float(1 - seen[~present].mean()), 4),
    }
    for number, name in enumerate(COCO_NAMES):
        report[name] = round(float(right[:, number][present[:, number]].mean()), 4)
    return report


def peaks(heat: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the (x, y) of the peak of each heat map in cells, float64 [B, n, 2], and its height, float32 [B, n].

    heat: [B, n, h, w]. A parabola through the logarithms of the highest cell and its neighbours gives the place
    between cells.
    """
    maps = heat.float().numpy()
    width = maps.shape[3]
    flat = maps.reshape(*maps.shape[:2], -1)
    best, scores = flat.argmax(axis=2), flat.max(axis=2)
    logs = np.log(np.pad(np.clip(maps, 1e-3, None), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge"))
    images, points = np.indices(best.shape)
    rows, columns = best // width, best % width
    middle = logs[images, points, rows + 1, columns + 1]
    across = _offset(logs[images, points, rows + 1, columns], middle, logs[images, points, rows + 1, columns + 2])
    down = _offset(logs[images, points, rows, columns + 1], middle, logs[images, points, rows + 2, columns + 1])
    return np.stack([columns + across, rows + down], axis=2).astype(np.float64), scores


def _offset(
    before: NDArray[np.float32], middle: NDArray[np.float32], after: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return where a parabola through three neighbouring values has its peak, from -0.5 to 0.5 of a step."""
    bend = np.minimum(before - 2 * middle + after, -1e-6)
    offset: NDArray[np.float32] = np.clip(0.5 * (before - after) / bend, -0.5, 0.5)
    return offset
