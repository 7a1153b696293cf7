"""The pose estimator: a ViTPose that finds the joints of one person, in a photo of which it sees the person's box.

`reading.py` calls it. What goes in and how heat maps are read follows transformers' `VitPoseImageProcessor`, that is
UDP (arXiv 1911.07524) and DARK (arXiv 1910.06278). Sizes are (height, width); points are (x, y), and whole numbers are
the middles of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

from fashion_rag.person.labels import openpose_points
from fashion_rag.person.pixels import InputPicture, normalised

if TYPE_CHECKING:
    from transformers import VitPoseForPoseEstimation

# How much larger than the person's box the part of the photo is that the network sees, as in its training.
PADDING = 1.25
# A point whose peak in the heat map is lower is absent. A peak of 1 is a sure point.
MIN_CONFIDENCE = 0.3
# Heat maps are smoothed, by so many of their pixels, before their peaks are measured.
SMOOTHING_SIGMA, SMOOTHING_RADIUS = 0.8, 5
# The logarithm of a heat map is taken, so its values must not reach 0.
MIN_HEAT = 0.001


class PersonBox(NamedTuple):
    """The box round a person, in pixels of the photo."""

    left: float
    top: float
    width: float
    height: float


class View(NamedTuple):
    """The part of a photo that the network sees, in pixels of the photo; it may reach beyond the photo."""

    middle_x: float
    middle_y: float
    width: float
    height: float


class PoseNetwork(nn.Module):
    """A ViTPose that is called with plain tensors and returns plain tensors, like the compiled networks."""

    def __init__(self, vitpose: VitPoseForPoseEstimation) -> None:
        super().__init__()
        self.vitpose = vitpose

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the heat maps of COCO's joints, float32 [B, 17, h, w], for normalised pixels [B, 3, H, W].

        The pixels may be on any device.
        """
        heat_maps: Tensor = self.vitpose(pixel_values=pixels.to(self.vitpose.device, self.vitpose.dtype)).heatmaps
        return heat_maps.float()


class PoseEstimator(nn.Module):
    """The finder of the key points of persons whose boxes are known. A compiled module may replace `network`."""

    def __init__(self, network: nn.Module, input_picture: InputPicture) -> None:
        """Take the network and the form of its input."""
        super().__init__()
        self.network = network
        self.input_picture = input_picture

    def view(self, box: PersonBox) -> View:
        """Return what the network sees of a photo for the person in `box`: the box, grown to the shape of the input."""
        aspect = self.input_picture.size[1] / self.input_picture.size[0]
        width, height = max(box.width, box.height * aspect), max(box.height, box.width / aspect)
        middle_x, middle_y = box.left + box.width / 2, box.top + box.height / 2
        return View(middle_x, middle_y, width * PADDING, height * PADDING)

    def pixels(self, photos: Sequence[Image.Image], boxes: Sequence[PersonBox]) -> Tensor:
        """Return the input of the network, float32 [B, 3, h, w], for RGB photos and a person's box in each."""
        rows = []
        for photo, box in zip(photos, boxes, strict=True):
            cut = cut_view(photo, self.view(box), self.input_picture.size)
            rows.append(normalised(cut, self.input_picture))
        return torch.stack(rows)

    def coco_points(
        self, photos: Sequence[Image.Image], boxes: Sequence[PersonBox]
    ) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Return COCO's points [17, 2] in pixels of the photo, and their confidences [17], for each photo.

        photos: B >= 1, RGB. boxes: that of a person in each photo.
        """
        heat_maps = self.network(self.pixels(photos, boxes)).cpu().double().numpy()
        found = []
        for maps, box in zip(heat_maps, boxes, strict=True):
            points, confidences = peaks(maps)
            view = self.view(box)
            steps = np.array([view.width, view.height]) / (np.array(maps.shape[:0:-1]) - 1)
            corner = np.array([view.middle_x - view.width / 2, view.middle_y - view.height / 2])
            found.append((corner + points * steps, confidences))
        return found

    def keypoints(self, photos: Sequence[Image.Image], boxes: Sequence[PersonBox]) -> list[NDArray[np.float64]]:
        """Return OpenPose's points [18, 2] in pixels of the photo, for each photo; (0, 0) = absent.

        photos: B >= 1, RGB. boxes: that of a person in each photo.
        """
        return [openpose_points(*found, MIN_CONFIDENCE) for found in self.coco_points(photos, boxes)]


def cut_view(photo: Image.Image, view: View, size: tuple[int, int]) -> Image.Image:
    """Return the view of an RGB photo as a picture of `size`; what lies beyond the photo is black.

    The middles of the outermost pixels lie on the edges of the view, as UDP wants it.
    """
    height, width = size
    step_x, step_y = view.width / (width - 1), view.height / (height - 1)
    # Pillow counts from the corners of pixels, so 0.5 is the middle of the first pixel.
    left, top = view.middle_x - view.width / 2 + 0.5, view.middle_y - view.height / 2 + 0.5
    # A pixel of the result takes four pixels of the photo into account. Where the result is much smaller, the photo is
    # reduced first, and only that part of it which is seen.
    factor = max(1, math.floor(min(step_x, step_y)))
    seen = (
        max(0, math.floor(left - factor)),
        max(0, math.floor(top - factor)),
        min(photo.width, math.ceil(left + view.width + factor)),
        min(photo.height, math.ceil(top + view.height + factor)),
    )
    part = photo.reduce(factor, seen) if factor > 1 else photo.crop(seen)
    step_x, step_y = step_x / factor, step_y / factor
    left, top = (left - seen[0]) / factor, (top - seen[1]) / factor
    matrix = (step_x, 0.0, left - step_x / 2, 0.0, step_y, top - step_y / 2)
    return part.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def peaks(heat_maps: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the peak of each heat map [K, h, w] as a point [K, 2] in its pixels, and its height [K].

    The point lies between pixels: it is the peak of the parabola that fits the logarithm of the smoothed heat map.
    """
    flat = heat_maps.reshape(len(heat_maps), -1)
    rows, columns = np.divmod(flat.argmax(axis=1), heat_maps.shape[2])
    smoothed = ndimage.gaussian_filter(heat_maps, SMOOTHING_SIGMA, radius=SMOOTHING_RADIUS, axes=(1, 2))
    # With a border of one pixel, a peak at the edge has neighbours, too.
    heat = np.pad(np.log(np.maximum(smoothed, MIN_HEAT)), ((0, 0), (1, 1), (1, 1)), mode="edge")
    points = np.stack([columns, rows], axis=1).astype(np.float64)
    for number, (row, column) in enumerate(zip(rows, columns, strict=True)):
        points[number] += _offset(heat[number, row : row + 3, column : column + 3])
    return points, flat.max(axis=1)


def _offset(around: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far, (x, y), the peak of the parabola through `around` [3, 3] is from the middle.

    It is (0, 0) where the values have no peak, and at most one pixel in each direction.
    """
    up, left, middle, right, down = around[0, 1], around[1, 0], around[1, 1], around[1, 2], around[2, 1]
    slope = np.array([right - left, down - up]) / 2
    mixed = (around[2, 2] - right - down + 2 * middle - left - up + around[0, 0]) / 2
    curvature = np.array([[right - 2 * middle + left, mixed], [mixed, down - 2 * middle + up]])
    if curvature[0, 0] >= 0 or np.linalg.det(curvature) <= 0:
        return np.zeros(2)
    offset: NDArray[np.float64] = -np.linalg.solve(curvature, slope)
    return np.clip(offset, -1, 1)
