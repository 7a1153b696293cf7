"""Garments that a build need not encode again: from the live version, from its changes, or from a build cut short.

Each build collects them. What it encodes is kept in parts on disk until the build that takes it in has published.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from fashion_rag.atomic_files import written_aside
from fashion_rag.catalogue.changes import Change, GarmentAdded
from fashion_rag.catalogue.garment_encoding import EncodedGarment, Part
from fashion_rag.catalogue.storage import Root
from fashion_rag.catalogue.vector_index import is_unit
from fashion_rag.errors import ArtifactError


class KnownGarments:
    """Encoded garments, found by id and by the SHA-256 of the picture that they were made of."""

    def __init__(self) -> None:
        # A garment of a part is read from disk only when it is asked for.
        self._load_by_key: dict[tuple[str, str], Callable[[], EncodedGarment]] = {}

    def add_parts(self, parts: Iterable[Part]) -> None:
        """Add all the garments of these parts."""
        for part in parts:
            self._load_by_key |= {key: partial(part.__getitem__, row) for row, key in enumerate(part.keys())}

    def add_changes(self, changes: Iterable[Change], fingerprints: Mapping[str, str], like: Part | None) -> None:
        """Add the garments that live changes have brought, where they can go into a version.

        fingerprints: of the encoders that must have made them. like: a part whose shapes they must have, None if any
        shapes will do.
        """
        for change in changes:
            if isinstance(change, GarmentAdded) and _is_usable(change, fingerprints, like):
                load = partial(EncodedGarment, change.row, change.vector, change.pseudo_words)
                self._load_by_key[change.row.id, change.row.sha256] = load

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._load_by_key

    def get(self, garment_id: str, digest: str) -> EncodedGarment | None:
        """Return the garment of this id, made of the picture with this SHA-256; None if it is not known."""
        load = self._load_by_key.get((garment_id, digest))
        return load() if load else None


def _is_usable(change: GarmentAdded, fingerprints: Mapping[str, str], like: Part | None) -> bool:
    """Return whether the right encoders made the arrays of a change, in the right shapes."""
    if dict(change.encoders) != dict(fingerprints) or not is_unit(change.vector):
        return False
    return like is None or (len(change.vector) == like.vectors.shape[1] and like.fits(change.pseudo_words))


def kept_parts(folder: Path, root: Root) -> list[Part]:
    """Return the parts that earlier builds left in `folder`; damaged ones are removed.

    A part is left out if a picture of it is not in `root`, which may be another root in the place of an earlier one.
    """
    parts = []
    # A part that was being written when its build was killed has another name.
    for path in sorted(folder.glob("part-*")):
        try:
            part = Part(path)
        except ArtifactError:
            shutil.rmtree(path)
            continue
        if all(root.fs.exists(root.full(row.image)) for row in part.garments):
            parts.append(part)
    return parts


def keep_part(folder: Path, encoded: Sequence[EncodedGarment]) -> Part:
    """Write one or more garments into `folder` as a part, which appears whole or not at all, and return it."""
    path = folder / f"part-{secrets.token_hex(8)}"
    with written_aside(path) as new:
        Part.write(new, encoded)
    return Part(path)
