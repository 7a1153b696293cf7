from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fashion_rag.catalogue.table import (
    SCHEMA,
    GarmentRow,
    Garments,
    check_id,
    checked,
    from_record,
    to_record,
    to_table,
)
from fashion_rag.errors import ArtifactError, InvalidRequest

ROW = GarmentRow(
    "a-1",
    "dresses",
    "ein Kleid, grün",
    "images/ab/picture 1.jpg",
    "ab" * 32,
    ("ein Kleid", "grüner Stoff"),
    {"colour": ("green", "red"), "brand": ("acme",)},
)
PLAIN = GarmentRow("b_2.c", "upper_body", "", "b.png", "0" * 64)
BROKEN = [
    ({"id": ""}, "id", "got ''"),
    ({"id": ".hidden"}, "id", "not begin with '.'"),
    ({"id": ".."}, "id", "got '..'"),
    ({"id": "a/b"}, "id", "got 'a/b'"),
    ({"id": "a\n"}, "id", "letters, digits"),
    ({"id": "ä"}, "id", "letters, digits"),
    ({"id": "search"}, "id", "must not be 'search'"),
    ({"id": "a" * 129}, "id", "1 to 128"),
    ({"category": "shoes"}, "category", "must be one of dresses"),
    ({"caption": "x" * 2001}, "caption", "at most 2000"),
    ({"image": "../a.jpg"}, "image", "relative path"),
    ({"image": "a/../../b.jpg"}, "image", "relative path"),
    ({"image": "/etc/passwd"}, "image", "relative path"),
    ({"image": "s3://bucket/a.jpg"}, "image", "relative path"),
    ({"image": "c:a.jpg"}, "image", "relative path"),
    ({"image": "a\\..\\b.jpg"}, "image", "relative path"),
    ({"image": "a//b.jpg"}, "image", "relative path"),
    ({"image": "a/"}, "image", "relative path"),
    ({"image": ""}, "image", "relative path"),
    ({"image": "a\0.jpg"}, "image", "relative path"),
    ({"image": "a.jpg\n"}, "image", "relative path"),
    ({"image": "a" * 513}, "image", "at most 512"),
    ({"sha256": "AB" * 32}, "sha256", "64 hexadecimal"),
    ({"sha256": "ab"}, "sha256", "64 hexadecimal"),
    ({"chunks": ("x",) * 17}, "chunks", "at most 16"),
    ({"chunks": ("a", "")}, "chunks", "1 to 200"),
    ({"chunks": ("x" * 201,)}, "chunks", "1 to 200"),
    ({"attributes": {f"n{index}": ("x",) for index in range(33)}}, "attributes", "at most 32"),
    ({"attributes": {"": ("x",)}}, "attributes", "names must match"),
    ({"attributes": {"a b": ("x",)}}, "attributes", "names must match"),
    ({"attributes": {"a": ()}}, "attributes", "1 to 32 values"),
    ({"attributes": {"a": ("x",) * 33}}, "attributes", "1 to 32 values"),
    ({"attributes": {"b": ("x",), "c": ("x", "")}}, "attributes", "1 to 200"),
    ({"attributes": {"c": ("x" * 201,)}}, "attributes", "1 to 200"),
]


@pytest.mark.parametrize("rows", [[], [ROW], [PLAIN, ROW], [ROW, PLAIN]])
def test_rows_come_back_as_they_were(tmp_path: Path, rows: list[GarmentRow]) -> None:
    path = tmp_path / "garments.parquet"
    Garments(to_table(rows)).write(path)
    garments = Garments.read(path)
    assert list(garments) == rows
    assert len(garments) == len(rows)
    assert [garments.find(row.id) for row in rows] == list(range(len(rows)))
    assert garments.find("no-such") is None
    with pytest.raises(IndexError):
        garments[len(rows)]


def test_equal_garments_give_equal_bytes(tmp_path: Path) -> None:
    turned = replace(ROW, attributes=dict(reversed(ROW.attributes.items())))
    for name, row in (("one", ROW), ("two", turned), ("three", PLAIN)):
        Garments(to_table([row])).write(tmp_path / name)
    first, same, different = ((tmp_path / name).read_bytes() for name in ("one", "two", "three"))
    assert first == same != different


@given(st.permutations([f"g{index}" for index in range(12)] + ["-", "Z", "_", "a.b"]))
def test_every_id_is_found_at_its_row(ids: list[str]) -> None:
    garments = Garments(to_table([replace(PLAIN, id=garment_id) for garment_id in ids]))
    assert [garments.find(garment_id) for garment_id in ids] == list(range(len(ids)))
    assert [garments.find(garment_id) for garment_id in ("", "g", "g99", "zz", "a.c")] == [None] * 5


@pytest.mark.parametrize(("changes", "field", "rule"), BROKEN)
def test_a_row_that_breaks_a_rule_is_refused(tmp_path: Path, changes: dict[str, Any], field: str, rule: str) -> None:
    row = replace(ROW, **changes)
    with pytest.raises(InvalidRequest) as caught:
        checked(row)
    assert caught.value.field == field
    assert rule in str(caught.value)
    # In a later piece of a table, and in a file.
    rows = [replace(PLAIN, id=f"g{index}", chunks=("x",)) for index in range(5)]
    table = pa.concat_tables([to_table(rows[:3]), to_table([*rows[3:], row])])
    with pytest.raises(ArtifactError, match=f"row 5: {field}: "):
        Garments(table)
    pq.write_table(table, tmp_path / "garments.parquet", row_group_size=2)
    with pytest.raises(ArtifactError) as refused:
        Garments.read(tmp_path / "garments.parquet")
    assert str(refused.value).startswith(f"{tmp_path / 'garments.parquet'}: row 5: {field}: ")
    assert rule in str(refused.value)


@pytest.mark.parametrize("garment_id", [changes["id"] for changes, field, _ in BROKEN if field == "id"])
def test_check_id_keeps_the_same_rule(garment_id: str) -> None:
    assert check_id("a-1") == "a-1"
    with pytest.raises(InvalidRequest, match=r"id: got .*; must (be 1 to 128|not be 'search')"):
        check_id(garment_id)


def test_limits_may_be_reached() -> None:
    checked(
        GarmentRow(
            "a" * 128,
            "lower_body",
            "x" * 2000,
            "i" * 512,
            "f" * 64,
            ("ä" * 200,) * 16,
            {f"{'n' * 62}{index:02}": ("v" * 200,) * 32 for index in range(32)},
        )
    )


def test_two_of_an_id_are_refused() -> None:
    rows = [replace(PLAIN, id=garment_id) for garment_id in ("c", "a", "b", "a", "d")]
    with pytest.raises(ArtifactError, match="row 3: id: got 'a'; is also the id of row 1"):
        Garments(to_table(rows))


@pytest.mark.parametrize("name", SCHEMA.names)
def test_a_missing_value_is_refused(name: str) -> None:
    record = to_record(ROW) | {name: None}
    with pytest.raises(ArtifactError, match=rf"row 0: {name}: is missing; "):
        Garments(pa.Table.from_pylist([record], SCHEMA))


@pytest.mark.parametrize(
    "attributes", [[None], [{"name": "a"}], [{"name": None, "values": ["x"]}], [{"name": "a", "values": [None]}]]
)
def test_a_missing_value_inside_is_refused(attributes: list[Any]) -> None:
    with pytest.raises(ArtifactError, match="row 1: attributes: is missing; "):
        Garments(pa.Table.from_pylist([to_record(PLAIN), to_record(ROW) | {"attributes": attributes}], SCHEMA))


@pytest.mark.parametrize("names", [["b", "a"], ["a", "a"]])
def test_attributes_come_in_order_each_once(names: list[str]) -> None:
    attributes = [{"name": name, "values": ["x"]} for name in names]
    table = pa.Table.from_pylist([to_record(ROW), to_record(PLAIN) | {"attributes": attributes}], SCHEMA)
    with pytest.raises(ArtifactError, match="row 1: attributes: got 'a'; must come in order of their names, each once"):
        Garments(table)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.drop_columns("sha256"),
        lambda table: table.append_column("price", pa.array([1])),
        lambda table: table.select(SCHEMA.names[::-1]),
        lambda table: table.set_column(0, "id", pa.array([7])),
        lambda table: table.set_column(0, "id", table["id"].cast(pa.large_string())),
    ],
)
def test_other_columns_or_types_are_refused(tmp_path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(to_table([ROW])), tmp_path / "garments.parquet")
    with pytest.raises(ArtifactError, match=r"garments.parquet: columns are .*; must be id \(string\), category"):
        Garments.read(tmp_path / "garments.parquet")


@pytest.mark.parametrize("content", [None, b"", b"PAR1", b"no table"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "garments.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"garments.parquet: not a readable Parquet file"):
        Garments.read(path)


def test_a_damaged_file_is_refused_or_reads_as_garments(tmp_path: Path) -> None:
    Garments(to_table([ROW, PLAIN])).write(tmp_path / "garments.parquet")
    whole = (tmp_path / "garments.parquet").read_bytes()
    refused = 0
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            Garments.read(tmp_path / "damaged")
        except ArtifactError:
            refused += 1
    assert refused > 100


def test_a_text_that_is_not_utf8_is_refused() -> None:
    table = to_table([ROW])
    (text,) = (pa.array([b"\xff\xfe"]).view(pa.string()),)
    broken = table.set_column(2, "caption", text)
    with pytest.raises(ArtifactError, match="rows 0 to 0: not valid Arrow data"):
        Garments(broken)


def test_a_record_comes_back_through_json() -> None:
    for row in (ROW, PLAIN):
        assert from_record(to_record(row)) == row


@pytest.mark.parametrize(
    "changes",
    [
        {"id": 7},
        {"caption": "\ud800"},
        {"chunks": "abc"},
        {"chunks": [["a"]]},
        {"attributes": {"a": ["x"]}},
        {"attributes": [{"name": "a", "values": "xy"}]},
        {"attributes": [{"name": "a", "values": ["x"], "more": 1}]},
        {"price": 3},
    ],
)
def test_a_record_of_other_types_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="garment: got"):
        from_record(to_record(ROW) | changes)


@pytest.mark.parametrize("record", [None, 7, "text", [], {}])
def test_what_is_no_record_is_refused(record: object) -> None:
    with pytest.raises(InvalidRequest):
        from_record(record)


def test_a_value_that_no_column_holds_is_refused() -> None:
    bad: Any = replace(ROW, caption=7)
    with pytest.raises(ArtifactError, match="a value does not have the type of its column"):
        to_table([PLAIN, bad])
    with pytest.raises(InvalidRequest, match="garment: got"):
        checked(bad)
