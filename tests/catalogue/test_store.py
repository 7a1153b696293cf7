import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from fashion_rag.artifacts import write_json
from fashion_rag.catalogue.store import Garment, garments_in, in_order, read_garments, write_garments
from fashion_rag.demo.layout import write_dresscode
from fashion_rag.errors import ArtifactError


def save_picture(path: Path, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (20, 30)).save(path)


def test_plain_folders_give_garments_by_category_and_id(tmp_path: Path) -> None:
    for name in ("upper_body/b.jpg", "upper_body/a.png", "dresses/c.JPEG", "other/d.jpg"):
        save_picture(tmp_path / name)
    (tmp_path / "dresses" / "notes.txt").touch()
    write_json(tmp_path / "captions.json", {"a": "a shirt", "unknown": "nothing"})
    assert garments_in(tmp_path) == [
        Garment("c", "dresses", "", tmp_path / "dresses" / "c.JPEG"),
        Garment("a", "upper_body", "a shirt", tmp_path / "upper_body" / "a.png"),
        Garment("b", "upper_body", "", tmp_path / "upper_body" / "b.jpg"),
    ]


def test_captions_are_optional(tmp_path: Path) -> None:
    save_picture(tmp_path / "dresses" / "c.jpg")
    assert [garment.caption for garment in garments_in(tmp_path)] == [""]


def test_a_dress_code_folder_is_known_by_its_captions(tmp_path: Path) -> None:
    write_dresscode(tmp_path, num_pairs=2, seed=0, size=(64, 48), categories=("dresses", "lower_body"))
    garments = garments_in(tmp_path)
    assert [garment.category for garment in garments] == ["dresses"] * 2 + ["lower_body"] * 2
    assert all(garment.caption and garment.image_path.name == f"{garment.id}_1.jpg" for garment in garments)


def test_two_pictures_of_one_id_are_refused(tmp_path: Path) -> None:
    save_picture(tmp_path / "dresses" / "a.jpg")
    save_picture(tmp_path / "upper_body" / "a.png")
    with pytest.raises(ArtifactError, match=r"garment a: is both .*a\.jpg and .*a\.png"):
        garments_in(tmp_path)


@pytest.mark.parametrize("name", ["shoes/a.jpg", "dresses/notes.txt"])
def test_a_folder_without_garments_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).touch()
    with pytest.raises(ArtifactError, match=re.escape(f"{tmp_path}: no garment pictures; must be in folders named")):
        garments_in(tmp_path)


def test_an_unknown_category_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="garment a: category is 'shoes'; must be one of dresses"):
        in_order([Garment("a", "shoes", "", tmp_path)])


def test_garments_move_together_with_their_pictures(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new" / "deeper"
    save_picture(old / "pictures" / "a.jpg")
    (old / "catalogue").mkdir()
    garment = Garment("a", "dresses", "ein Kleid, grün", old / "pictures" / "a.jpg")
    write_garments([garment], old / "catalogue" / "garments.json", home=old / "catalogue")
    new.parent.mkdir()
    old.rename(new)
    (read,) = read_garments(new / "catalogue" / "garments.json")
    assert (read.id, read.category, read.caption) == ("a", "dresses", "ein Kleid, grün")
    assert read.image().size == (20, 30)


def test_pictures_are_found_through_a_linked_folder(tmp_path: Path) -> None:
    save_picture(tmp_path / "far" / "away" / "a.jpg")
    os.symlink(tmp_path / "far" / "away", tmp_path / "near")
    (tmp_path / "catalogue").mkdir()
    garment = Garment("a", "dresses", "", tmp_path / "near" / "a.jpg")
    write_garments([garment], tmp_path / "catalogue" / "garments.json", home=tmp_path / "catalogue")
    shutil.move(tmp_path / "near", tmp_path / "gone")
    assert read_garments(tmp_path / "catalogue" / "garments.json")[0].image().size == (20, 30)


def test_a_damaged_or_missing_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    for path in (tmp_path / "a.jpg", tmp_path / "b.jpg"):
        with pytest.raises(ArtifactError, match=re.escape(f"garment a: image: got '{str(path)[:20]}")):
            Garment("a", "dresses", "", path).image()


@pytest.mark.parametrize("content", [{}, [1], [{"id": "a"}], {"a": 1}])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    write_json(tmp_path / "garments.json", content)
    with pytest.raises(ArtifactError, match=re.escape(str(tmp_path / "garments.json"))):
        read_garments(tmp_path / "garments.json")
