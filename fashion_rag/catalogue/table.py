"""What a catalogue says of its garments, as a table on disk: `garments.parquet`, with one row for each garment.

The build writes the table and every reader opens it; the log of live changes keeps single rows in the same form. No
file is trusted: a table that can be opened has passed every rule below.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fashion_rag.errors import ArtifactError, InvalidRequest
from fashion_rag.request import CATEGORIES

ID = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}"
ID_RULE = "must be 1 to 128 letters, digits, '.', '_' or '-', and not begin with '.'"
# A garment of this id could not be read over HTTP: GET /v1/garments/search is the search.
RESERVED_ID = "search"
RESERVED_RULE = f"must not be {RESERVED_ID!r}, which is the address of the search"
# No part begins with a dot, so that none leads upwards. No ':' is allowed, so that it is no drive and no URL.
IMAGE = r"[^./\\:\x00-\x1f][^/\\:\x00-\x1f]*(?:/[^./\\:\x00-\x1f][^/\\:\x00-\x1f]*)*"
MAX_IMAGE_CHARS = 512
MAX_CAPTION_CHARS = 2000
MAX_CHUNKS = 16
MAX_ATTRIBUTES = 32
ATTRIBUTE_NAME = r"[A-Za-z0-9_-]{1,64}"
MAX_ATTRIBUTE_VALUES = 32
MAX_VALUE_CHARS = 200

# Attributes are a list of structs and not a map: Arrow's list functions abort the process when given a map.
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("category", pa.string()),
        ("caption", pa.string()),
        ("chunks", pa.list_(pa.string())),
        ("attributes", pa.list_(pa.struct([("name", pa.string()), ("values", pa.list_(pa.string()))]))),
        ("image", pa.string()),
        ("sha256", pa.string()),
    ]
)


@dataclass(frozen=True)
class GarmentRow:
    """What a catalogue says of one garment. `checked` and `Garments` see to it that the rules are kept.

    caption: for people to read, may be empty. image: the picture's path relative to the catalogue's root, with '/'.
    sha256: of the bytes of the picture as it was delivered. chunks: captions of single noun chunks. attributes: values
    by name, to filter by.
    """

    id: str
    category: str
    caption: str
    image: str
    sha256: str
    chunks: tuple[str, ...] = ()
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def check_id(garment_id: str) -> str:
    """Return a valid id, which is also safe as the name of a file. Raises InvalidRequest for another text."""
    if not re.fullmatch(ID, garment_id):
        raise InvalidRequest("id", garment_id, ID_RULE)
    if garment_id == RESERVED_ID:
        raise InvalidRequest("id", garment_id, RESERVED_RULE)
    return garment_id


def checked(row: GarmentRow) -> GarmentRow:
    """Return the row itself if it keeps the rules.

    Raises InvalidRequest, which names the field, for a row that breaks a rule.
    """
    from_record(to_record(row))
    return row


def to_record(row: GarmentRow) -> dict[str, Any]:
    """Return the row in types of JSON, by the columns of SCHEMA, with the attributes in order of their names."""
    attributes = [{"name": name, "values": list(row.attributes[name])} for name in sorted(row.attributes)]
    return {
        "id": row.id,
        "category": row.category,
        "caption": row.caption,
        "chunks": list(row.chunks),
        "attributes": attributes,
        "image": row.image,
        "sha256": row.sha256,
    }


def from_record(record: object) -> GarmentRow:
    """Return the row of a record that `to_record` has made.

    Raises InvalidRequest for something else, and for a row that breaks a rule.
    """
    try:
        table = pa.Table.from_pylist([record], SCHEMA)
    # Arrow's own errors are TypeErrors or ValueErrors.
    except (AttributeError, TypeError, ValueError) as error:
        raise InvalidRequest("garment", record, f"must have the types of a garment: {error}") from error
    # Arrow drops keys that it does not know, and reads a text as the list of its letters.
    if table.to_pylist()[0] != record:
        raise InvalidRequest(
            "garment", record, f"must have exactly the keys {', '.join(SCHEMA.names)}, and their types"
        )
    for _, broken in _broken_rules(table):
        raise broken
    return _row(table)


def to_table(rows: Iterable[GarmentRow]) -> pa.Table:
    """Return the rows as a table of SCHEMA, not yet checked. Raises ArtifactError for a value of another type."""
    try:
        return pa.Table.from_pylist([to_record(row) for row in rows], SCHEMA)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"garments: a value does not have the type of its column: {error}") from error


class Garments:
    """The garments of a table of SCHEMA, by row number and by id.

    Raises ArtifactError, which names row and rule, for a table with other columns or types, with a row that breaks a
    rule, or with two rows of the same id.
    """

    def __init__(self, table: pa.Table) -> None:
        if table.schema.remove_metadata() != SCHEMA:
            raise ArtifactError(f"columns are {_columns(table.schema)}; must be {_columns(SCHEMA)}")
        for row, broken in _broken_rules(table):
            raise ArtifactError(f"row {row}: {broken}")
        self.table = table.replace_schema_metadata(None)
        # Large strings have 64-bit offsets, so that all ids fit into one array.
        self._ids = table["id"].cast(pa.large_string()).combine_chunks()
        self._by_id = pc.sort_indices(self._ids)
        self._refuse_duplicates()

    def _refuse_duplicates(self) -> None:
        """Raise ArtifactError if two rows have the same id."""
        in_order = self._ids.take(self._by_id)
        where = pc.index(pc.equal(in_order[1:], in_order[:-1]), True).as_py()
        if where >= 0:
            rows = sorted(self._by_id[where : where + 2].to_pylist())
            raise ArtifactError(f"row {rows[1]}: id: got {in_order[where].as_py()!r}; is also the id of row {rows[0]}")

    @classmethod
    def read(cls, path: Path) -> Garments:
        """Return the garments in a file of `write`. Raises ArtifactError as the class does, with the file's name."""
        try:
            with pq.ParquetFile(path) as file:
                return cls(file.read())
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ArtifactError(f"{path}: not a readable Parquet file: {error}") from error
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from error

    def write(self, path: Path) -> None:
        """Write the garments as a Parquet file in their order; equal garments give equal bytes."""
        pq.write_table(self.table, path, compression="zstd")

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row: int) -> GarmentRow:
        """Return the garment in this row, counted from 0. Raises IndexError for a row beyond the last."""
        return _row(self.table.slice(row, 1))

    def __iter__(self) -> Iterator[GarmentRow]:
        return (self[row] for row in range(len(self)))

    def find(self, garment_id: str) -> int | None:
        """Return the number of the row with this id, None if there is none.

        This takes about 20 comparisons in a million rows.
        """
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            row: int = self._by_id[middle].as_py()
            middle_id = self._ids[row].as_py()
            if middle_id == garment_id:
                return row
            if middle_id < garment_id:
                low = middle + 1
            else:
                high = middle
        return None


def _row(table: pa.Table) -> GarmentRow:
    """Return the first row of a table that keeps the rules."""
    record = table.to_pylist()[0]
    attributes = {attribute["name"]: tuple(attribute["values"]) for attribute in record["attributes"]}
    return GarmentRow(**record | {"chunks": tuple(record["chunks"]), "attributes": attributes})


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{column.name} ({column.type})" for column in schema)


def _broken_rules(table: pa.Table) -> Iterator[tuple[int, InvalidRequest]]:
    """Yield the broken rules of a table of SCHEMA, each once, with the first row that breaks it."""
    start = 0
    for batch in table.to_batches():
        try:
            batch.validate(full=True)
        except pa.ArrowInvalid as error:
            raise ArtifactError(f"rows {start} to {start + len(batch) - 1}: not valid Arrow data: {error}") from error
        for rule in _rules(batch):
            # A missing value breaks every rule.
            position = pc.index(pc.fill_null(rule.is_kept, False), False).as_py()
            if position >= 0:
                row = position if rule.rows is None else rule.rows[position].as_py()
                yield start + row, InvalidRequest(rule.field, rule.values[position].as_py(), rule.text)
        start += len(batch)


class _Rule(NamedTuple):
    """A rule for a field, and the values of a table that have to keep it, as Arrow arrays.

    text: the rule in words. is_kept: for each value, whether it keeps the rule. rows: for each value, the row that it
    is in; None if there is one value in each row.
    """

    field: str
    text: str
    values: Any
    is_kept: Any
    rows: Any = None


def _rules(batch: pa.RecordBatch) -> Iterator[_Rule]:
    """Yield the rules that the fields of a batch of rows have to keep."""
    for name, pattern, text in (
        ("id", ID, ID_RULE),
        ("image", IMAGE, "must be a relative path with '/', no part of which begins with '.', without ':' and '\\'"),
        ("sha256", "[0-9a-f]{64}", "must be 64 hexadecimal digits in lower case"),
    ):
        yield _Rule(name, text, batch[name], _matches(batch[name], pattern))
    yield _Rule("id", RESERVED_RULE, batch["id"], pc.not_equal(batch["id"], RESERVED_ID))
    known = pc.is_in(batch["category"], value_set=pa.array(CATEGORIES))
    yield _Rule("category", f"must be one of {', '.join(CATEGORIES)}", batch["category"], known)
    for name, limit in (("image", MAX_IMAGE_CHARS), ("caption", MAX_CAPTION_CHARS)):
        yield _Rule(name, f"must have at most {limit} characters", batch[name], _length_in(batch[name], 0, limit))

    for name, limit in (("chunks", MAX_CHUNKS), ("attributes", MAX_ATTRIBUTES)):
        yield _Rule(name, f"must be at most {limit}", batch[name], _count_in(batch[name], 0, limit))
    text_rule = f"must have 1 to {MAX_VALUE_CHARS} characters"
    chunks, rows = _flat(batch["chunks"])
    yield _Rule("chunks", text_rule, chunks, _length_in(chunks, 1, MAX_VALUE_CHARS), rows)

    attributes, rows = _flat(batch["attributes"])
    names, lists = pc.struct_field(attributes, "name"), pc.struct_field(attributes, "values")
    yield _Rule("attributes", f"names must match {ATTRIBUTE_NAME}", names, _matches(names, ATTRIBUTE_NAME), rows)
    is_rising = pc.or_(pc.greater(names[1:], names[:-1]), pc.not_equal(rows[1:], rows[:-1]))
    yield _Rule("attributes", "must come in order of their names, each once", names[1:], is_rising, rows[1:])
    count_rule = f"must have 1 to {MAX_ATTRIBUTE_VALUES} values"
    yield _Rule("attributes", count_rule, lists, _count_in(lists, 1, MAX_ATTRIBUTE_VALUES), rows)
    values, positions = _flat(lists)
    yield _Rule("attributes", text_rule, values, _length_in(values, 1, MAX_VALUE_CHARS), rows.take(positions))


def _matches(values: Any, pattern: str) -> Any:
    return pc.match_substring_regex(values, rf"\A(?:{pattern})\z")


def _length_in(values: Any, low: int, high: int) -> Any:
    length = pc.utf8_length(values)
    return pc.and_(pc.greater_equal(length, low), pc.less_equal(length, high))


def _count_in(lists: Any, low: int, high: int) -> Any:
    count = pc.list_value_length(lists)
    return pc.and_(pc.greater_equal(count, low), pc.less_equal(count, high))


def _flat(lists: Any) -> tuple[Any, Any]:
    """Return the elements of all the lists in an array, and for each element the position of its list."""
    return pc.list_flatten(lists), pc.list_parent_indices(lists)
