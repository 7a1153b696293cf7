"""The training stages of the two networks that look at photos: the human parser and the pose estimator.

Each is a `fit.TrainingStage`. `train` calls them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fashion_rag.data.window import crop
from fashion_rag.demo.model import recipe
from fashion_rag.demo.model.photo_cases import PhotoCase
from fashion_rag.demo.model.photo_views import (
    IGNORED,
    crop_labels,
    cut_person,
    letterboxed,
    letterboxed_labels,
    moved_window,
)
from fashion_rag.person.labels import COCO_JOINTS, NUM_COCO_POINTS

# How often the parser is shown the window round a person, and not the whole photo.
WINDOW_SHARE = 0.6
# For each of COCO's 17 points, its number among OpenPose's 18.
COCO_POINTS = tuple(COCO_JOINTS.index(point) for point in range(NUM_COCO_POINTS))
# The standard deviation of a point in a heat map, in cells.
HEAT_SIGMA = 2.0
# The factor on the squared error of heat maps, most of which is zero.
HEAT_WEIGHT = 100.0


class ParserStage:
    """The training of the human parser on whole photos and on windows round a person.

    name: of the checkpoint. size: (height, width) of the pictures. Half the size costs a quarter of the time, so the
    parser learns the classes on small pictures, and exact edges on larger ones.
    """

    def __init__(
        self,
        cases: Sequence[PhotoCase],
        device: torch.device,
        name: str,
        size: tuple[int, int],
    ) -> None:
        self.cases, self.device, self.name, self.size = cases, device, name, size
        self.network = recipe.make_parser().to(device)

    def loss(self, rng: np.random.Generator, batch_size: int) -> Tensor:
        """Return the cross-entropy of the pixels plus the Dice loss of the classes."""
        pictures, label_maps = [], []
        for row in rng.integers(len(self.cases), size=batch_size):
            image, labels = self._view(self.cases[row], rng)
            pictures.append(letterboxed(image, self.size, rng))
            label_maps.append(letterboxed_labels(labels, self.size))
        pixels = torch.from_numpy(np.stack(pictures)).to(self.device).permute(0, 3, 1, 2).contiguous()
        truth = torch.from_numpy(np.stack(label_maps)).to(self.device).long()
        logits = self.network(pixels).logits
        logits = functional.interpolate(logits, size=self.size, mode="bilinear", align_corners=False)
        return functional.cross_entropy(logits, truth, ignore_index=IGNORED) + dice_loss(logits, truth)

    def _view(self, case: PhotoCase, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the photo or a window of it, and its label map."""
        if case.box is None or rng.random() > WINDOW_SHARE:
            return case.image, case.label_map
        window = moved_window(rng, case.box, (case.label_map.shape[0], case.label_map.shape[1]))
        return crop(case.image, window), crop_labels(case.label_map, window)


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1 less the mean Dice coefficient of the classes that the batch shows.

    logits: [B, C, H, W]. labels: class numbers or IGNORED, int64 [B, H, W].
    """
    is_counted = (labels != IGNORED)[:, None]
    shares = logits.float().softmax(dim=1) * is_counted
    truth = functional.one_hot(labels.where(is_counted[:, 0], 0), logits.shape[1]).permute(0, 3, 1, 2) * is_counted
    common = (shares * truth).sum(dim=(0, 2, 3))
    num_true = truth.sum(dim=(0, 2, 3))
    dice = 2 * common / (shares.sum(dim=(0, 2, 3)) + num_true).clamp(min=1)
    return 1 - dice[num_true > 0].mean()


class PoseStage:
    """The training of the pose estimator on persons in their boxes."""

    name = "pose"

    def __init__(self, cases: Sequence[PhotoCase], device: torch.device) -> None:
        self.cases = [case for case in cases if case.box is not None]
        self.device = device
        self.network = recipe.make_pose().to(device)

    def loss(self, rng: np.random.Generator, batch_size: int) -> Tensor:
        """Return the squared error of the heat maps."""
        cuts, targets = [], []
        for row in rng.integers(len(self.cases), size=batch_size):
            case = self.cases[row]
            assert case.box is not None
            cut = cut_person(case.image, case.box, recipe.POSE_SIZE, rng)
            points = case.keypoints[list(COCO_POINTS)]
            cuts.append(cut.pixels)
            targets.append(heat_targets(cut.to_map(points, recipe.POSE_MAP_SIZE), points.any(axis=1)))
        pixels = torch.from_numpy(np.stack(cuts)).to(self.device).permute(0, 3, 1, 2).contiguous()
        heat = self.network(pixels).heatmaps
        return HEAT_WEIGHT * functional.mse_loss(heat, torch.from_numpy(np.stack(targets)).to(self.device))


def heat_targets(points: NDArray[np.float64], is_present: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return a Gaussian of peak 1 round each present point, float32 [n, h, w]; the maps of absent points are zero.

    points: (x, y) in cells of the maps, [n, 2]; a peak may lie between cells.
    """
    rows, columns = np.arange(recipe.POSE_MAP_SIZE[0]), np.arange(recipe.POSE_MAP_SIZE[1])
    down = np.exp(-((rows - points[:, 1:]) ** 2) / (2 * HEAT_SIGMA**2)) * is_present[:, None]
    across = np.exp(-((columns - points[:, :1]) ** 2) / (2 * HEAT_SIGMA**2))
    return (down[:, :, None] * across[:, None, :]).astype(np.float32)
