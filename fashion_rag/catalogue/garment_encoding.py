"""Garments ready for a version: row, vector and pseudo-words, made of their pictures and kept in folders.

    picture ──► re-encoded, stored in the root ──► vector (retrieval encoder), pseudo-words (inversion adapter)

`build.py` has them made, `on_ray.py` wherever there is a worker, and `catalogue.py` reads the folder of a version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.catalogue.changes import put_image
from fashion_rag.catalogue.garments import Garment, StoredPicture, stored_jpeg
from fashion_rag.catalogue.retrieval_encoder import RetrievalEncoder
from fashion_rag.catalogue.storage import Root
from fashion_rag.catalogue.table import GarmentRow, Garments, checked, to_table
from fashion_rag.data.image import open_image
from fashion_rag.errors import ArtifactError, FashionRAGError
from fashion_rag.models.adapter import GarmentEncoder

GARMENTS_FILE = "garments.parquet"
VECTORS_FILE = "embeddings.npy"
WORDS_FILE = "pseudo_words.npy"
INDEX_FOLDER = "index"
BATCH_SIZE = 32


@dataclass(frozen=True)
class Encoders:
    """What makes a garment fit to be found and to be worn."""

    retrieval: RetrievalEncoder
    inversion: GarmentEncoder


class EncodedGarment(NamedTuple):
    """A garment ready for a version: its row, the vector [D] of its picture and its pseudo-words [P, W], float32."""

    row: GarmentRow
    vector: NDArray[np.float32]
    pseudo_words: NDArray[np.float32]


class Skipped(NamedTuple):
    """A garment that cannot be taken in, and why."""

    garment_id: str
    reason: str


def encode(garments: Sequence[Garment], encoders: Encoders, root: Root) -> list[EncodedGarment | Skipped]:
    """Return each garment encoded, its picture now in `root`; one whose picture or words break a rule is skipped."""
    outcomes: list[EncodedGarment | Skipped] = []
    rows, pictures = [], []
    for garment in garments:
        try:
            row, picture = _stored(garment, root)
        except (FashionRAGError, OSError) as error:
            outcomes.append(Skipped(garment.id, str(error)))
        else:
            rows.append(row)
            pictures.append(picture)
    if rows:
        vectors = encoders.retrieval.encode_images(pictures)
        with torch.inference_mode():
            words = encoders.inversion(encoders.inversion.pixels(pictures)).cpu().numpy()
        outcomes += map(EncodedGarment, rows, vectors, words)
    return outcomes


def _stored(garment: Garment, root: Root) -> tuple[GarmentRow, Image.Image]:
    """Return the garment's row, and its picture as it is stored: that is what everything else is made of."""
    if isinstance(garment.picture, StoredPicture):
        reference, digest, image = garment.picture.reference, garment.picture.sha256, garment.image()
    else:
        digest, image = garment.digest(), garment.image()
        jpeg = stored_jpeg(image)
        reference, image = put_image(root, jpeg), open_image(jpeg)
    row = GarmentRow(
        garment.id, garment.category, garment.caption, reference, digest, garment.chunks, garment.attributes
    )
    return checked(row), image


class Part:
    """EncodedGarment garments in a folder: a version's own, or some of one that is being made. Arrays stay on disk."""

    def __init__(self, folder: Path) -> None:
        """Raise ArtifactError for files that are damaged or do not fit each other."""
        self.garments = Garments.read(folder / GARMENTS_FILE)
        self.vectors = _mapped(folder / VECTORS_FILE, len(self.garments), 2)
        self.pseudo_words = _mapped(folder / WORDS_FILE, len(self.garments), 3)

    def __getitem__(self, row: int) -> EncodedGarment:
        """Return the garment of a row."""
        return EncodedGarment(self.garments[row], self.vectors[row], self.pseudo_words[row])

    def ids(self) -> list[str]:
        """Return the id of each garment."""
        ids: list[str] = self.garments.table["id"].to_pylist()
        return ids

    def keys(self) -> list[tuple[str, str]]:
        """Return the id, and SHA-256 of the picture, of each garment."""
        return list(zip(self.ids(), self.garments.table["sha256"].to_pylist(), strict=True))

    def fits(self, pseudo_words: NDArray[np.float32]) -> bool:
        """Return whether these could be of a garment here."""
        return pseudo_words.shape == self.pseudo_words.shape[1:]

    @staticmethod
    def write(folder: Path, encoded: Sequence[EncodedGarment]) -> None:
        """Write one or more garments, in their order, into an existing folder."""
        Garments(to_table(each.row for each in encoded)).write(folder / GARMENTS_FILE)
        first = encoded[0]
        vectors, words = (
            np.lib.format.open_memmap(folder / name, "w+", np.float32, (len(encoded), *array.shape))
            for name, array in ((VECTORS_FILE, first.vector), (WORDS_FILE, first.pseudo_words))
        )
        for row, each in enumerate(encoded):
            vectors[row], words[row] = each.vector, each.pseudo_words
        vectors.flush()
        words.flush()


def _mapped(path: Path, num_rows: int, num_dimensions: int) -> NDArray[np.float32]:
    try:
        array: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not a readable array: {error}") from error
    if not isinstance(array, np.memmap):
        raise ArtifactError(f"{path}: not an array but an archive")
    if array.dtype != np.float32 or array.ndim != num_dimensions or len(array) != num_rows:
        shown = f"{array.dtype} {list(array.shape)}"
        raise ArtifactError(f"{path}: got {shown}; must be float32 of {num_dimensions} dimensions and {num_rows} rows")
    return array
