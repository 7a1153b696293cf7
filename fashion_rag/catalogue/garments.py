"""Garments and where their pictures are: in a folder or table that is to become a catalogue, or in a catalogue.

The build reads the former; the pipeline, the index and the servers hold the latter.
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

# A stored picture: no larger than anything here looks at, and without what JPEG does to colours to save room.
MAX_STORED_SIDE = 2048
JPEG_QUALITY, JPEG_SUBSAMPLING = 95, 0
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Room for what a camera of 64 megapixels writes.
MAX_PICTURE_BYTES = 64 * 1024 * 1024
REQUIRED_COLUMNS = ("id", "category", "image")
# The encoders whose fingerprints a version keeps: of the vectors and of the pseudo-words.
RETRIEVAL, INVERSION = "retrieval", "inversion"


@dataclass(frozen=True)
class StoredPicture:
    """A picture in a catalogue's root, with the SHA-256 of what it was made of. Read like a path."""

    root: Root
    reference: str
    sha256: str

    @property
    def name(self) -> str:
        """Return the name of the file."""
        return self.reference.rpartition("/")[2]

    @property
    def location(self) -> str:
        """Return the path of the file, or its URL in a store."""
        full = self.root.full(self.reference)
        return full if self.root.is_local else str(self.root.fs.unstrip_protocol(full))

    def read_bytes(self) -> bytes:
        """Return the file's content. Raises OSError as a path does, and ArtifactError for one that is far too large."""
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
        """Return the path, or the URL in a store, of the picture."""
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
        """Return the SHA-256 of the picture as it came. Raises OSError for a file that cannot be read."""
        return self.picture.sha256 if isinstance(self.picture, StoredPicture) else sha256(self.picture)


def garments_in(source: Path, phase: dresscode.Phase = "test") -> list[Garment]:
    """Return the garments that a catalogue is to be made of, by category and id.

    source: a folder in the Dress Code layout (known by its `fine_captions.json`; the garments of `phase`), a folder of
    `CATEGORY/ID.jpg` (or .jpeg, .png, .webp) with an optional `captions.json` (id -> caption), or a Parquet file with
    the columns id, category and image (a path, relative to the file), caption if it likes, and any others of texts or
    lists of texts, which become attributes. Raises ArtifactError for none or two of an id.
    """
    if source.suffix == ".parquet":
        garments = list(_in_table(source))
    elif (source / "fine_captions.json").is_file():
        categories = [category for category in CATEGORIES if (source / category).is_dir()]
        found = dresscode.garments(source, phase, categories=categories)
        garments = [Garment(one.garment_id, one.category, one.caption, one.path) for one in found]
    else:
        captions = read_config(source / "captions.json") if (source / "captions.json").is_file() else {}
        garments = [
            Garment(path.stem, category, captions.get(path.stem, ""), path)
            for category in CATEGORIES
            for path in sorted((source / category).glob("*"))
            if path.suffix.lower() in PICTURE_SUFFIXES
        ]
    if not garments:
        raise ArtifactError(f"{source}: no garment pictures; must be in folders named {', '.join(CATEGORIES)}")
    return in_order(garments)


def in_order(garments: Sequence[Garment]) -> list[Garment]:
    """Return the garments by category and id. Raises ArtifactError for an unknown category and for two of an id."""
    seen: dict[str, Garment] = {}
    for garment in garments:
        if garment.category not in CATEGORIES:
            raise ArtifactError(
                f"garment {garment.id}: category is {garment.category!r}; must be one of {', '.join(CATEGORIES)}"
            )
        if other := seen.get(garment.id):
            raise ArtifactError(f"garment {garment.id}: is both {other.picture} and {garment.picture}")
        seen[garment.id] = garment
    return sorted(garments, key=lambda garment: (garment.category, garment.id))


def _in_table(path: Path) -> Iterator[Garment]:
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
    """Return the values of an attribute: a cell's text or number, or those in its list."""
    values = cell if isinstance(cell, list) else [cell]
    return tuple(str(value) for value in values if value not in (None, ""))


def stored_jpeg(image: Image.Image) -> bytes:
    """Return an RGB picture as catalogues keep it."""
    smaller = image.copy()
    smaller.thumbnail((MAX_STORED_SIDE, MAX_STORED_SIDE))
    smaller.info = {}  # Pillow would write comments, too
    content = io.BytesIO()
    smaller.save(content, "JPEG", quality=JPEG_QUALITY, subsampling=JPEG_SUBSAMPLING)
    return content.getvalue()
