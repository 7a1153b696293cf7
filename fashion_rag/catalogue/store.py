"""What a catalogue knows of its garments: reading them from folders of pictures, keeping them on disk.

`index.py` adds the vectors; the pipeline and the servers open the pictures.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fashion_rag.artifacts import read_json, write_json
from fashion_rag.data import dresscode
from fashion_rag.data.image import open_image
from fashion_rag.errors import ArtifactError, InvalidRequest
from fashion_rag.request import CATEGORIES

GARMENTS_FILE = "garments.json"
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Garment:
    """One garment on sale. The caption is for people to read, empty where there is none; the index never uses it."""

    id: str
    category: str
    caption: str
    image_path: Path

    def image(self) -> Image.Image:
        """The RGB picture, upright. Raises ArtifactError if it is missing or damaged."""
        try:
            return open_image(self.image_path)
        except InvalidRequest as error:
            raise ArtifactError(f"garment {self.id}: {error}") from error


def garments_in(folder: Path, phase: dresscode.Phase = "test") -> list[Garment]:
    """The garments in a folder of pictures, by category and id.

    Either the Dress Code layout (known by its `fine_captions.json`; the garments of `phase`) or `CATEGORY/ID.jpg` (or
    .jpeg, .png, .webp) with an optional `captions.json` (id -> caption). Raises ArtifactError for none or two of an id.
    """
    if (folder / "fine_captions.json").is_file():
        categories = [category for category in CATEGORIES if (folder / category).is_dir()]
        found = dresscode.garments(folder, phase, categories=categories)
        garments = [Garment(one.garment_id, one.category, one.caption, one.path) for one in found]
    else:
        captions = read_json(folder / "captions.json") if (folder / "captions.json").is_file() else {}
        garments = [
            Garment(path.stem, category, captions.get(path.stem, ""), path)
            for category in CATEGORIES
            for path in sorted((folder / category).glob("*"))
            if path.suffix.lower() in PICTURE_SUFFIXES
        ]
    if not garments:
        raise ArtifactError(f"{folder}: no garment pictures; must be in folders named {', '.join(CATEGORIES)}")
    return in_order(garments)


def in_order(garments: Sequence[Garment]) -> list[Garment]:
    """The garments by category and id. Raises ArtifactError for an unknown category and for two of an id."""
    seen: dict[str, Garment] = {}
    for garment in garments:
        if garment.category not in CATEGORIES:
            raise ArtifactError(
                f"garment {garment.id}: category is {garment.category!r}; must be one of {', '.join(CATEGORIES)}"
            )
        if other := seen.get(garment.id):
            raise ArtifactError(f"garment {garment.id}: is both {other.image_path} and {garment.image_path}")
        seen[garment.id] = garment
    return sorted(garments, key=lambda garment: (garment.category, garment.id))


def write_garments(garments: Sequence[Garment], path: Path, home: Path) -> None:
    """Write the garments as JSON; pictures are named relative to `home`, so that both can move together."""
    rows = [
        {
            "id": garment.id,
            "category": garment.category,
            "caption": garment.caption,
            "image": os.path.relpath(garment.image_path.resolve(), home.resolve()),
        }
        for garment in garments
    ]
    write_json(path, rows)


def read_garments(path: Path) -> list[Garment]:
    """The garments in a file of `write_garments`, in its order. Raises ArtifactError if it is none."""
    home, rows = path.parent.resolve(), read_json(path)
    if not isinstance(rows, list):
        raise ArtifactError(f"{path}: holds a {type(rows).__name__}; must be a list of garments")
    try:
        return [
            Garment(row["id"], row["category"], row["caption"], Path(os.path.normpath(home / row["image"])))
            for row in rows
        ]
    except (TypeError, KeyError) as error:
        raise ArtifactError(f"{path}: not a list of garments: {error!r}") from error
