"""Encoders of plain colours, pictures for them, and changes by them, for the tests of the catalogue.

Equal colours have equal vectors and pseudo-words to the last digit, whatever they are encoded with.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor

from fashion_rag.catalogue.build import Built, build, in_process
from fashion_rag.catalogue.changes import GarmentAdded, GarmentDeleted, append
from fashion_rag.catalogue.garment_encoding import EncodedGarment, Encoders, encode
from fashion_rag.catalogue.garments import INVERSION, RETRIEVAL, Garment, garments_in
from fashion_rag.catalogue.storage import Root

FINGERPRINTS = {RETRIEVAL: "colours", INVERSION: "words"}
DIM = 64
TURNED = np.random.default_rng(0).standard_normal((4, DIM)).astype(np.float32)


def vector(colour: Sequence[int]) -> NDArray[np.float32]:
    """Return the unit vector [DIM] of a colour; black has one, too."""
    turned: NDArray[np.float32] = np.array([*colour, 64], np.float32) @ TURNED
    return turned / np.linalg.norm(turned)


class Colours:
    """A stand-in for the retrieval encoder, which knows plain colours."""

    dim = DIM

    def __init__(self, fingerprint: str = "colours") -> None:
        self.fingerprint = fingerprint

    def encode_images(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        return np.stack([vector(image.getpixel((0, 0))) for image in images])

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([vector(ImageColor.getrgb(text)) for text in texts])


class Words:
    """A stand-in for the garment encoder, which gives two pseudo-words of three numbers."""

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        return torch.tensor([image.getpixel((0, 0)) for image in images], dtype=torch.float32)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.stack([pixels / 255, pixels], dim=1)


def load() -> Encoders:
    retrieval: Any = Colours()
    inversion: Any = Words()
    return Encoders(retrieval, inversion)


class Counting:
    """A `Compute` like `in_process` that remembers the ids that were encoded."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def __call__(self, batches: Iterable[Sequence[Garment]], *how: Any) -> Iterator[Any]:
        for batch in batches:
            self.ids += [garment.id for garment in batch]
            yield from in_process([batch], *how)


def paint(path: Path, colour: str, size: tuple[int, int] = (32, 32), **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **how)
    return path


def painted(folder: Path, colours: Mapping[str, str], category: str = "dresses") -> list[Garment]:
    """Paint a picture of each id and colour into a folder, and return the garments of the folder."""
    for garment_id, colour in colours.items():
        paint(folder / category / f"{garment_id}.png", colour)
    return garments_in(folder)


def made(root: Path, garments: Sequence[Garment], **how: Any) -> Built:
    """Build a version with these encoders, with the work folder beside the root, and return what was done."""
    how = {"load": load, "fingerprints": FINGERPRINTS, "work": root.with_name(f"{root.name}-work")} | how
    return build(Root.at(root), garments, **how)


def encoded(root: Path, garment_id: str, colour: str, category: str = "dresses", **description: Any) -> EncodedGarment:
    """Return a garment that is ready to be added, with its picture in the root."""
    picture = paint(root.with_name(f"{root.name}-uploads") / f"{garment_id}.png", colour)
    (outcome,) = encode([Garment(garment_id, category, "", picture, **description)], load(), Root.at(root))
    assert isinstance(outcome, EncodedGarment)
    return outcome


def add(root: Path, *garment: str, encoders: Mapping[str, str] = FINGERPRINTS, **description: Any) -> str:
    """Add the garment of this id, colour and category, and return the name of the change."""
    return append(Root.at(root), GarmentAdded(*encoded(root, *garment, **description), encoders))


def delete(root: Path, garment_id: str) -> str:
    """Delete the garment of this id, and return the name of the change."""
    return append(Root.at(root), GarmentDeleted(garment_id))
