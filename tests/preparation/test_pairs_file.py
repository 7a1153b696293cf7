"""The file of pairs: what its cells may be, and what is said about those that may not."""

from pathlib import Path

import pytest

from fashion_rag.errors import ArtifactError
from fashion_rag.preparation.pairs_file import PairsFile, read_pairs_file


def read(tmp_path: Path, text: str, test_share: float = 0.0) -> PairsFile:
    path = tmp_path / "pairs.csv"
    path.write_text(text, encoding="utf-8")
    return read_pairs_file(path, test_share)


def test_a_row_has_all_that_its_cells_say(tmp_path: Path) -> None:
    text = 'split,garment,photo,caption,category\ntest,shirts/a.png, b c.jpg ,"red, with dots , shirt",upper_body\n'
    (row,) = read(tmp_path, text).rows
    assert (row.number, row.photo, row.garment) == (2, "b c.jpg", "shirts/a.png")
    assert row.chunks == ("red", "with dots", "shirt")
    assert row.caption == "red, with dots, shirt"
    assert (row.category, row.split) == ("upper_body", "test")


def test_category_and_split_may_be_left_out(tmp_path: Path) -> None:
    (row,) = read(tmp_path, "photo,garment,caption\na.jpg,b.jpg,dress\n").rows
    assert (row.category, row.split) == (None, "train")
    (row,) = read(tmp_path, "photo,garment,caption,category,split\na.jpg,b.jpg,dress,,\n").rows
    assert (row.category, row.split) == (None, "train")


def test_what_spreadsheets_write_is_read(tmp_path: Path) -> None:
    (row,) = read(tmp_path, '\ufeffphoto,garment,caption\r\n"a.jpg",b.jpg,"a ""dress"", blue"\r\n').rows
    assert (row.photo, row.chunks) == ("a.jpg", ('a "dress"', "blue"))


def test_columns_without_a_meaning_are_named_and_passed_over(tmp_path: Path) -> None:
    listed = read(tmp_path, "photo,price,garment,caption,Category\na.jpg,12,b.jpg,dress,hats\n")
    assert listed.unknown_columns == ("price", "Category")
    assert len(listed.rows) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("photo;garment;caption\na;b;c\n", "has no column photo, garment, caption"),
        ("photo,caption\n", "has no column garment"),
        ("", "has no column photo, garment, caption"),
        ("photo,garment,caption,photo\n", "two columns have the same name"),
        ('photo,garment,caption\na,b,"c', "not a readable CSV file"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        read(tmp_path, text)


def test_a_file_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes("photo,garment,caption\na,b,Blütenkleid\n".encode("latin-1"))
    with pytest.raises(ArtifactError, match="UTF-8"):
        read_pairs_file(path, 0)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (",b.jpg,dress,,", ("photo", "''", "path")),
        ("/a.jpg,b.jpg,dress,,", ("photo", "/a.jpg", "path")),
        ("a.jpg,x/../../b.jpg,dress,,", ("garment", "..", "path")),
        ("a.jpg,b.jpg,,,", ("caption", "''", "words")),
        (f"a.jpg,b.jpg,{'a' * 2001},,", ("caption", "2000")),
        ("a.jpg,b.jpg,dress,dress,", ("category", "'dress'", "dresses")),
        ("a.jpg,b.jpg,dress,,both", ("split", "'both'", "train, test")),
        ("a.jpg,b.jpg,red,short,dress,dresses,train", ("cells", "7", "5 in all", "quotes")),
        ("a.jpg,b.jpg", ("caption", "''", "words")),
    ],
)
def test_a_row_that_breaks_a_rule_is_told_and_the_others_are_read(
    tmp_path: Path, cells: str, words: tuple[str, ...]
) -> None:
    listed = read(tmp_path, f"photo,garment,caption,category,split\n{cells}\nc.jpg,d.jpg,shirt,,\n")
    (refusal,) = listed.refusals
    assert refusal.row == 2
    assert all(word in refusal.reason for word in words), refusal.reason
    assert [row.number for row in listed.rows] == [3]


def test_a_share_of_the_garments_is_for_tests_and_stays_so_when_the_file_grows(tmp_path: Path) -> None:
    lines = [f"{number}.jpg,{number // 2}.jpg,dress" for number in range(1000)]
    rows = read(tmp_path, "\n".join(["photo,garment,caption", *lines]), 0.2).rows
    splits = {row.garment: row.split for row in rows}
    assert all(splits[row.garment] == row.split for row in rows)
    assert 70 < list(splits.values()).count("test") < 130
    fewer = read(tmp_path, "\n".join(["photo,garment,caption", *lines[400:]]), 0.2).rows
    assert all(splits[row.garment] == row.split for row in fewer)
    assert {row.split for row in read(tmp_path, "\n".join(["photo,garment,caption", *lines]), 1.0).rows} == {"test"}
