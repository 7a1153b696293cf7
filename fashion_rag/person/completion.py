"""The parts of an edit request that a caller left out, as they follow from what was seen in the photo.

`find` needs what was read in the photo and returns a small object that can travel between processes. `complete` puts it
into the request. The pipeline calls both; in the graph the parser's replicas find, and every stage completes. It needs
no PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fashion_rag.person.reading import PhotoReading
from fashion_rag.request import CompleteRequest, EditRequest, Window


@dataclass(frozen=True)
class CategoryChoice:
    """The category of an edit, and how sure it is: from 0 to 1; None where the caller or a named garment decided."""

    category: str
    confidence: float | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """What was found out about a request.

    mask: uint8 [512, 384] of the window, 1 = repaint; None if the caller gave one.
    keypoints: float64 [18, 2] in pixels of the photo; None if they are not known.
    warnings: sentences for the caller, such as that there are two persons in the photo.
    """

    choice: CategoryChoice
    window: Window
    mask: NDArray[np.uint8] | None
    keypoints: NDArray[np.float64] | None
    warnings: tuple[str, ...] = ()


def wants_reading(request: EditRequest) -> bool:
    """Return whether the photo of the request must be read: where its mask or its key points are to be found."""
    return request.mask is None or request.keypoints is None


def find(request: EditRequest, choice: CategoryChoice, shape: tuple[int, int], reading: PhotoReading | None) -> Found:
    """Return what the request leaves open. What the request has wins.

    shape: the (height, width) of the model's pictures. reading: None where the photo was not read.
    Raises InvalidRequest, naming the field, if there is no mask and the photo was not read, shows nobody, or does not
    show the part to be dressed.
    """
    raise NotImplementedError


def complete(request: EditRequest, found: Found) -> CompleteRequest:
    """Return the request with what was found in it."""
    raise NotImplementedError
