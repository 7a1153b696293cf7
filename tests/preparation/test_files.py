"""The lists of a prepared data set, for people and for other commands."""

import csv
import json
from pathlib import Path

from fashion_rag.catalogue.garments import garments_in
from fashion_rag.preparation.files import GARMENTS_FILE, NAMES_FILE, make_folders, write_lists
from fashion_rag.preparation.pairs_file import PairRow, Refusal
from fashion_rag.preparation.planning import Picture, PlannedPair


def pair(number: int, caption: str, split: str = "test", category: str = "dresses") -> PlannedPair:
    row = PairRow(number, f"p{number}.jpg", f"g{number}.jpg", tuple(caption.split(", ")), category, split)
    person = Picture("photo", f"1{number}", category, Path(row.photo))
    return PlannedPair(row, person, Picture("garment", f"2{number}", category, Path(row.garment)), f"g{number}")


def test_the_lists_say_who_wears_what(tmp_path: Path) -> None:
    pairs = [pair(2, "dress"), pair(3, "dress, red, long"), pair(4, "a, b"), pair(5, "shirt", "train", "upper_body")]
    make_folders(tmp_path)
    write_lists(tmp_path, pairs, [Refusal(6, "photo: got 'ü.jpg'")])
    texts = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.txt")}
    assert texts["dresses/test_pairs_paired.txt"] == "12_0.jpg 22_1.jpg\n13_0.jpg 23_1.jpg\n14_0.jpg 24_1.jpg\n"
    assert texts["dresses/test_pairs_unpaired.txt"] == "12_0.jpg 23_1.jpg\n13_0.jpg 24_1.jpg\n14_0.jpg 22_1.jpg\n"
    assert texts["upper_body/train_pairs.txt"] == "15_0.jpg 25_1.jpg\n"
    # The readers of the layout want all lists of all categories.
    assert len(texts) == 9 and texts["lower_body/train_pairs.txt"] == ""
    assert json.loads((tmp_path / "fine_captions.json").read_text()) == {"23": ["dress", "red", "long"]}
    coarse = json.loads((tmp_path / "coarse_captions.json").read_text())
    assert coarse == {"22": ["dress"], "24": ["a", "b"], "25": ["shirt"]}
    assert json.loads((tmp_path / "skipped.jsonl").read_text()) == {"row": 6, "reason": "photo: got 'ü.jpg'"}
    with (tmp_path / NAMES_FILE).open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[:3] == [
        ["id", "kind", "category", "name"],
        ["12", "photo", "dresses", "p2.jpg"],
        ["22", "garment", "dresses", "g2.jpg"],
    ]
    garments = {garment.id: garment for garment in garments_in(tmp_path / GARMENTS_FILE)}
    assert set(garments) == {"g2", "g3", "g4", "g5"}
    assert garments["g3"].caption == "dress, red, long"
    assert garments["g3"].picture == tmp_path / "dresses" / "images" / "23_1.jpg"
