"""The catalogue: garments found by text inside a category. The pipeline and the retrieval replica open one.

A folder with `manifest.json`, `garments.json` and one FAISS index a category. A catalogue never changes once written:
a new version replaces the folder whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from fashion_rag.artifacts import MANIFEST_FILE, joint_sha256, read_config, write_json, written_aside
from fashion_rag.catalogue.encoder import BATCH_SIZE, RetrievalEncoder
from fashion_rag.catalogue.store import GARMENTS_FILE, Garment, in_order, read_garments, write_garments
from fashion_rag.errors import ArtifactError, InvalidRequest
from fashion_rag.request import CATEGORIES

FORMAT_VERSION = 1
# Room for the last digit when two scans of the index score the same garment.
SCORE_SLACK = 1e-6


@dataclass(frozen=True)
class Match:
    """A garment found, and the cosine of its picture's and the text's vectors; None where the caller named it."""

    garment: Garment
    score: float | None


class Catalogue:
    """Garments by id and by likeness to a text. Made by `open` or `build`.

    version: sha256 of its files, vectors of the pictures included, so that it differs wherever garments or pictures do.
    """

    def __init__(
        self,
        garments: Sequence[Garment],
        indexes: dict[str, faiss.IndexFlatIP],
        encoder: RetrievalEncoder | None,
        version: str,
    ) -> None:
        self._garments = {garment.id: garment for garment in garments}
        self._rows = {category: list(group) for category, group in groupby(garments, lambda one: one.category)}
        self._indexes = indexes
        self._encoder = encoder
        self.version = version

    def __len__(self) -> int:
        return len(self._garments)

    def __iter__(self) -> Iterator[Garment]:
        return iter(self._garments.values())

    def get(self, garment_id: str) -> Garment:
        """The garment of this id. Raises InvalidRequest for an unknown one."""
        garment = self._garments.get(garment_id)
        if garment is None:
            raise InvalidRequest("garment_ids", garment_id, "must name garments of the catalogue")
        return garment

    def search(self, text: str, category: str, k: int) -> list[Match]:
        """The `k` garments of `category` most like `text`, best first, equal ones by id; fewer if it has fewer.

        Raises InvalidRequest for an unknown category or k < 1. Needs a catalogue opened with its encoder.
        """
        return self.search_many([(text, category, k)])[0]

    def search_many(self, queries: Sequence[tuple[str, str, int]]) -> list[list[Match]]:
        """What `search` finds for each (text, category, k), with all the texts encoded together.

        Raises as `search` for the first query that cannot be.
        """
        assert self._encoder is not None, "a catalogue opened without an encoder cannot be searched"
        for _, category, k in queries:
            if category not in CATEGORIES:
                raise InvalidRequest("category", category, f"must be one of {', '.join(CATEGORIES)}")
            if k < 1:
                raise InvalidRequest("num_garments", k, "must be at least 1 to search")
        vectors = self._encoder.encode_texts([text for text, _, _ in queries])
        return [
            self._matches(vector[None], category, k) for vector, (_, category, k) in zip(vectors, queries, strict=True)
        ]

    def _matches(self, vector: NDArray[np.float32], category: str, k: int) -> list[Match]:
        if category not in self._indexes:
            return []
        garments = self._rows[category]
        scores, rows = _nearest(self._indexes[category], vector, min(k, len(garments)))
        return [Match(garments[row], float(score)) for row, score in zip(rows, scores, strict=True)]

    @classmethod
    def open(cls, folder: Path, encoder: RetrievalEncoder | None = None) -> Catalogue:
        """The catalogue in `folder`; without an encoder, `get` works but `search` does not.

        Raises ArtifactError for a folder that is no whole catalogue, and for one that another encoder built.
        """
        manifest = _read_manifest(folder / MANIFEST_FILE)
        if encoder is not None and encoder.fingerprint != manifest["encoder"]:
            raise ArtifactError(
                f"{folder}: built by the encoder {manifest['encoder']}, opened with {encoder.fingerprint}; "
                "build the catalogue again with this bundle"
            )
        garments = read_garments(folder / GARMENTS_FILE)
        if len(garments) != manifest["num_garments"]:
            raise ArtifactError(f"{folder}: {len(garments)} garments; the manifest says {manifest['num_garments']}")
        indexes = {}
        for category, group in groupby(garments, lambda one: one.category):
            indexes[category] = _read_index(folder / f"{category}.faiss", len(list(group)), manifest["dim"])
        names = [MANIFEST_FILE, GARMENTS_FILE, *(f"{category}.faiss" for category in indexes)]
        return cls(garments, indexes, encoder, joint_sha256(folder / name for name in names))

    @classmethod
    def build(
        cls,
        garments: Sequence[Garment],
        encoder: RetrievalEncoder,
        folder: Path,
        progress: Callable[[], None] | None = None,
    ) -> Catalogue:
        """The catalogue of `garments`, now also in `folder`, whose earlier version it replaces once it is whole.

        Pictures are referred to, not copied. `progress` is called once a garment. Raises ArtifactError, leaving
        `folder` as it was, for a picture that cannot be read, two garments of an id, or an unknown category.
        """
        garments = in_order(garments)
        with written_aside(folder) as new:
            for category, group in groupby(garments, lambda one: one.category):
                index = faiss.IndexFlatIP(encoder.dim)
                for vectors in _encoded(list(group), encoder, progress):
                    index.add(vectors)
                faiss.write_index(index, str(new / f"{category}.faiss"))
            write_garments(garments, new / GARMENTS_FILE, home=folder)
            manifest = {"encoder": encoder.fingerprint, "dim": encoder.dim, "num_garments": len(garments)}
            write_json(new / MANIFEST_FILE, {"format_version": FORMAT_VERSION} | manifest)
        return cls.open(folder, encoder)


def _encoded(
    garments: Sequence[Garment], encoder: RetrievalEncoder, progress: Callable[[], None] | None
) -> Iterator[NDArray[np.float32]]:
    """Vectors [n, dim], a batch at a time: the pictures of a whole category would not fit into memory."""
    for start in range(0, len(garments), BATCH_SIZE):
        images = []
        for garment in garments[start : start + BATCH_SIZE]:
            images.append(garment.image())
            if progress is not None:
                progress()
        yield encoder.encode_images(images)


def _nearest(
    index: faiss.IndexFlatIP, query: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores and rows of the k nearest, best first. FAISS orders equal scores as it likes; here the lower row leads."""
    best, _ = index.search(query, k)
    _, scores, rows = index.range_search(query, float(best[0, -1]) - SCORE_SLACK)
    order = np.lexsort((rows, -scores))[:k]
    return scores[order], rows[order]


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = read_config(path)
    keys = {"format_version", "encoder", "dim", "num_garments"}
    if set(manifest) != keys:
        raise ArtifactError(f"{path}: not the manifest of a catalogue; must have exactly the keys {sorted(keys)}")
    if manifest["format_version"] != FORMAT_VERSION:
        raise ArtifactError(f"{path}: format_version is {manifest['format_version']}; must be {FORMAT_VERSION}")
    return manifest


def _read_index(path: Path, num_garments: int, dim: int) -> faiss.IndexFlatIP:
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise ArtifactError(f"{path}: not a readable index: {error}") from error
    if not isinstance(index, faiss.IndexFlatIP) or (index.ntotal, index.d) != (num_garments, dim):
        raise ArtifactError(
            f"{path}: a {type(index).__name__} of {index.ntotal} vectors [{index.d}]; "
            f"expected an IndexFlatIP of {num_garments} vectors [{dim}]"
        )
    return index
