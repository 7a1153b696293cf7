"""Garments and where their pictures are: in a folder or table that is to become a catalogue, or in a catalogue.

The build reads garments from folders and tables; the pipeline and the servers hold garments of a catalogue.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.artifacts import read_config, sha256
from fashion_rag.catalogue.storage import Root
from fashion_rag.catalogue.table import GarmentRow
from fashion_rag.data import dresscode
from fashion_rag.data.image import open_image
from fashion_rag.errors import ArtifactError, InvalidRequest
from fashion_rag.request import CATEGORIES

# A stored picture is no larger than any model here looks at, and keeps the full resolution of its colours.
MAX_STORED_SIDE = 2048
JPEG_QUALITY, JPEG_SUBSAMPLING = 95, 0
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# A camera of 64 megapixels writes files of about this size.
MAX_PICTURE_BYTES = 64 * 1024 * 1024
REQUIRED_COLUMNS = ("id", "category", "image")
# A version keeps the fingerprints of its encoders by these names: of the vectors, and of the pseudo-words.
RETRIEVAL, INVERSION = "retrieval", "inversion"


@dataclass(frozen=True)
class StoredPicture:
    """A picture in a catalogue's root, with the SHA-256 of the picture it was made of. It is read like a path."""

    root: Root
    reference: str
    sha256: str

    @property
    def name(self) -> str:
        """Return the name of the file."""
        return self.reference.rpartition("/")[2]

    @property
    def location(self) -> str:
        """Return the path of the file, or its URL if it is in a store."""
        full = self.root.full(self.reference)
        return full if self.root.is_local else str(self.root.fs.unstrip_protocol(full))

    def read_bytes(self) -> bytes:
        """Return the file's content. Raises OSError as a path does, and ArtifactError for a file that is too large."""
        return self.root.read(self.reference, MAX_PICTURE_BYTES)


@dataclass(frozen=True)
class Garment:
    """One garment on sale.

    caption: for people to read, empty where there is none; only evaluations search with it. chunks: captions of single
    noun chunks. attributes: values by name, to filter by. pseudo_words: float32 [P, W], where they are known.
    opened: the RGB picture, where it has been decoded already.
    """

    id: str
    category: str
    caption: str
    picture: Path | StoredPicture
    chunks: tuple[str, ...] = ()
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pseudo_words: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    opened: Image.Image | None = field(default=None, compare=False, repr=False)

    @classmethod
    def stored(cls, root: Root, row: GarmentRow, pseudo_words: NDArray[np.float32] | None = None) -> Garment:
        """Return the garment of a row of the catalogue in `root`."""
        picture = StoredPicture(root, row.image, row.sha256)
        return cls(row.id, row.category, row.caption, picture, row.chunks, row.attributes, pseudo_words)

    @property
    def location(self) -> str:
        """Return the path of the picture, or its URL if it is in a store."""
        return str(self.picture) if isinstance(self.picture, Path) else self.picture.location

    def image(self) -> Image.Image:
        """Return the RGB picture, upright. Raises ArtifactError if it is missing or damaged."""
        if self.opened is not None:
            return self.opened
        try:
            return open_image(self.picture.read_bytes())
        except (InvalidRequest, OSError) as error:
            raise ArtifactError(f"garment {self.id}: {self.picture.name}: {error}") from error

    def digest(self) -> str:
        """Return the SHA-256 of the picture as it was delivered. Raises OSError for a file that cannot be read."""
        if isinstance(self.picture, StoredPicture):
            return self.picture.sha256
        return sha256(self.picture)


def garments_in(source: Path, phase: dresscode.Phase = "test") -> list[Garment]:
    """Return the garments that a catalogue is to be made of, by category and id.

    source: is one of
    - a folder in the Dress Code layout, known by its `fine_captions.json`; it gives the garments of `phase`
    - a folder of `CATEGORY/ID.jpg` (or .jpeg, .png, .webp) with an optional `captions.json` (id -> caption)
    - a Parquet file with the columns id, category and image (a path relative to the file), and optionally caption;
      other columns, of texts or lists of texts, become attributes

    Raises ArtifactError if there are no garments, or two with the same id.
    """
    if source.suffix == ".parquet":
        garments = list(_in_table(source))
    elif (source / "fine_captions.json").is_file():
        garments = _in_dresscode(source, phase)
    else:
        garments = _in_folders(source)
    if not garments:
        raise ArtifactError(f"{source}: no garment pictures; must be in folders named {', '.join(CATEGORIES)}")
    return in_order(garments)


def _in_dresscode(source: Path, phase: dresscode.Phase) -> list[Garment]:
    categories = [category for category in CATEGORIES if (source / category).is_dir()]
    in_data_set = dresscode.garments(source, phase, categories=categories)
    return [Garment(garment.garment_id, garment.category, garment.caption, garment.path) for garment in in_data_set]


def _in_folders(source: Path) -> list[Garment]:
    captions_file = source / "captions.json"
    captions = read_config(captions_file) if captions_file.is_file() else {}
    garments = []
    for category in CATEGORIES:
        for path in sorted((source / category).glob("*")):
            if path.suffix.lower() in PICTURE_SUFFIXES:
                garments.append(Garment(path.stem, category, captions.get(path.stem, ""), path))
    return garments


def in_order(garments: Sequence[Garment]) -> list[Garment]:
    """Return the garments by category and id. Raises ArtifactError for an unknown category and for two of one id."""
    seen: dict[str, Garment] = {}
    for garment in garments:
        if garment.category not in CATEGORIES:
            raise ArtifactError(
                f"garment {garment.id}: category is {garment.category!r}; must be one of {', '.join(CATEGORIES)}"
            )
        if earlier := seen.get(garment.id):
            raise ArtifactError(f"garment {garment.id}: is both {earlier.picture} and {garment.picture}")
        seen[garment.id] = garment
    return sorted(garments, key=lambda garment: (garment.category, garment.id))


def _in_table(path: Path) -> Iterator[Garment]:
    """Yield the garments of a Parquet file. Raises ArtifactError for a file, column or cell that is missing."""
    try:
        columns: dict[str, list[Any]] = pq.read_table(path).to_pydict()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(f"{path}: not a readable Parquet file: {error}") from error
    if missing := set(REQUIRED_COLUMNS) - columns.keys():
        raise ArtifactError(f"{path}: has no column {', '.join(sorted(missing))}")
    captions = columns.pop("caption", None) or [""] * len(columns["id"])
    ids, categories, images = (columns.pop(name) for name in REQUIRED_COLUMNS)
    for row, (garment_id, category, image, caption) in enumerate(zip(ids, categories, images, captions, strict=True)):
        for name, cell in zip(REQUIRED_COLUMNS, (garment_id, category, image), strict=True):
            if cell in (None, ""):
                raise ArtifactError(f"{path}: row {row}: {name}: is missing")
        attributes = {name: _values(values[row]) for name, values in columns.items()}
        known = {name: values for name, values in attributes.items() if values}
        yield Garment(str(garment_id), str(category), caption or "", path.parent / str(image), attributes=known)


def _values(cell: Any) -> tuple[str, ...]:
    """Return the values of an attribute: a cell's text or number, or the texts and numbers in its list."""
    values = cell if isinstance(cell, list) else [cell]
    return tuple(str(value) for value in values if value not in (None, ""))


def stored_jpeg(image: Image.Image) -> bytes:
    """Return an RGB picture as the JPEG that catalogues keep, made smaller where it is too large."""
    smaller = image.copy()
    smaller.thumbnail((MAX_STORED_SIDE, MAX_STORED_SIDE))
    # Pillow would write comments of the picture into the file.
    smaller.info = {}
    content = io.BytesIO()
    smaller.save(content, "JPEG", quality=JPEG_QUALITY, subsampling=JPEG_SUBSAMPLING)
    return content.getvalue()
