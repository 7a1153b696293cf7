"""The catalogue: garments of a category, found by text, picture or likeness. The pipeline and the servers open one.

A catalogue shows one version, with the live changes that the version does not hold laid over it. It never changes;
`refreshed` gives another. So a caller that keeps to one catalogue sees the same state from search to inversion.
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

# The category is filtered by like an attribute, under a name that no attribute can have.
CATEGORY = ":category"

# What a search looks for: a shopper's words, a picture, or a unit vector [D].
Like = str | Image.Image | NDArray[np.float32]


@dataclass(frozen=True)
class Match:
    """A garment that a search found, and the cosine of its vector and the query's; None if the caller named it."""

    garment: Garment
    score: float | None


@dataclass(frozen=True)
class GarmentQuery:
    """What to search for: the `k` garments of a category most like `like` that pass the filter `attributes`."""

    like: Like
    category: str
    k: int
    attributes: Filter = field(default_factory=dict)


class Catalogue:
    """Garments, found by id and by likeness. Made by `open` and `refreshed`; safe to search from several threads.

    version: names the state that it shows; two states with different garments or pictures have different names.
    """

    def __init__(self, base: OpenedVersion, log: Mapping[str, Change], refused: Collection[str]) -> None:
        """Lay changes over a version. log: the changes by name. refused: names in the log that are not to be read."""
        self._base = base
        self._log = log
        self._refused = refused
        # Garments that other encoders have made wait for the next build.
        self._last = fold({name: change for name, change in log.items() if base.takes(change)}, base.version)
        self._added: dict[str, GarmentAdded] = {}
        self._added_names: set[str] = set()
        for garment_id, change in sorted(self._last.items()):
            if isinstance(change, GarmentAdded):
                self._added[garment_id] = change
                self._added_names.update(change.row.attributes)
        self._added_vectors = np.empty((len(self._added), base.part.vectors.shape[1]), np.float32)
        for number, added in enumerate(self._added.values()):
            self._added_vectors[number] = added.vector
        self._gone = [row for row in map(base.part.garments.find, self._last) if row is not None]
        self._filters = Filters(base.index, base.attributes, without=self._gone)
        self.version = base.version.name
        if names := "".join(sorted(log.keys() - base.version.changes.keys())):
            self.version += f"+{hashlib.sha256(names.encode()).hexdigest()[:16]}"

    @classmethod
    def open(
        cls,
        root: str | Path,
        encoder: RetrievalEncoder | None = None,
        inversion: str | None = None,
        cache: Path | None = None,
    ) -> Catalogue:
        """Return the live version in `root`, a folder or any URL of fsspec, with the changes made since.

        encoder: needed to search; without one, `get` works and searches do not.
        inversion: the fingerprint of the encoder whose pseudo-words the garments are to have; those of others are left
            out, and without it all are.
        cache: local folder for the versions of remote roots; in the user's cache by default.

        Raises ArtifactError for a catalogue that is missing or damaged, or that another retrieval encoder built.
        """
        at = Root.at(root)
        log = read_since(at, ())
        base = OpenedVersion.open(at, encoder, inversion, cache or cache_folder() / "catalogues")
        return cls(base, log.changes, log.refused)

    def refreshed(self) -> Catalogue:
        """Return the catalogue as it is live now, which is this one if nothing has changed.

        It is cheap enough to be asked every second. Raises ArtifactError for a live version that cannot be shown; this
        catalogue can still be used then.
        """
        base, root = self._base, self._base.root
        if current(root) != base.version.name:
            log = read_since(root, ())
            base = OpenedVersion.open(root, base.encoder, base.inversion, base.cache)
            return Catalogue(base, log.changes, log.refused)
        new = read_since(root, self._log.keys() | set(self._refused))
        if not new.changes and not new.refused:
            return self
        return Catalogue(base, {**self._log, **new.changes}, {*self._refused, *new.refused})

    @property
    def encoder(self) -> RetrievalEncoder | None:
        """Return the encoder that it was opened with."""
        return self._base.encoder

    def __len__(self) -> int:
        return len(self._base.part.garments) - len(self._gone) + len(self._added)

    def __iter__(self) -> Iterator[Garment]:
        gone = set(self._gone)
        yield from (self._base.garment(row) for row in range(len(self._base.part.garments)) if row not in gone)
        yield from map(self._garment, self._added.values())

    def get(self, garment_id: str) -> Garment:
        """Return the garment of this id. Raises InvalidRequest for an unknown id."""
        if change := self._added.get(garment_id):
            return self._garment(change)
        row = None if garment_id in self._last else self._base.part.garments.find(garment_id)
        if row is None:
            raise InvalidRequest("garment_ids", garment_id, "must name garments of the catalogue")
        return self._base.garment(row)

    def vector(self, garment_id: str) -> NDArray[np.float32]:
        """Return the vector [D] of a garment's picture, to search for similar garments. Raises as `get` does."""
        if change := self._added.get(garment_id):
            return change.vector.copy()
        self.get(garment_id)
        row = self._base.part.garments.find(garment_id)
        return np.array(self._base.part.vectors[row])

    def search(self, like: Like, category: str, k: int, attributes: Filter | None = None) -> list[Match]:
        """Return the `k` garments of `category` that are most like a query; fewer only if there are fewer.

        The best come first, and equally good ones by id. Raises InvalidRequest for an unknown category or k < 1. The
        catalogue must have been opened with its encoder.
        """
        return self.search_many([GarmentQuery(like, category, k, attributes or {})])[0]

    def search_many(self, queries: Sequence[GarmentQuery]) -> list[list[Match]]:
        """Return what `search` finds for each query, with all the texts encoded together.

        Raises as `search` does for the first query that is not valid.
        """
        for query in queries:
            if query.category not in CATEGORIES:
                raise InvalidRequest("category", query.category, f"must be one of {', '.join(CATEGORIES)}")
            if query.k < 1:
                raise InvalidRequest("num_garments", query.k, "must be at least 1 to search")
        return [self._matches(vector, query) for vector, query in zip(self._vectors(queries), queries, strict=True)]

    def _vectors(self, queries: Sequence[GarmentQuery]) -> list[NDArray[np.float32]]:
        """Return the vector [D] of each query."""
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
        """Return the best `query.k` garments of the version and of the live changes. vector: of the query, [D]."""
        base, names = self._base, query.attributes.keys()
        known_names = (base.attributes.names - {CATEGORY}) | self._added_names
        if unknown := sorted(names - known_names):
            known = ", ".join(sorted(known_names))
            raise InvalidRequest("attributes", unknown[0], f"must be names that garments have: {known or 'none'}")
        vector = np.ascontiguousarray(vector, np.float32)
        scored = self._scored_added(vector, query)
        # The version has no attribute that only live garments have, so none of its garments passes such a filter.
        if names <= base.attributes.names:
            allowed = self._filters.allowed({**query.attributes, CATEGORY: query.category})
            scores, rows = base.index.search(vector, query.k, allowed)
            for score, row in zip(scores.tolist(), rows.tolist(), strict=True):
                scored.append((score, base.garment(row)))
        scored.sort(key=lambda pair: (-pair[0], pair[1].id))
        return [Match(garment, score) for score, garment in scored[: query.k]]

    def _scored_added(self, vector: NDArray[np.float32], query: GarmentQuery) -> list[tuple[float, Garment]]:
        """Return the live garments that pass the filter of a query, each with its score for the vector [D]."""
        added = list(self._added.values())
        passing = [number for number, change in enumerate(added) if _passes(change.row, query)]
        # They are scored as the index scores, to the last digit, so that equal garments have equal scores.
        scores = inner_products(vector, self._added_vectors, np.array(passing, np.int64))
        return [(score, self._garment(added[number])) for score, number in zip(scores.tolist(), passing, strict=True)]

    def _garment(self, change: GarmentAdded) -> Garment:
        """Return a live garment, with its pseudo-words if they are what `inversion` would make."""
        base = self._base
        made_by = change.encoders.get(INVERSION)
        knows_words = made_by is not None and made_by == base.inversion and base.part.fits(change.pseudo_words)
        return Garment.stored(base.root, change.row, change.pseudo_words if knows_words else None)


@dataclass(frozen=True)
class OpenedVersion:
    """A version in memory and what it is searched with, shared by the catalogues that lay changes over it."""

    root: Root
    version: Version
    part: Part
    index: VectorIndex
    attributes: Attributes
    encoder: RetrievalEncoder | None
    inversion: str | None
    cache: Path

    @classmethod
    def open(cls, root: Root, encoder: RetrievalEncoder | None, inversion: str | None, cache: Path) -> OpenedVersion:
        """Return the live version, opened. Raises ArtifactError as `Catalogue.open` does."""
        version = live(root)
        built_by = version.encoders.get(RETRIEVAL)
        if encoder is not None and encoder.fingerprint != built_by:
            raise ArtifactError(
                f"{root.path}: built by the encoder {built_by}, opened with {encoder.fingerprint}; "
                "build the catalogue again with this bundle"
            )
        folder = fetch(root, version, cache)
        for name, entry in version.files.items():
            # Wrong pseudo-words would show in a picture, and reading all of them takes minutes. Nothing would show that
            # another file is wrong.
            if name != WORDS_FILE and sha256(folder / name) != entry.sha256:
                raise ArtifactError(f"{folder / name}: has changed since it was published: SHA-256 differs")
        part = Part(folder)
        if len(part.garments) != version.num_garments:
            raise ArtifactError(f"{folder}: {len(part.garments)} garments; its manifest says {version.num_garments}")
        index = VectorIndex.open(folder / INDEX_FOLDER, part.vectors)
        return cls(
            root=root,
            version=version,
            part=part,
            index=index,
            attributes=_attributes(part),
            encoder=encoder,
            inversion=inversion,
            cache=cache,
        )

    def takes(self, change: Change) -> bool:
        """Return whether a change can be laid over the version."""
        if not isinstance(change, GarmentAdded):
            return True
        return (
            change.encoders.get(RETRIEVAL) == self.version.encoders[RETRIEVAL]
            and change.vector.shape == self.part.vectors.shape[1:]
            and is_unit(change.vector)
        )

    def garment(self, row: int) -> Garment:
        """Return the garment in this row, with its pseudo-words if they are what `inversion` would make."""
        knows_words = self.inversion is not None and self.version.encoders.get(INVERSION) == self.inversion
        words = np.array(self.part.pseudo_words[row]) if knows_words else None
        return Garment.stored(self.root, self.part.garments[row], words)


def _attributes(part: Part) -> Attributes:
    """Return the attributes of the garments of a part, with the category among them."""
    columns = part.garments.table.select(["category", "attributes"]).to_pydict()
    of_rows = []
    for category, records in zip(columns["category"], columns["attributes"], strict=True):
        attributes = {record["name"]: record["values"] for record in records}
        of_rows.append({**attributes, CATEGORY: category})
    return Attributes(of_rows)


def _passes(row: GarmentRow, query: GarmentQuery) -> bool:
    """Return whether a garment is of the query's category and passes its filter."""
    if row.category != query.category:
        return False
    for name, values in query.attributes.items():
        wanted = {values} if isinstance(values, str) else set(values)
        if wanted.isdisjoint(row.attributes.get(name, ())):
            return False
    return True
