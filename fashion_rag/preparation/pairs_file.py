"""The reader of the file in which a shop says which garment is worn in which photo. `run` calls it.

It is a CSV file in UTF-8 whose first row names the columns:

    photo, garment      a picture's path below the folder of photos, and below the folder of garments
    caption             the garment in words; commas part its noun chunks, so it needs quotes in the file
    category            dresses, upper_body or lower_body; empty, or without this column: as the caption's words say
    split               train or test; empty, or without this column: by the garment's name
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fashion_rag.data.dresscode import Phase
from fashion_rag.errors import ArtifactError, InvalidRequest
from fashion_rag.request import CATEGORIES, MAX_PROMPT_CHARS

REQUIRED_COLUMNS = ("photo", "garment", "caption")
OPTIONAL_COLUMNS = ("category", "split")
SPLITS: tuple[Phase, ...] = ("train", "test")
# What a row has beyond the columns of the header is found under this name, which no column has.
BEYOND = "\n"


@dataclass(frozen=True)
class PairRow:
    """A row of the file. number: as spreadsheets count rows, in which the header is row 1. category: None if not given.

    chunks: the noun chunks of the caption, at least one.
    """

    number: int
    photo: str
    garment: str
    chunks: tuple[str, ...]
    category: str | None
    split: Phase

    @property
    def caption(self) -> str:
        """Return the whole caption."""
        return ", ".join(self.chunks)


@dataclass(frozen=True)
class Refusal:
    """A row that is not prepared. reason: names the column, the value and the rule."""

    row: int
    reason: str


@dataclass(frozen=True)
class PairsFile:
    """What a file holds. unknown_columns: their names, which mean nothing here and are passed over."""

    rows: tuple[PairRow, ...]
    refusals: tuple[Refusal, ...]
    unknown_columns: tuple[str, ...]


def read_pairs_file(path: Path, test_share: float) -> PairsFile:
    """Return the rows of a file of pairs, and those that break a rule of their columns.

    test_share: the share of the garments, from 0 to 1, whose rows are for tests where a row does not say it. All rows
    of a garment are in the same split, and they stay there when the file grows.
    Raises ArtifactError for a file that cannot be read or lacks a column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey=BEYOND, restval="", strict=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            _check_columns(path, columns)
            reader.fieldnames = columns
            cells_of_rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ArtifactError(f"{path}: not a readable CSV file in UTF-8: {error}") from error
    rows: list[PairRow] = []
    refusals: list[Refusal] = []
    for number, cells in enumerate(cells_of_rows, start=2):
        try:
            rows.append(_row(number, cells, len(columns), test_share))
        except InvalidRequest as error:
            refusals.append(Refusal(number, str(error)))
    unknown = [name for name in columns if name not in REQUIRED_COLUMNS + OPTIONAL_COLUMNS]
    return PairsFile(tuple(rows), tuple(refusals), tuple(unknown))


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    """Raise ArtifactError if a required column is missing, or if two columns have the same name."""
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    if missing:
        raise ArtifactError(
            f"{path}: has no column {', '.join(missing)}; its first row must name the columns, with commas between "
            f"them, and is {', '.join(columns) or 'empty'}"
        )
    if len(set(columns)) < len(columns):
        raise ArtifactError(f"{path}: two columns have the same name; its first row is {', '.join(columns)}")


def _row(number: int, cells: Mapping[str, str | list[str]], num_columns: int, test_share: float) -> PairRow:
    """Return a row of the file. Raises InvalidRequest, naming the column, if it breaks a rule."""
    if beyond := cells.get(BEYOND):
        rule = f"must be {num_columns} in all, as in the first row; a caption with commas needs quotes around it"
        raise InvalidRequest("cells", num_columns + len(beyond), rule)
    texts = {name: cell.strip() for name, cell in cells.items() if isinstance(cell, str)}
    for column in ("photo", "garment"):
        _check_path(column, texts[column])
    category, split = texts.get("category") or None, texts.get("split") or None
    if category is not None and category not in CATEGORIES:
        raise InvalidRequest("category", category, f"must be empty or one of {', '.join(CATEGORIES)}")
    if split is not None and split not in SPLITS:
        raise InvalidRequest("split", split, f"must be empty or one of {', '.join(SPLITS)}")
    caption = texts["caption"]
    chunks = [chunk.strip() for chunk in caption.split(",")]
    chunks = [chunk for chunk in chunks if chunk]
    if not chunks or len(caption) > MAX_PROMPT_CHARS:
        raise InvalidRequest("caption", caption, f"must have words, in at most {MAX_PROMPT_CHARS} characters")
    return PairRow(
        number=number,
        photo=texts["photo"],
        garment=texts["garment"],
        chunks=tuple(chunks),
        category=category,
        split=next((known for known in SPLITS if known == split), _split_of(texts["garment"], test_share)),
    )


def _check_path(column: str, name: str) -> None:
    """Raise InvalidRequest unless `name` is the path of a file below a folder."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts:
        raise InvalidRequest(column, name, "must be the path of a picture below its folder")


def _split_of(garment: str, test_share: float) -> Phase:
    """Return the split of a garment, which depends on its name and on the share alone."""
    place = int.from_bytes(hashlib.sha256(garment.encode()).digest()[:8])
    return "test" if place < test_share * 2**64 else "train"
