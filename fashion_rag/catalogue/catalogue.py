"""The catalogue: garments found by text, picture or likeness, inside a category. The pipeline and the servers open one.

It shows one version, with the live changes that the version does not hold laid over it, and never changes: `refreshed`
gives another. Whoever keeps to one of them sees one state from search to inversion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fashion_rag.artifacts import cache_folder, sha256
from fashion_rag.catalogue.attributes import Attributes, Filter, Filters
from fashion_rag.catalogue.changes import Change, GarmentAdded, fold, read_since
from fashion_rag.catalogue.garment_encoding import INDEX_FOLDER, WORDS_FILE, Part
from fashion_rag.catalogue.garments import INVERSION, RETRIEVAL, Garment
from fashion_rag.catalogue.retrieval_encoder import RetrievalEncoder
from fashion_rag.catalogue.storage import Root
from fashion_rag.catalogue.table import GarmentRow
from fashion_rag.catalogue.vector_index import VectorIndex, inner_products, is_unit
from fashion_rag.catalogue.version_manifest import Version
from fashion_rag.catalogue.versions import current, fetch, live
from fashion_rag.errors import ArtifactError, InvalidRequest
from fashion_rag.request import CATEGORIES

# Filtered by like an attribute, under a name that no attribute can have.
CATEGORY = ":category"

# A shopper's words, a picture, or a unit vector [D].
Like = str | Image.Image | NDArray[np.float32]


@dataclass(frozen=True)
class Match:
    """A garment found, and the cosine of its picture's vector and the query's; None where the caller named it."""

    garment: Garment
    score: float | None


@dataclass(frozen=True)
class GarmentQuery:
    """What to search for. attributes: of each name, the values of which a garment must have one."""

    like: Like
    category: str
    k: int
    attributes: Filter = field(default_factory=dict)


class Catalogue:
    """Garments by id and by likeness. Made by `open` and `refreshed`; safe to search from several threads.

    version: of what it shows; it differs wherever garments or pictures do.
    """

    def __init__(self, base: Base, log: Mapping[str, Change], refused: Collection[str]) -> None:
        self._base = base
        self._log = log
        self._refused = refused
        # What other encoders have made waits for the next build.
        self._last = fold({name: log[name] for name in log if base.takes(log[name])}, base.version)
        self._added = {each: change for each, change in sorted(self._last.items()) if isinstance(change, GarmentAdded)}
        added = [change.vector for change in self._added.values()]
        self._added_vectors = np.stack(added) if added else np.empty((0, base.part.vectors.shape[1]), np.float32)
        self._added_names = {name for change in self._added.values() for name in change.row.attributes}
        self._gone = [row for row in map(base.part.garments.find, self._last) if row is not None]
        self._filters = Filters(base.index, base.attributes, without=self._gone)
        names = "".join(sorted(log.keys() - base.version.changes.keys()))
        self.version = base.version.name + (f"+{hashlib.sha256(names.encode()).hexdigest()[:16]}" if names else "")

    @classmethod
    def open(
        cls,
        root: str | Path,
        encoder: RetrievalEncoder | None = None,
        inversion: str | None = None,
        cache: Path | None = None,
    ) -> Catalogue:
        """Return the live version in `root`, a folder or any URL of fsspec, with the changes made since.

        Without an encoder, `get` works but no search. inversion: fingerprint of what is to wear the garments, whose
        pseudo-words are then given; those of another are left out. cache: local folder for versions of remote roots.
        Raises ArtifactError for what is no whole catalogue, and for one that another encoder built.
        """
        at = Root.at(root)
        log = read_since(at, ())
        return cls(Base.open(at, encoder, inversion, cache or cache_folder() / "catalogues"), log.changes, log.refused)

    def refreshed(self) -> Catalogue:
        """Return what is live now: this catalogue where that is the same. Cheap enough to ask every second.

        Raises ArtifactError for a version that cannot be shown; this catalogue is as good as before.
        """
        base, root = self._base, self._base.root
        if current(root) != base.version.name:
            log = read_since(root, ())
            return Catalogue(Base.open(root, base.encoder, base.inversion, base.cache), log.changes, log.refused)
        found = read_since(root, self._log.keys() | set(self._refused))
        if not found.changes and not found.refused:
            return self
        return Catalogue(base, {**self._log, **found.changes}, {*self._refused, *found.refused})

    def __len__(self) -> int:
        return len(self._base.part.garments) - len(self._gone) + len(self._added)

    def __iter__(self) -> Iterator[Garment]:
        gone = set(self._gone)
        yield from (self._base.garment(row) for row in range(len(self._base.part.garments)) if row not in gone)
        yield from map(self._garment, self._added.values())

    def get(self, garment_id: str) -> Garment:
        """Return the garment of this id. Raises InvalidRequest for an unknown one."""
        if change := self._added.get(garment_id):
            return self._garment(change)
        row = None if garment_id in self._last else self._base.part.garments.find(garment_id)
        if row is None:
            raise InvalidRequest("garment_ids", garment_id, "must name garments of the catalogue")
        return self._base.garment(row)

    def vector(self, garment_id: str) -> NDArray[np.float32]:
        """Return the vector [D] of a garment's picture, to search for what is like it. Raises as `get`."""
        if change := self._added.get(garment_id):
            return change.vector.copy()
        self.get(garment_id)
        row = self._base.part.garments.find(garment_id)
        return np.array(self._base.part.vectors[row])

    def search(self, like: Like, category: str, k: int, attributes: Filter | None = None) -> list[Match]:
        """Return the `k` garments of `category` most like a query, best first, equal ones by id; fewer if there are
        fewer.

        Raises InvalidRequest for an unknown category or k < 1. Needs a catalogue opened with its encoder.
        """
        return self.search_many([GarmentQuery(like, category, k, attributes or {})])[0]

    def search_many(self, queries: Sequence[GarmentQuery]) -> list[list[Match]]:
        """Return what `search` finds for each query, with all the texts encoded together.

        Raises as `search` for the first query that cannot be.
        """
        for query in queries:
            if query.category not in CATEGORIES:
                raise InvalidRequest("category", query.category, f"must be one of {', '.join(CATEGORIES)}")
            if query.k < 1:
                raise InvalidRequest("num_garments", query.k, "must be at least 1 to search")
        return [self._matches(vector, query) for vector, query in zip(self._vectors(queries), queries, strict=True)]

    def _vectors(self, queries: Sequence[GarmentQuery]) -> list[NDArray[np.float32]]:
        encoder = self._base.encoder
        assert encoder is not None, "a catalogue opened without an encoder cannot be searched"
        texts = [query.like for query in queries if isinstance(query.like, str)]
        encoded = iter(encoder.encode_texts(texts)) if texts else iter(())
        vectors = []
        for query in queries:
            if isinstance(query.like, str):
                vectors.append(next(encoded))
            elif isinstance(query.like, Image.Image):
                vectors.append(encoder.encode_images([query.like])[0])
            else:
                vectors.append(query.like)
        return vectors

    def _matches(self, vector: NDArray[np.float32], query: GarmentQuery) -> list[Match]:
        base, names = self._base, query.attributes.keys()
        known_names = (base.attributes.names - {CATEGORY}) | self._added_names
        if unknown := sorted(names - known_names):
            known = ", ".join(sorted(known_names))
            raise InvalidRequest("attributes", unknown[0], f"must be names that garments have: {known or 'none'}")
        vector = np.ascontiguousarray(vector, np.float32)
        added = [(row, each) for row, each in enumerate(self._added.values()) if _passes(each.row, query)]
        # As the index scores, to the last digit, so that equal ones are equal.
        scores = inner_products(vector, self._added_vectors, np.array([row for row, _ in added], np.int64))
        found = [(score, self._garment(each)) for score, (_, each) in zip(scores.tolist(), added, strict=True)]
        # An attribute that only garments added since have is none of the version's.
        if names <= base.attributes.names:
            allowed = self._filters.allowed({**query.attributes, CATEGORY: query.category})
            scores, rows = base.index.search(vector, query.k, allowed)
            found += [(score, base.garment(row)) for score, row in zip(scores.tolist(), rows.tolist(), strict=True)]
        found.sort(key=lambda each: (-each[0], each[1].id))
        return [Match(garment, score) for score, garment in found[: query.k]]

    def _garment(self, change: GarmentAdded) -> Garment:
        base = self._base
        made_by = change.encoders.get(INVERSION)
        knows_words = made_by is not None and made_by == base.inversion and base.part.fits(change.pseudo_words)
        return Garment.stored(base.root, change.row, change.pseudo_words if knows_words else None)


@dataclass(frozen=True)
class Base:
    """A version in memory, shared by the catalogues that lay changes over it, and what it is searched with."""

    root: Root
    version: Version
    part: Part
    index: VectorIndex
    attributes: Attributes
    encoder: RetrievalEncoder | None
    inversion: str | None
    cache: Path

    @classmethod
    def open(cls, root: Root, encoder: RetrievalEncoder | None, inversion: str | None, cache: Path) -> Base:
        """Return the live version. Raises ArtifactError as `Catalogue.open`."""
        version = live(root)
        built_by = version.encoders.get(RETRIEVAL)
        if encoder is not None and encoder.fingerprint != built_by:
            raise ArtifactError(
                f"{root.path}: built by the encoder {built_by}, opened with {encoder.fingerprint}; "
                "build the catalogue again with this bundle"
            )
        folder = fetch(root, version, cache)
        for name, entry in version.files.items():
            # A wrong pseudo-word shows in a picture, the others nowhere; and to read all words takes minutes.
            if name != WORDS_FILE and sha256(folder / name) != entry.sha256:
                raise ArtifactError(f"{folder / name}: has changed since it was published: SHA-256 differs")
        part = Part(folder)
        if len(part.garments) != version.num_garments:
            raise ArtifactError(f"{folder}: {len(part.garments)} garments; its manifest says {version.num_garments}")
        index = VectorIndex.open(folder / INDEX_FOLDER, part.vectors)
        return cls(root, version, part, index, _attributes(part), encoder, inversion, cache)

    def takes(self, change: Change) -> bool:
        """Return whether a change can be laid over the version."""
        return not isinstance(change, GarmentAdded) or (
            change.encoders.get(RETRIEVAL) == self.version.encoders[RETRIEVAL]
            and change.vector.shape == self.part.vectors.shape[1:]
            and is_unit(change.vector)
        )

    def garment(self, row: int) -> Garment:
        """Return the garment of a row, with its pseudo-words if they are what `inversion` would make."""
        knows_words = self.inversion is not None and self.version.encoders.get(INVERSION) == self.inversion
        words = np.array(self.part.pseudo_words[row]) if knows_words else None
        return Garment.stored(self.root, self.part.garments[row], words)


def _attributes(part: Part) -> Attributes:
    columns = part.garments.table.select(["category", "attributes"]).to_pydict()
    pairs = zip(columns["category"], columns["attributes"], strict=True)
    return Attributes(
        [{**{one["name"]: one["values"] for one in found}, CATEGORY: category} for category, found in pairs]
    )


def _passes(row: GarmentRow, query: GarmentQuery) -> bool:
    if row.category != query.category:
        return False
    for name, values in query.attributes.items():
        wanted = {values} if isinstance(values, str) else set(values)
        if wanted.isdisjoint(row.attributes.get(name, ())):
            return False
    return True
