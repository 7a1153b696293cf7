"""What is to be prepared: the pictures and pairs of a file of pairs, and the rows that contradict earlier ones.

A picture's id is made of all that its prepared files depend on. So what has an id never changes, nothing has to be
numbered, and a picture that changes, or is prepared in another way, becomes another picture. `run` calls this.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal

from fashion_rag.artifacts import sha256
from fashion_rag.errors import InvalidRequest
from fashion_rag.preparation.pairs_file import PairRow, Refusal

# Dress Code's ids are numbers. With so many digits, two of a million pictures share one in less than a case of 1,000.
ID_DIGITS = 15
NOT_IN_GARMENT_NAMES = r"[^A-Za-z0-9_.-]+"

Kind = Literal["photo", "garment"]
# Returns the category of a caption. Raises InvalidRequest if the words do not say it.
ChooseCategory = Callable[[str], str]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Picture:
    """A photo or a garment picture of the shop. id: its number in the data set. source: the shop's file."""

    kind: Kind
    id: str
    category: str
    source: Path


@dataclass(frozen=True)
class PlannedPair:
    """A person and the garment that they wear. garment_name: what the shop calls it, as the id of a catalogue."""

    row: PairRow
    person: Picture
    garment: Picture
    garment_name: str

    @property
    def category(self) -> str:
        """Return the category of the garment."""
        return self.garment.category


class Planner:
    """Makes pairs of the rows of a file.

    photos, garments: the folders of pictures. choose: is asked for the category of rows that have none.
    made_with: by kind of picture, a text that differs wherever the prepared files of the same picture could.
    """

    def __init__(self, photos: Path, garments: Path, made_with: dict[Kind, str], choose: ChooseCategory) -> None:
        self.folders: dict[Kind, Path] = {"photo": photos, "garment": garments}
        self.made_with = made_with
        # A garment stands in as many rows as there are photos of it.
        self._category_of = cache(choose)
        self._digest_of = cache(sha256)

    def plan(
        self, rows: Sequence[PairRow], progress: Progress = lambda done, total: None
    ) -> tuple[list[PlannedPair], list[Refusal]]:
        """Return the pairs of the rows, and the rows that contradict an earlier row or whose pictures are missing.

        Every picture is read for its digest. progress: is called with how many rows are done, and of how many.
        """
        pairs: list[PlannedPair] = []
        refusals: list[Refusal] = []
        accepted = _Accepted()
        for num_done, row in enumerate(rows, start=1):
            try:
                pair = self._pair(row)
                accepted.add(pair)
                pairs.append(pair)
            except InvalidRequest as error:
                refusals.append(Refusal(row.number, str(error)))
            progress(num_done, len(rows))
        return pairs, refusals

    def _pair(self, row: PairRow) -> PlannedPair:
        category = row.category or self._category_of(row.caption)
        person = self._picture("photo", row.photo, category)
        garment = self._picture("garment", row.garment, category)
        return PlannedPair(row, person, garment, catalogue_id(row.garment))

    def _picture(self, kind: Kind, name: str, category: str) -> Picture:
        """Return a picture. Raises InvalidRequest if its file cannot be read."""
        source = self.folders[kind] / name
        try:
            digest = self._digest_of(source)
        except OSError as error:
            raise InvalidRequest(kind, name, f"must be a file that can be read: {error.strerror}") from error
        identity = hashlib.sha256(f"{kind} {category} {digest} {self.made_with[kind]}".encode())
        number = int(identity.hexdigest(), 16) % 10**ID_DIGITS
        return Picture(kind, f"{number:0{ID_DIGITS}}", category, source)


class _Accepted:
    """The pairs that have been accepted so far, by what later rows must not contradict."""

    def __init__(self) -> None:
        self._by_person: dict[str, PlannedPair] = {}
        self._by_garment: dict[str, PlannedPair] = {}
        self._by_name: dict[str, PlannedPair] = {}

    def add(self, pair: PlannedPair) -> None:
        """Accept a pair. Raises InvalidRequest if it contradicts an earlier one."""
        row = pair.row
        if earlier := self._by_person.get(pair.person.id):
            rule = f"must show one garment of {pair.category}, and row {earlier.row.number} has this photo, too"
            raise InvalidRequest("photo", row.photo, rule)
        if earlier := self._by_name.get(pair.garment_name):
            number = earlier.row.number
            if earlier.row.garment != row.garment:
                rule = f"must differ from {earlier.row.garment} of row {number} in more than its ending and signs"
                raise InvalidRequest("garment", row.garment, rule)
            if earlier.category != pair.category:
                rule = f"must be {earlier.category}, as for the same garment in row {number}"
                raise InvalidRequest("category", pair.category, rule)
        same = self._by_garment.get(pair.garment.id)
        if same and same.row.chunks != row.chunks:
            rule = f"must be that of the same garment in row {same.row.number}, {same.row.caption!r}"
            raise InvalidRequest("caption", row.caption, rule)
        self._by_person[pair.person.id] = pair
        self._by_garment.setdefault(pair.garment.id, pair)
        self._by_name.setdefault(pair.garment_name, pair)


def catalogue_id(garment: str) -> str:
    """Return the id in a catalogue of a garment with this path: without its ending, and with '-' for other signs."""
    name = re.sub(NOT_IN_GARMENT_NAMES, "-", str(PurePosixPath(garment).with_suffix("")))
    return name.lstrip(".") or "garment"
