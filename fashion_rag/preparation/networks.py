"""The networks of a bundle that a preparation needs. They are loaded when they are first used, in any process."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.category import CategoryChooser
from fashion_rag.errors import InvalidRequest
from fashion_rag.person.reading import read_photos
from fashion_rag.preparation.pictures import Read
from fashion_rag.preparation.run import Networks
from fashion_rag.request import EditRequest

PHOTO_PARTS = ("parser", "pose")


def networks_of(bundle: Bundle, device: str) -> Networks:
    """Return the networks of a bundle, which must have a human parser and a pose estimator.

    Raises InvalidRequest, naming the part, for a bundle without.
    """
    for part in PHOTO_PARTS:
        if not (bundle.path / part).is_dir():
            rule = f"must have the part {part}, which reads photos; `fashion-rag bundle add` adds it"
            raise InvalidRequest("bundle", str(bundle.path), rule)
    return Networks(
        load=partial(load_reader, bundle, device),
        fingerprint=bundle.fingerprint(*PHOTO_PARTS),
        choose_category=WordsChooser(bundle),
    )


def load_reader(bundle: Bundle, device: str) -> Read:
    """Return what reads photos, with the networks of the bundle on a device."""
    parser, pose_estimator = bundle.load_parser(device), bundle.load_pose_estimator(device)
    return partial(read_photos, parser, pose_estimator, shape=bundle.manifest.image_size)


class WordsChooser:
    """Chooses the category of a caption by its words. The encoder is loaded for the first caption."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._chooser: CategoryChooser | None = None

    def __call__(self, caption: str) -> str:
        """Return the category of a caption. Raises InvalidRequest, naming the candidates, if it is not clear."""
        if self._chooser is None:
            self._chooser = CategoryChooser(self.bundle.load_retrieval_encoder())
        nothing: Any = np.zeros((1, 1, 3), np.uint8)
        return self._chooser.choose(None, [EditRequest(image=nothing, prompt=caption)])[0].category
