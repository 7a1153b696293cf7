"""What the next version of a catalogue is to have: the live version compared with given garments and live changes.

`build.py` asks what is wanted, encodes what is not known, and asks which encoded garments make up the version.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fashion_rag.catalogue.changes import GarmentAdded, Pending, pending
from fashion_rag.catalogue.garment_encoding import EncodedGarment, Part, Skipped
from fashion_rag.catalogue.garments import Garment
from fashion_rag.catalogue.known_garments import KnownGarments
from fashion_rag.catalogue.storage import Root
from fashion_rag.catalogue.table import GarmentRow, checked
from fashion_rag.catalogue.version_manifest import Version
from fashion_rag.catalogue.versions import current, fetch, open_version
from fashion_rag.errors import ArtifactError, InvalidRequest


@dataclass(frozen=True, eq=False)
class LiveState:
    """The live version as a build finds it, with the changes that have been made since.

    name: of the live version, None before the first. encoders: the fingerprints of its encoders. part: its garments;
    None if there is no version, or if it is damaged and not needed. log: the live changes that it does not hold.
    """

    name: str | None
    encoders: Mapping[str, str]
    part: Part | None
    log: Pending


def read_live(root: Root, cache: Path, mirror: bool) -> LiveState:
    """Return the live version with what it holds and what the log adds to it.

    Raises ArtifactError if the version is damaged, unless the build is a mirror, which can do without it.
    """
    name = current(root)
    version = Version(name="", files={}, encoders={}, parent=None, num_garments=0, changes={})
    part = None
    if name is not None:
        try:
            opened = open_version(root, name)
            part = Part(fetch(root, opened, cache))
            version = opened
        except ArtifactError:
            if not mirror:
                raise
    return LiveState(name, version.encoders, part, pending(root, version))


@dataclass(frozen=True)
class Wanted:
    """The garments that a version is to have, by id.

    digests: the SHA-256 of the picture of each garment, by id. unreadable: garments whose picture cannot be read.
    """

    garments: Mapping[str, Garment]
    digests: Mapping[str, str]
    unreadable: Sequence[Skipped]

    def not_in(self, known: KnownGarments) -> list[Garment]:
        """Return the garments with a readable picture that are not known."""
        unknown = []
        for garment_id, digest in self.digests.items():
            if (garment_id, digest) not in known:
                unknown.append(self.garments[garment_id])
        return unknown


def wanted_garments(root: Root, live: LiveState, garments: Iterable[Garment], mirror: bool) -> Wanted:
    """Return what the version is to have: the live garments, with `garments` and then the changes laid over them.

    mirror: leave out the live garments.
    """
    wanted = {}
    if live.part and not mirror:
        wanted = {row.id: Garment.stored(root, row) for row in live.part.garments}
    wanted |= {garment.id: garment for garment in garments}
    for garment_id, change in live.log.last.items():
        if isinstance(change, GarmentAdded):
            wanted[garment_id] = Garment.stored(root, change.row)
        else:
            wanted.pop(garment_id, None)
    digests, unreadable = {}, []
    for garment in wanted.values():
        try:
            digests[garment.id] = garment.digest()
        except OSError as error:
            unreadable.append(Skipped(garment.id, f"{garment.picture.name}: {error}"))
    return Wanted(wanted, digests, unreadable)


def unknown_earlier(root: Root, before: Part | None, skipped: Iterable[Skipped], known: KnownGarments) -> list[Garment]:
    """Return the skipped garments as they were in `before`, as far as they were there and are not known."""
    unknown = []
    for garment_id in {skip.garment_id for skip in skipped}:
        row = _row_in(before, garment_id)
        if row is not None and (row.id, row.sha256) not in known:
            unknown.append(Garment.stored(root, row))
    return unknown


def choose(
    wanted: Wanted, known: KnownGarments, before: Part | None, skipped_ids: Collection[str]
) -> tuple[list[EncodedGarment], list[Skipped]]:
    """Return the garments of the version, by category and id, and those that cannot be taken in as they are wanted.

    A garment that cannot be taken in stays as it was in `before`. skipped_ids: garments that have been skipped already.
    """
    chosen: list[EncodedGarment] = []
    not_taken: list[Skipped] = []
    for garment in wanted.garments.values():
        encoded = known.get(garment.id, wanted.digests.get(garment.id, ""))
        taken = None
        if encoded is not None:
            try:
                taken = _with_description(encoded, garment)
            except InvalidRequest as error:
                not_taken.append(Skipped(garment.id, str(error)))
        elif garment.id not in skipped_ids:
            not_taken.append(Skipped(garment.id, "its picture changed while it was read"))
        taken = taken or _earlier(garment.id, before, known)
        if taken is not None:
            chosen.append(taken)
    return sorted(chosen, key=lambda encoded: (encoded.row.category, encoded.row.id)), not_taken


def _with_description(encoded: EncodedGarment, garment: Garment) -> EncodedGarment:
    """Return an encoded garment with what `garment` says of it. Raises InvalidRequest if that breaks a rule."""
    row = replace(
        encoded.row,
        category=garment.category,
        caption=garment.caption,
        chunks=garment.chunks,
        attributes=garment.attributes,
    )
    return encoded if row == encoded.row else encoded._replace(row=checked(row))


def _earlier(garment_id: str, before: Part | None, known: KnownGarments) -> EncodedGarment | None:
    """Return a garment as it was in `before`, None if it was not there or is not known."""
    row = _row_in(before, garment_id)
    return None if row is None else known.get(garment_id, row.sha256)


def _row_in(part: Part | None, garment_id: str) -> GarmentRow | None:
    if part is None:
        return None
    number = part.garments.find(garment_id)
    return None if number is None else part.garments[number]
