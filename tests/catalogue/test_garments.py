import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fashion_rag.artifacts import write_json
from fashion_rag.catalogue import garments as store
from fashion_rag.catalogue.garments import Garment, StoredPicture, garments_in, in_order
from fashion_rag.catalogue.storage import Root
from fashion_rag.catalogue.table import GarmentRow
from fashion_rag.demo.world.layout import write_dresscode
from fashion_rag.errors import ArtifactError
from tests.catalogue.toy import paint


def table(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def stored(root: Path, content: bytes, name: str = "a.jpg") -> StoredPicture:
    at = Root.at(root)
    at.write(f"images/{name}", content)
    return StoredPicture(at, f"images/{name}", hashlib.sha256(b"what it was made of").hexdigest())


def test_plain_folders_give_garments_by_category_and_id(tmp_path: Path) -> None:
    for name in ("upper_body/b.jpg", "upper_body/a.png", "dresses/c.JPEG", "dresses/d.webp", "other/e.jpg"):
        paint(tmp_path / name, "red")
    (tmp_path / "dresses" / "notes.txt").touch()
    write_json(tmp_path / "captions.json", {"a": "a shirt", "unknown": "nothing"})
    assert garments_in(tmp_path) == [
        Garment("c", "dresses", "", tmp_path / "dresses" / "c.JPEG"),
        Garment("d", "dresses", "", tmp_path / "dresses" / "d.webp"),
        Garment("a", "upper_body", "a shirt", tmp_path / "upper_body" / "a.png"),
        Garment("b", "upper_body", "", tmp_path / "upper_body" / "b.jpg"),
    ]


def test_captions_are_optional(tmp_path: Path) -> None:
    paint(tmp_path / "dresses" / "c.jpg", "red")
    assert [garment.caption for garment in garments_in(tmp_path)] == [""]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
    ],
)
def test_captions_that_are_no_captions_are_refused(tmp_path: Path, content: str) -> None:
    paint(tmp_path / "dresses" / "c.jpg", "red")
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(ArtifactError, match=re.escape(str(tmp_path / "captions.json"))):
        garments_in(tmp_path)


def test_a_dress_code_folder_is_known_by_its_captions(tmp_path: Path) -> None:
    write_dresscode(tmp_path, num_pairs=2, seed=0, size=(64, 48), categories=("dresses", "lower_body"))
    garments = garments_in(tmp_path)
    assert [garment.category for garment in garments] == ["dresses"] * 2 + ["lower_body"] * 2
    assert all(garment.caption and garment.picture.name == f"{garment.id}_1.jpg" for garment in garments)
    for category in ("dresses", "lower_body"):
        first, _ = (tmp_path / category / "test_pairs_paired.txt").read_text().splitlines()
        (tmp_path / category / "train_pairs.txt").write_text(f"{first}\n")
    trained = garments_in(tmp_path, phase="train")
    assert [garment.category for garment in trained] == ["dresses", "lower_body"]
    assert all(garment in garments for garment in trained)


def test_a_table_gives_garments_with_attributes(tmp_path: Path) -> None:
    path = table(
        tmp_path / "shop" / "garments.parquet",
        id=["b", "a"],
        category=["upper_body", "dresses"],
        image=["pictures/b.png", "a.jpg"],
        caption=["a shirt", None],
        colour=["red", "blue"],
        size=[["S", "", "M"], []],
        year=[2024, None],
        season=[None, ""],
    )
    assert garments_in(path) == [
        Garment("a", "dresses", "", tmp_path / "shop" / "a.jpg", attributes={"colour": ("blue",)}),
        Garment(
            "b",
            "upper_body",
            "a shirt",
            tmp_path / "shop" / "pictures" / "b.png",
            attributes={"colour": ("red",), "size": ("S", "M"), "year": ("2024",)},
        ),
    ]


def test_a_table_needs_no_captions_and_may_count_its_garments(tmp_path: Path) -> None:
    path = table(tmp_path / "garments.parquet", id=[7], category=["dresses"], image=["a.jpg"])
    assert garments_in(path) == [Garment("7", "dresses", "", tmp_path / "a.jpg")]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"], "caption": ["b"]}, "has no column category, image"),
        ({"id": ["a", "a"], "category": ["dresses"] * 2, "image": ["a.jpg", "b.jpg"]}, "garment a: is both"),
        ({"id": ["a"], "category": ["shoes"], "image": ["a.jpg"]}, "category is 'shoes'; must be one of"),
        ({name: pa.array([], pa.string()) for name in ("id", "category", "image")}, "no garment"),
        ({"id": [None], "category": ["dresses"], "image": ["a.jpg"]}, "id"),
        ({"id": ["a"], "category": ["dresses"], "image": [None]}, "image"),
    ],
)
def test_a_table_that_is_no_catalogue_is_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    path = table(tmp_path / "garments.parquet", **columns)
    with pytest.raises(ArtifactError, match=message):
        garments_in(path)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 and no more"])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "garments.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=re.escape(f"{path}: not a readable Parquet file")):
        garments_in(path)


def test_two_pictures_of_one_id_are_refused(tmp_path: Path) -> None:
    paint(tmp_path / "dresses" / "a.jpg", "red")
    paint(tmp_path / "upper_body" / "a.png", "red")
    with pytest.raises(ArtifactError, match=r"garment a: is both .*a\.jpg and .*a\.png"):
        garments_in(tmp_path)


@pytest.mark.parametrize("name", ["shoes/a.jpg", "dresses/notes.txt"])
def test_a_folder_without_garments_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).touch()
    with pytest.raises(ArtifactError, match=re.escape(f"{tmp_path}: no garment pictures; must be in folders named")):
        garments_in(tmp_path)


def test_order_is_by_category_and_then_id(tmp_path: Path) -> None:
    garments = [
        Garment("b", "dresses", "", tmp_path),
        Garment("A", "upper_body", "", tmp_path),
        Garment("C", "dresses", "", tmp_path),
    ]
    assert [garment.id for garment in in_order(garments)] == ["C", "b", "A"]
    assert in_order([]) == []


def test_an_unknown_category_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="garment a: category is 'shoes'; must be one of dresses"):
        in_order([Garment("a", "shoes", "", tmp_path)])


def test_a_damaged_or_missing_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    for picture in (tmp_path / "a.jpg", tmp_path / "b.jpg", tmp_path, stored(tmp_path, b"no picture")):
        with pytest.raises(ArtifactError, match=re.escape(f"garment a: {picture.name}: ")):
            Garment("a", "dresses", "", picture).image()


def test_a_stored_picture_is_read_like_a_path(tmp_path: Path) -> None:
    content = paint(tmp_path / "red.png", "red").read_bytes()
    picture = stored(tmp_path / "root", content, "ab/cdef.jpg")
    assert (picture.name, picture.read_bytes()) == ("cdef.jpg", content)
    (tmp_path / "root" / picture.reference).unlink()
    with pytest.raises(FileNotFoundError):
        picture.read_bytes()
    with pytest.raises(ArtifactError, match=r"garment a: cdef\.jpg: "):
        Garment("a", "dresses", "", picture).image()


def test_a_stored_picture_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_PICTURE_BYTES", 10)
    assert stored(tmp_path, b"0123456789").read_bytes() == b"0123456789"
    with pytest.raises(ArtifactError, match="must have at most 10 bytes"):
        Garment("a", "dresses", "", stored(tmp_path, b"0123456789+")).image()


def test_a_row_gives_a_garment_with_its_picture_in_the_root(tmp_path: Path) -> None:
    picture = stored(tmp_path, paint(tmp_path / "red.png", "red").read_bytes())
    row = GarmentRow("a", "dresses", "red", picture.reference, picture.sha256, ("one", "two"), {"size": ("S", "M")})
    words = np.ones((2, 3), np.float32)
    garment = Garment.stored(picture.root, row, words)
    assert garment == Garment("a", "dresses", "red", picture, ("one", "two"), {"size": ("S", "M")})
    assert garment.pseudo_words is words
    assert Garment.stored(picture.root, row).pseudo_words is None
    assert garment.image().getpixel((0, 0)) == (255, 0, 0)


def test_the_digest_is_of_the_picture_as_it_came(tmp_path: Path) -> None:
    path = paint(tmp_path / "red.png", "red")
    assert Garment("a", "dresses", "", path).digest() == hashlib.sha256(path.read_bytes()).hexdigest()
    picture = stored(tmp_path, b"what was made of it")
    assert Garment("a", "dresses", "", picture).digest() == hashlib.sha256(b"what it was made of").hexdigest()
    with pytest.raises(FileNotFoundError):
        Garment("a", "dresses", "", tmp_path / "gone.png").digest()
