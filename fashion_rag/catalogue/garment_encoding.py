"""Encoded garments, which are ready for a version: their rows, vectors and pseudo-words, kept together in folders.

    picture ──► re-encoded, stored in the root ──► vector (retrieval encoder), pseudo-words (inversion adapter)

`build.py` calls `encode`, in its own process or through the workers of `on_ray.py`; `catalogue.py` reads the folder of
a version as a `Part`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
    """The two encoders that a garment needs: one to be found, one to be worn."""

    retrieval: RetrievalEncoder
    inversion: GarmentEncoder


class EncodedGarment(NamedTuple):
    """A garment that is ready for a version: its row, its picture's vector [D] and its pseudo-words [P, W], float32."""

    row: GarmentRow
    vector: NDArray[np.float32]
    pseudo_words: NDArray[np.float32]


class Skipped(NamedTuple):
    """A garment that cannot be taken in, and the reason."""

    garment_id: str
    reason: str


def encode(garments: Sequence[Garment], encoders: Encoders, root: Root) -> list[EncodedGarment | Skipped]:
    """Store the garments' pictures in `root` and return the garments encoded.

    A garment is skipped if its picture cannot be read, or if its row would break a rule. The outcomes come in another
    order than the garments.
    """
    skipped: list[Skipped] = []
    rows, pictures = [], []
    for garment in garments:
        try:
            row, picture = _stored(garment, root)
        except (FashionRAGError, OSError) as error:
            skipped.append(Skipped(garment.id, str(error)))
        else:
            rows.append(row)
            pictures.append(picture)
    if not rows:
        return [*skipped]
    vectors = encoders.retrieval.encode_images(pictures)
    with torch.inference_mode():
        pseudo_words = encoders.inversion(encoders.inversion.pixels(pictures)).cpu().numpy()
    return [*skipped, *map(EncodedGarment, rows, vectors, pseudo_words)]


def _stored(garment: Garment, root: Root) -> tuple[GarmentRow, Image.Image]:
    """Return the garment's row, and its picture as it is stored, of which vector and pseudo-words are made."""
    if isinstance(garment.picture, StoredPicture):
        reference, digest, image = garment.picture.reference, garment.picture.sha256, garment.image()
    else:
        digest, image = garment.digest(), garment.image()
        jpeg = stored_jpeg(image)
        reference, image = put_image(root, jpeg), open_image(jpeg)
    row = GarmentRow(
        id=garment.id,
        category=garment.category,
        caption=garment.caption,
        image=reference,
        sha256=digest,
        chunks=garment.chunks,
        attributes=garment.attributes,
    )
    return checked(row), image


class Part:
    """Encoded garments in a folder: those of a version, or some of a version that is being built.

    The arrays stay on disk and are mapped into memory.
    """

    def __init__(self, folder: Path) -> None:
        """Open the garments in `folder`. Raises ArtifactError for files that are damaged or do not fit each other."""
        self.garments = Garments.read(folder / GARMENTS_FILE)
        self.vectors = _mapped(folder / VECTORS_FILE, len(self.garments), 2)
        self.pseudo_words = _mapped(folder / WORDS_FILE, len(self.garments), 3)

    def __getitem__(self, row: int) -> EncodedGarment:
        """Return the garment in this row."""
        return EncodedGarment(self.garments[row], self.vectors[row], self.pseudo_words[row])

    def ids(self) -> list[str]:
        """Return the id of each garment."""
        ids: list[str] = self.garments.table["id"].to_pylist()
        return ids

    def keys(self) -> list[tuple[str, str]]:
        """Return the id and the SHA-256 of the picture of each garment."""
        return list(zip(self.ids(), self.garments.table["sha256"].to_pylist(), strict=True))

    def fits(self, pseudo_words: NDArray[np.float32]) -> bool:
        """Return whether pseudo-words have the shape of those in this part."""
        return pseudo_words.shape == self.pseudo_words.shape[1:]

    @staticmethod
    def write(folder: Path, encoded: Sequence[EncodedGarment]) -> None:
        """Write one or more garments, in their order, into an existing folder."""
        Garments(to_table(garment.row for garment in encoded)).write(folder / GARMENTS_FILE)
        first = encoded[0]
        vectors = _new_array(folder / VECTORS_FILE, (len(encoded), *first.vector.shape))
        pseudo_words = _new_array(folder / WORDS_FILE, (len(encoded), *first.pseudo_words.shape))
        for row, garment in enumerate(encoded):
            vectors[row] = garment.vector
            pseudo_words[row] = garment.pseudo_words
        vectors.flush()
        pseudo_words.flush()


def _new_array(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.float32]]:
    """Return a new float32 array that is kept in the file `path`."""
    return np.lib.format.open_memmap(path, "w+", np.float32, shape)


def _mapped(path: Path, num_rows: int, num_dimensions: int) -> NDArray[np.float32]:
    """Return the array in a file, mapped into memory. Raises ArtifactError for an array of another type or shape."""
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
