"""What makes complete requests of requests: the parts of a bundle that find what a caller left out.

The pipeline and the evaluation call it. `person.completion` has the rules. In the graph, the parser's and the
retriever's replicas have these parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch
from PIL import Image

from fashion_rag.bundle import Bundle, Device
from fashion_rag.catalogue.catalogue import Catalogue
from fashion_rag.catalogue.category import CategoryChooser
from fashion_rag.catalogue.garments import Garment
from fashion_rag.data.colour import to_srgb
from fashion_rag.errors import InvalidRequest
from fashion_rag.person.completion import CategoryChoice, Found, complete, find, wants_reading
from fashion_rag.person.parser import HumanParser
from fashion_rag.person.pose_estimator import PoseEstimator
from fashion_rag.person.reading import PhotoReading, read_photos
from fashion_rag.request import CompleteRequest, EditRequest


class Completed(NamedTuple):
    """A complete request, and what was found to complete it."""

    request: CompleteRequest
    found: Found


def _no_chooser() -> CategoryChooser:
    raise InvalidRequest("category", None, "must be given", "missing_required_parameter")


@dataclass(frozen=True, eq=False)
class Completer:
    """Finds what requests leave open. Without a parser, requests must have a mask.

    load_chooser: returns what chooses categories, which is loaded only for the first request without a category.
    """

    parser: HumanParser | None = None
    pose_estimator: PoseEstimator | None = None
    load_chooser: Callable[[], CategoryChooser] = _no_chooser

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        catalogue: Catalogue | None,
        device: Device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Completer:
        """Return the completer of a bundle. Its category chooser uses the encoder of the catalogue, if there is one."""
        return cls(
            parser=bundle.load_parser(device, dtype) if bundle.has_parser else None,
            pose_estimator=bundle.load_pose_estimator(device, dtype) if bundle.has_pose_estimator else None,
            load_chooser=lazy_chooser(bundle, catalogue, device),
        )

    def __call__(
        self,
        catalogue: Catalogue | None,
        requests: Sequence[EditRequest],
        shape: tuple[int, int],
        garments: Sequence[Sequence[Garment]] | None = None,
    ) -> list[Completed]:
        """Return each request with what it leaves open. All photos are read together.

        catalogue: knows the garments that requests name. shape: the (height, width) of the model's pictures.
        garments: those of each request, where they are brought along; their category is the request's.
        Raises InvalidRequest, naming the field, for what is neither given nor found.
        """
        if garments is not None:
            requests = [_of_category(request, worn) for request, worn in zip(requests, garments, strict=True)]
        choices = self._choose(catalogue, requests)
        completed = []
        for request, choice, reading in zip(requests, choices, self._read(requests, shape), strict=True):
            found = find(request, choice, shape, reading)
            completed.append(Completed(complete(request, found), found))
        return completed

    def _choose(self, catalogue: Catalogue | None, requests: Sequence[EditRequest]) -> list[CategoryChoice]:
        """Return the category of each request."""
        categories = [request.category for request in requests if request.category is not None]
        if len(categories) == len(requests):
            return [CategoryChoice(category) for category in categories]
        return self.load_chooser().choose(catalogue, requests)

    def _read(self, requests: Sequence[EditRequest], shape: tuple[int, int]) -> list[PhotoReading | None]:
        """Return what is seen in the photo of each request, or None where it is not read."""
        readings: list[PhotoReading | None] = [None] * len(requests)
        rows = [row for row, request in enumerate(requests) if wants_reading(request)]
        if self.parser is None or not rows:
            return readings
        photos = [to_srgb(Image.fromarray(requests[row].image), requests[row].icc_profile) for row in rows]
        for row, reading in zip(rows, read_photos(self.parser, self.pose_estimator, photos, shape), strict=True):
            readings[row] = reading
        return readings


def lazy_chooser(bundle: Bundle, catalogue: Catalogue | None, device: Device = "cpu") -> Callable[[], CategoryChooser]:
    """Return what loads the category chooser at its first call, with the encoder of the catalogue if it has one."""

    @cache
    def load() -> CategoryChooser:
        encoder = None if catalogue is None else catalogue.encoder
        return CategoryChooser(encoder or bundle.load_retrieval_encoder(device))

    return load


def _of_category(request: EditRequest, garments: Sequence[Garment]) -> EditRequest:
    """Return the request in the category of its garments, if it has none and theirs is known and the same."""
    categories = {garment.category for garment in garments if garment.category}
    if request.category is not None or len(categories) != 1:
        return request
    return replace(request, category=categories.pop())
