from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fashion_rag.catalogue.garments import Garment
from fashion_rag.demo.world.layout import write_dresscode
from fashion_rag.evaluation.editors import Edited
from fashion_rag.evaluation.edits import EvaluationSettings
from fashion_rag.manifest import Manifest
from fashion_rag.request import EditRequest
from tests.tiny import MANIFEST


class Painter:
    """An editor that paints masks in one colour, and remembers the requests that it got."""

    def __init__(self, colour: str = "red") -> None:
        self.colour = np.array(Image.new("RGB", (1, 1), colour))[0, 0]
        self.asked: list[EditRequest] = []
        self.garments: list[Sequence[Garment]] = []

    def edit(self, requests: Sequence[EditRequest], garments: Sequence[Sequence[Garment]] | None) -> list[Edited]:
        self.asked += requests
        self.garments += garments or []
        return [
            Edited(
                np.where(request.mask[..., None] > 0, self.colour, request.image).astype(np.uint8),
                tuple(f"garment-{number}" for number in range(request.num_garments)),
            )
            for request in requests
        ]

    def garment_picture(self, garment_id: str) -> Image.Image:
        return Image.new("RGB", (48, 64), {"garment-0": "red", "garment-1": "green", "garment-2": "blue"}[garment_id])


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    return MANIFEST


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three drawn pairs of each category, in the tiny bundle's size. Copy it before a change."""
    root = tmp_path_factory.mktemp("evaluation") / "world"
    write_dresscode(root, 3, seed=1, size=MANIFEST.image_size)
    return root


@pytest.fixture
def settings(world: Path) -> EvaluationSettings:
    return EvaluationSettings(str(world), "painter", steps=2)
