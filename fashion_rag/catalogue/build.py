"""Makes versions of a catalogue: each garment is encoded once, and a version takes over what an earlier one knows.

`build` asks for what is new or has changed, keeps what comes back in parts on disk, so that a build that was cut short
goes on, and publishes one version of it all. The command line calls it, with `ingest.on_ray` for many processes.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fashion_rag.artifacts import cache_folder
from fashion_rag.atomic_files import locked, scratch_beside, written_aside
from fashion_rag.catalogue.changes import Added, Change, pending
from fashion_rag.catalogue.garment_encoding import BATCH_SIZE, INDEX_FOLDER, Encoded, Encoders, Part, Skipped, encode
from fashion_rag.catalogue.garments import Garment
from fashion_rag.catalogue.storage import Root
from fashion_rag.catalogue.table import checked
from fashion_rag.catalogue.vector_index import VectorIndex, is_unit
from fashion_rag.catalogue.versions import Version, current, fetch, open_version, publish
from fashion_rag.errors import ArtifactError, InvalidRequest

# So many garments at most are encoded in vain when a build is cut short.
PART_ROWS = 1024


# Encodes batches of garments wherever it likes, in any order. The encoders are loaded where they are used.
Compute = Callable[[Iterable[Sequence[Garment]], Callable[[], Encoders], Root], Iterator[Sequence["Encoded | Skipped"]]]


@dataclass(frozen=True)
class Built:
    """What a build has done. num_encoded: garments that were new or had changed; num_kept: those that had not.
    refused: what is in the log of live changes and is none, with the reason.
    """

    version: Version
    num_encoded: int
    num_kept: int
    num_removed: int
    skipped: tuple[Skipped, ...]
    refused: Mapping[str, str]


def in_process(
    batches: Iterable[Sequence[Garment]], load: Callable[[], Encoders], root: Root
) -> Iterator[Sequence[Encoded | Skipped]]:
    """`Compute` here, one batch after the other."""
    encoders = load()
    for batch in batches:
        yield encode(batch, encoders, root)


class Known:
    """Garments that need not be encoded again, found by id and by the SHA-256 of the picture that they were made of.

    Those that are added are kept in `folder` until the build that takes them in has been published.
    """

    def __init__(self, folder: Path, root: Root) -> None:
        self._folder = folder
        self._found: dict[tuple[str, str], Callable[[], Encoded]] = {}
        for path in sorted(folder.glob("part-*")):  # one that was being written had another name
            try:
                part = Part(path)
            except ArtifactError:
                shutil.rmtree(path)
                continue
            # The root may be another by now, in the place of the one that has the pictures.
            if all(root.fs.exists(root.full(row.image)) for row in part.garments):
                self.take_in(part)

    def take_in(self, part: Part) -> None:
        """Return all the garments of a part."""
        self._found |= {key: partial(part.__getitem__, row) for row, key in enumerate(part.keys())}

    def take_in_changes(self, changes: Iterable[Change], fingerprints: Mapping[str, str], like: Part | None) -> None:
        """Return the garments that live changes have brought, where the same encoders made them, in the shapes of
        `like`.
        """
        for change in changes:
            if (
                isinstance(change, Added)
                and dict(change.encoders) == dict(fingerprints)
                and is_unit(change.vector)
                and (like is None or (len(change.vector) == like.vectors.shape[1] and like.fits(change.pseudo_words)))
            ):
                key = change.row.id, change.row.sha256
                self._found[key] = partial(Encoded, change.row, change.vector, change.pseudo_words)

    def add(self, encoded: Sequence[Encoded]) -> None:
        """Return one or more garments, from now on on disk."""
        path = self._folder / f"part-{secrets.token_hex(8)}"
        with written_aside(path) as new:
            Part.write(new, encoded)
        self.take_in(Part(path))

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._found

    def get(self, garment_id: str, digest: str) -> Encoded | None:
        """Return what is known of the garment with this picture."""
        find = self._found.get((garment_id, digest))
        return find() if find else None


def build(
    root: Root,
    garments: Sequence[Garment],
    load: Callable[[], Encoders],
    fingerprints: Mapping[str, str],
    *,
    compute: Compute = in_process,
    mirror: bool = False,
    work: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Built:
    """Return the version of the catalogue in `root` that is live from now on.

    It has what the one before had, with `garments` and then the live changes over it; with `mirror`, nothing that is in
    neither of these. A garment that cannot be read keeps what was there before. fingerprints: of what `load` gives.
    work: local folder for what is half done, where the next build of this root goes on; in the user's cache unless
    given. `progress` hears of how many garments are encoded, of how many.

    Raises VersionConflict if another version was published meanwhile (build again: what was encoded is kept), and
    ArtifactError if no garment is left.
    """
    work = work or cache_folder() / "builds" / _short(root.path)
    work.parent.mkdir(parents=True, exist_ok=True)
    # Another build of this root, on this machine, would share `work`.
    with (
        locked(work.with_name(f"{work.name}.lock")),
        scratch_beside(work) as scratch,
    ):
        name = current(root)
        parent, before = _live(root, name, scratch / "cache", mirror)
        log = pending(root, parent)
        parts = work / _short(str(sorted(fingerprints.items())))
        known = Known(parts, root)
        same_encoders = dict(parent.encoders) == dict(fingerprints)
        if before and same_encoders:
            known.take_in(before)
        known.take_in_changes(log.last.values(), fingerprints, before if same_encoders else None)
        wanted = _wanted(root, None if mirror else before, garments, log.last)
        keys, skipped = _keys(wanted.values())
        missing = [wanted[garment_id] for garment_id, digest in keys.items() if (garment_id, digest) not in known]
        skipped += _encode_missing(missing, load, root, compute, known, progress)
        if before:
            # In the place of what cannot be read comes what was there.
            rows = map(before.garments.find, {each.garment_id for each in skipped})
            earlier = [Garment.stored(root, before.garments[row]) for row in rows if row is not None]
            unknown = [garment for garment in earlier if (garment.id, garment.digest()) not in known]
            _encode_missing(unknown, load, root, compute, known, progress)
        num_encoded = sum((each.id, keys[each.id]) in known for each in missing)
        chosen, refused = _chosen(wanted, keys, known, before, {each.garment_id for each in skipped})
        skipped += refused
        if not chosen:
            raise ArtifactError(f"{root.path}: no garment is left; {len(skipped)} could not be taken in")
        folder = scratch / "version"
        (folder / INDEX_FOLDER).mkdir(parents=True)
        Part.write(folder, chosen)
        VectorIndex.build(Part(folder).vectors).save(folder / INDEX_FOLDER)
        version = publish(
            root,
            folder,
            parent=name,
            num_garments=len(chosen),
            encoders=fingerprints,
            changes=log.taken_in,
        )
        shutil.rmtree(parts, ignore_errors=True)
        with suppress(OSError):  # somebody has something else in it
            work.rmdir()
    num_removed = len(set(before.ids()) - {each.row.id for each in chosen}) if before else 0
    return Built(version, num_encoded, len(chosen) - num_encoded, num_removed, tuple(skipped), log.refused)


def _live(root: Root, name: str | None, cache: Path, mirror: bool) -> tuple[Version, Part | None]:
    """Return the live version and what it holds; no version and nothing where there is none.

    Nor is there one where it is damaged, if the new one need have nothing of it; else raises ArtifactError.
    """
    nothing = Version(name="", files={}, encoders={}, parent=None, num_garments=0, changes={})
    if name is None:
        return nothing, None
    try:
        version = open_version(root, name)
        return version, Part(fetch(root, version, cache))
    except ArtifactError:
        if not mirror:
            raise
        return nothing, None


def _wanted(
    root: Root, before: Part | None, garments: Iterable[Garment], last: Mapping[str, Change]
) -> dict[str, Garment]:
    """Return the garments that the version is to have, by id."""
    wanted = {row.id: Garment.stored(root, row) for row in before.garments} if before else {}
    wanted |= {garment.id: garment for garment in garments}
    for garment_id, change in last.items():
        if isinstance(change, Added):
            wanted[garment_id] = Garment.stored(root, change.row)
        else:
            wanted.pop(garment_id, None)
    return wanted


def _keys(garments: Iterable[Garment]) -> tuple[dict[str, str], list[Skipped]]:
    """Return the SHA-256 of each garment's picture, by id, and those that have none to read."""
    digests, skipped = {}, []
    for garment in garments:
        try:
            digests[garment.id] = garment.digest()
        except OSError as error:
            skipped.append(Skipped(garment.id, f"{garment.picture.name}: {error}"))
    return digests, skipped


def _encode_missing(
    missing: Sequence[Garment],
    load: Callable[[], Encoders],
    root: Root,
    compute: Compute,
    known: Known,
    progress: Callable[[int, int], None],
) -> list[Skipped]:
    """Those of `missing` that cannot be taken in; the others are now known."""
    skipped: list[Skipped] = []
    fresh: list[Encoded] = []
    batches = [missing[start : start + BATCH_SIZE] for start in range(0, len(missing), BATCH_SIZE)]
    num_done = 0
    for outcomes in compute(batches, load, root) if batches else ():
        for outcome in outcomes:
            if isinstance(outcome, Skipped):
                skipped.append(outcome)
            else:
                fresh.append(outcome)
        num_done += len(outcomes)
        if len(fresh) >= PART_ROWS or (fresh and num_done == len(missing)):
            known.add(fresh)
            fresh = []
        progress(num_done, len(missing))
    return skipped


def _chosen(
    wanted: Mapping[str, Garment], keys: Mapping[str, str], known: Known, before: Part | None, told: Collection[str]
) -> tuple[list[Encoded], list[Skipped]]:
    """Return what the version has, by category and id, and what else than `told` cannot be had; all that stays as it
    was.
    """
    chosen: list[Encoded] = []
    skipped: list[Skipped] = []
    for garment in wanted.values():
        encoded = known.get(garment.id, keys.get(garment.id, ""))
        if encoded is None and garment.id not in told:
            skipped.append(Skipped(garment.id, "its picture changed while it was read"))
        if encoded is not None:
            said = replace(
                encoded.row,
                category=garment.category,
                caption=garment.caption,
                chunks=garment.chunks,
                attributes=garment.attributes,
            )
            try:
                chosen.append(encoded if said == encoded.row else encoded._replace(row=checked(said)))
                continue
            except InvalidRequest as error:
                skipped.append(Skipped(garment.id, str(error)))
        if before is not None and (row := before.garments.find(garment.id)) is not None:
            old = known.get(garment.id, before.garments[row].sha256)
            if old is not None:
                chosen.append(old)
    return sorted(chosen, key=lambda each: (each.row.category, each.row.id)), skipped


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
