"""The preparation of a shop's pictures as a data set in the Dress Code layout. `fashion-rag prepare` calls it.

A run makes what is missing, writes the lists of the data set, and then removes what no list names any more. A run that
was cut short loses at most the batch it was working on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fashion_rag.atomic_files import locked
from fashion_rag.errors import ArtifactError, InvalidRequest
from fashion_rag.preparation.contact_sheet import contact_sheet
from fashion_rag.preparation.files import (
    NAMES_FILE,
    SHEET_FILE,
    SKIPPED_FILE,
    make_folders,
    read_outcome,
    remove_others,
    write_lists,
)
from fashion_rag.preparation.pairs_file import Refusal, read_pairs_file
from fashion_rag.preparation.pictures import BATCH_SIZE, FORMAT, Outcome, OutputForm, Read, prepare_pictures
from fashion_rag.preparation.planning import ChooseCategory, Kind, Picture, PlannedPair, Planner

LOCK_FILE = "prepare.lock"
SHEET_ROWS = 24

# Prepares batches of pictures wherever it likes, in any order. The networks are loaded where they are used.
Compute = Callable[[Iterable[Sequence[Picture]], Callable[[], Read], OutputForm], Iterator[Sequence[Outcome]]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ShopFiles:
    """What a shop has. test_share: the share of garments for tests where the file of pairs does not say it."""

    photos: Path
    garments: Path
    pairs: Path
    test_share: float = 0.0


@dataclass(frozen=True)
class Networks:
    """What reads photos and captions.

    load: loads what reads photos. fingerprint: differs wherever two of them could read a photo differently.
    choose_category: is asked for the categories of rows that have none.
    """

    load: Callable[[], Read]
    fingerprint: str
    choose_category: ChooseCategory


@dataclass(frozen=True)
class Prepared:
    """What a run has done.

    num_pairs: how many pairs the data set has, by split and category. num_made: pictures that were prepared or found to
    be unusable by this run; num_kept: those that were before. refusals: the rows without a pair, in their order.
    """

    num_pairs: Mapping[tuple[str, str], int]
    num_made: int
    num_kept: int
    num_removed: int
    refusals: tuple[Refusal, ...]
    unknown_columns: tuple[str, ...]


def in_process(
    batches: Iterable[Sequence[Picture]], load: Callable[[], Read], form: OutputForm
) -> Iterator[Sequence[Outcome]]:
    """Yield the outcomes of one batch after the other, prepared in this process. This is a `Compute`."""
    read = load()
    for batch in batches:
        yield prepare_pictures(batch, read, form)


def prepare(
    shop: ShopFiles,
    networks: Networks,
    form: OutputForm,
    compute: Compute = in_process,
    progress: Progress = lambda phase, done, total: None,
) -> Prepared:
    """Make the data set in `form.root` hold what the shop's file lists, and return what was done.

    progress: is called with the phase, how many rows or pictures are done, and of how many.
    Raises ArtifactError if the file of pairs cannot be read, if no row can be prepared, or if the folder holds files
    but no NAMES_FILE, because they may be somebody else's.
    """
    root = form.root
    check_root(root)
    listed = read_pairs_file(shop.pairs, shop.test_share)
    form_text = f"{FORMAT} {form.shape} {form.max_height}"
    made_with: dict[Kind, str] = {"garment": form_text, "photo": f"{form_text} {networks.fingerprint}"}
    planner = Planner(shop.photos, shop.garments, made_with, networks.choose_category)
    planned, contradicting = planner.plan(listed.rows, partial(progress, "looking at rows"))
    make_folders(root)
    with locked(root / LOCK_FILE):
        (root / NAMES_FILE).touch()
        pictures = _distinct(planned)
        missing = [picture for picture in pictures if not _is_done(root, picture)]
        _make(missing, networks, form, compute, progress)
        pairs, unusable = _usable(root, planned)
        refusals = sorted([*listed.refusals, *contradicting, *unusable], key=lambda refusal: refusal.row)
        write_lists(root, pairs, refusals)
        if not pairs:
            raise ArtifactError(f"{shop.pairs}: no row could be prepared; {root / SKIPPED_FILE} says why")
        num_removed = remove_others(root, pictures)
        if missing or num_removed or not (root / SHEET_FILE).exists():
            photo_names = {pair.person.id: pair.row.photo for pair in pairs}
            contact_sheet(root, photo_names, SHEET_ROWS).save(root / SHEET_FILE)
    return Prepared(
        num_pairs=Counter((pair.row.split, pair.category) for pair in pairs),
        num_made=len(missing),
        num_kept=len(pictures) - len(missing),
        num_removed=num_removed,
        refusals=tuple(refusals),
        unknown_columns=listed.unknown_columns,
    )


def check_root(root: Path) -> None:
    """Raise ArtifactError if a folder holds files, but not of an earlier preparation."""
    if root.exists() and not (root / NAMES_FILE).is_file() and any(root.iterdir()):
        raise ArtifactError(f"{root}: holds files, but no {NAMES_FILE} of an earlier run; give a new or empty folder")


def _distinct(pairs: Sequence[PlannedPair]) -> list[Picture]:
    """Return the pictures of all pairs; the photos that show garments of several categories are side by side."""
    pictures = {(pair.person.kind, pair.person.id): pair.person for pair in pairs}
    pictures |= {(pair.garment.kind, pair.garment.id): pair.garment for pair in pairs}
    return sorted(pictures.values(), key=lambda picture: (picture.kind, picture.source, picture.category))


def _is_done(root: Path, picture: Picture) -> bool:
    try:
        read_outcome(root, picture)
    except FileNotFoundError:
        return False
    return True


def _make(
    pictures: Sequence[Picture], networks: Networks, form: OutputForm, compute: Compute, progress: Progress
) -> None:
    """Prepare the pictures. No networks are loaded if there are none."""
    batches = [pictures[start : start + BATCH_SIZE] for start in range(0, len(pictures), BATCH_SIZE)]
    num_done = 0
    for outcomes in compute(batches, networks.load, form) if batches else ():
        num_done += len(outcomes)
        progress("preparing pictures", num_done, len(pictures))


def _usable(root: Path, planned: Sequence[PlannedPair]) -> tuple[list[PlannedPair], list[Refusal]]:
    """Return the pairs whose pictures were prepared, and the rows of the others."""
    pairs: list[PlannedPair] = []
    refusals: list[Refusal] = []
    for pair in planned:
        row = pair.row
        for name, picture in ((row.photo, pair.person), (row.garment, pair.garment)):
            if rule := read_outcome(root, picture):
                refusals.append(Refusal(row.number, str(InvalidRequest(picture.kind, name, rule))))
                break
        else:
            pairs.append(pair)
    return pairs, refusals
