"""Makes versions of a catalogue: each garment is encoded once, and a version takes over what an earlier one knows.

`build` compares the garments with the live version, encodes what is new or has changed, writes the vectors and the
table, and publishes them as one version. What was encoded is kept in parts on disk, so that a build that was cut short
goes on. `Bundle.build_catalogue` calls it, with `on_ray.on_ray` where many processes are to encode.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fashion_rag.artifacts import cache_folder
from fashion_rag.atomic_files import locked, scratch_beside
from fashion_rag.catalogue.garment_encoding import (
    BATCH_SIZE,
    INDEX_FOLDER,
    EncodedGarment,
    Encoders,
    Part,
    Skipped,
    encode,
)
from fashion_rag.catalogue.garments import Garment
from fashion_rag.catalogue.known_garments import KnownGarments, keep_part, kept_parts
from fashion_rag.catalogue.storage import Root
from fashion_rag.catalogue.vector_index import VectorIndex
from fashion_rag.catalogue.version_manifest import Version
from fashion_rag.catalogue.versions import publish
from fashion_rag.catalogue.wanted_garments import LiveState, choose, read_live, unknown_earlier, wanted_garments
from fashion_rag.errors import ArtifactError

# A build that is cut short loses at most so many garments that it has encoded.
PART_ROWS = 1024

Outcomes = Sequence[EncodedGarment | Skipped]
# Encodes batches of garments wherever it likes, in any order. The encoders are loaded where they are used.
Compute = Callable[[Iterable[Sequence[Garment]], Callable[[], Encoders], Root], Iterator[Outcomes]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Built:
    """What a build has done.

    num_encoded: garments that were new or had changed; num_kept: those that had not. refused: entries of the log of
    live changes that could not be read as changes, by name with the reason.
    """

    version: Version
    num_encoded: int
    num_kept: int
    num_removed: int
    skipped: tuple[Skipped, ...]
    refused: Mapping[str, str]


def in_process(batches: Iterable[Sequence[Garment]], load: Callable[[], Encoders], root: Root) -> Iterator[Outcomes]:
    """Yield the outcomes of one batch after the other, encoded in this process. This is a `Compute`."""
    encoders = load()
    for batch in batches:
        yield encode(batch, encoders, root)


def build(
    root: Root,
    garments: Sequence[Garment],
    load: Callable[[], Encoders],
    fingerprints: Mapping[str, str],
    *,
    compute: Compute = in_process,
    mirror: bool = False,
    work: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> Built:
    """Publish a new version of the catalogue in `root`, which is live from now on, and return what was done.

    The version has what the one before had, with `garments` and then the live changes laid over it. A garment that
    cannot be read keeps what was there before.

    load: loads the encoders.
    fingerprints: of the encoders that `load` gives.
    compute: encodes the batches of garments.
    mirror: leave out what is neither in `garments` nor in the live changes.
    work: local folder for what is half done, where the next build of this root goes on; in the user's cache by default.
    progress: is called with how many garments are encoded, and of how many.

    Raises VersionConflict if another version was published meanwhile (build again: what was encoded is kept), and
    ArtifactError if no garment is left.
    """
    work = work or cache_folder() / "builds" / _short_digest(root.path)
    work.parent.mkdir(parents=True, exist_ok=True)
    # Another build of this root on this machine would share `work`.
    with locked(work.with_name(f"{work.name}.lock")), scratch_beside(work) as scratch:
        live = read_live(root, scratch / "cache", mirror)
        wanted = wanted_garments(root, live, garments, mirror)

        parts = work / _short_digest(str(sorted(fingerprints.items())))
        known = _known_garments(root, live, parts, fingerprints)
        encoding = _Encoding(root, load, compute, parts, progress)
        new = wanted.not_in(known)
        new_parts, not_encoded = encoding.encode(new)
        known.add_parts(new_parts)
        skipped = [*wanted.unreadable, *not_encoded]
        # Where a garment cannot be read, its earlier picture stands in for it.
        earlier_parts, _ = encoding.encode(unknown_earlier(root, live.part, skipped, known))
        known.add_parts(earlier_parts)
        num_encoded = sum((garment.id, wanted.digests[garment.id]) in known for garment in new)

        chosen, not_taken = choose(wanted, known, live.part, {skip.garment_id for skip in skipped})
        skipped += not_taken
        if not chosen:
            raise ArtifactError(f"{root.path}: no garment is left; {len(skipped)} could not be taken in")

        folder = _write_files(scratch / "version", chosen)
        version = publish(
            root,
            folder,
            parent=live.name,
            num_garments=len(chosen),
            encoders=fingerprints,
            changes=live.log.taken_in,
        )
        _remove_work(work, parts)
    return Built(
        version=version,
        num_encoded=num_encoded,
        num_kept=len(chosen) - num_encoded,
        num_removed=_num_removed(live.part, chosen),
        skipped=tuple(skipped),
        refused=live.log.refused,
    )


def _known_garments(root: Root, live: LiveState, parts: Path, fingerprints: Mapping[str, str]) -> KnownGarments:
    """Return what the encoders of these fingerprints have made: in earlier builds, the live version and the changes."""
    known = KnownGarments()
    known.add_parts(kept_parts(parts, root))
    same_encoders = dict(live.encoders) == dict(fingerprints)
    live_part = live.part if same_encoders else None
    if live_part:
        known.add_parts([live_part])
    known.add_changes(live.log.last.values(), fingerprints, live_part)
    return known


@dataclass(frozen=True)
class _Encoding:
    """How a build encodes garments. parts: the folder where it keeps what was encoded."""

    root: Root
    load: Callable[[], Encoders]
    compute: Compute
    parts: Path
    progress: Progress

    def encode(self, garments: Sequence[Garment]) -> tuple[list[Part], list[Skipped]]:
        """Return the garments in parts that are kept on disk, and those that cannot be encoded."""
        kept: list[Part] = []
        skipped: list[Skipped] = []
        fresh: list[EncodedGarment] = []
        num_done = 0
        batches = [garments[start : start + BATCH_SIZE] for start in range(0, len(garments), BATCH_SIZE)]
        for outcomes in self.compute(batches, self.load, self.root) if batches else ():
            for outcome in outcomes:
                if isinstance(outcome, Skipped):
                    skipped.append(outcome)
                else:
                    fresh.append(outcome)
            num_done += len(outcomes)
            if len(fresh) >= PART_ROWS or (fresh and num_done == len(garments)):
                kept.append(keep_part(self.parts, fresh))
                fresh = []
            self.progress(num_done, len(garments))
        return kept, skipped


def _write_files(folder: Path, chosen: Sequence[EncodedGarment]) -> Path:
    """Write the table, the vectors, the pseudo-words and the index of a version into a new `folder`; return it."""
    (folder / INDEX_FOLDER).mkdir(parents=True)
    Part.write(folder, chosen)
    VectorIndex.build(Part(folder).vectors).save(folder / INDEX_FOLDER)
    return folder


def _num_removed(before: Part | None, chosen: Iterable[EncodedGarment]) -> int:
    """Return how many garments of the earlier version the new one does not have."""
    earlier_ids = before.ids() if before else []
    return len(set(earlier_ids) - {encoded.row.id for encoded in chosen})


def _remove_work(work: Path, parts: Path) -> None:
    """Remove the parts of a build that has been published, and its folder unless there is something else in it."""
    shutil.rmtree(parts, ignore_errors=True)
    with suppress(OSError):
        work.rmdir()


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
