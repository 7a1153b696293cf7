"""The names of the files of a data set that is prepared from a shop's pictures, and the writing of its lists.

`pictures` writes and `run` lists these files. `data.dresscode` has the layout; beside it lie:

    names.csv                              the shop's names of all ids
    garments.parquet                       all garments by the shop's names, for `fashion-rag index build`
    skipped.jsonl                          the rows of the shop's file that were not prepared, with the reasons
    contact_sheet.png                      some of the pairs, to look at
    CATEGORY/outcomes/ID_{0,1}.json        whether a picture was prepared, written after all its other files
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fashion_rag.atomic_files import write_whole
from fashion_rag.data.dresscode import MIN_FINE_CHUNKS, read_key
from fashion_rag.data.dresscode_files import pairs_lines
from fashion_rag.preparation.pairs_file import Refusal
from fashion_rag.preparation.planning import Kind, Picture, PlannedPair
from fashion_rag.request import CATEGORIES

NAMES_FILE, GARMENTS_FILE, SKIPPED_FILE, SHEET_FILE = (
    "names.csv",
    "garments.parquet",
    "skipped.jsonl",
    "contact_sheet.png",
)
# What Dress Code appends to an id for a person and for a garment.
SUFFIXES: dict[Kind, str] = {"photo": "_0", "garment": "_1"}


def image_path(root: Path, picture: Picture) -> Path:
    """Return where the prepared picture lies."""
    return root / picture.category / "images" / f"{picture.id}{SUFFIXES[picture.kind]}.jpg"


def label_map_path(root: Path, person: Picture) -> Path:
    """Return where the label map of a person lies."""
    return root / person.category / "label_maps" / f"{person.id}_4.png"


def keypoints_path(root: Path, person: Picture) -> Path:
    """Return where the key points of a person lie."""
    return root / person.category / "keypoints" / f"{person.id}_2.json"


def outcome_path(root: Path, picture: Picture) -> Path:
    """Return where it is written whether a picture was prepared."""
    return root / picture.category / "outcomes" / f"{picture.id}{SUFFIXES[picture.kind]}.json"


def make_folders(root: Path) -> None:
    """Make the folders of all categories, for this layout's readers want all."""
    for category in CATEGORIES:
        for name in ("images", "label_maps", "keypoints", "outcomes"):
            (root / category / name).mkdir(parents=True, exist_ok=True)


def write_outcome(root: Path, picture: Picture, fault: str | None) -> None:
    """Write that a picture was prepared, or which rule it breaks."""
    write_whole(outcome_path(root, picture), (json.dumps({"fault": fault}) + "\n").encode())


def read_outcome(root: Path, picture: Picture) -> str | None:
    """Return the rule that a picture breaks; None if it was prepared.

    Raises FileNotFoundError if nobody has tried yet, and ArtifactError for a damaged file.
    """
    path = outcome_path(root, picture)
    if not path.is_file():
        raise FileNotFoundError(path)
    fault: str | None = read_key(path, "fault")
    return fault


def remove_others(root: Path, pictures: Iterable[Picture]) -> int:
    """Remove what was prepared of pictures that are not among `pictures`. Return the number of those pictures."""
    kept = {outcome_path(root, picture) for picture in pictures}
    others = [path for path in root.glob("*/outcomes/*.json") if path not in kept]
    for outcome in others:
        number, category = outcome.stem.rpartition("_")[0], outcome.parent.parent
        # The outcome goes first: what it stands for is then no longer whole.
        outcome.unlink()
        (category / "images" / f"{outcome.stem}.jpg").unlink(missing_ok=True)
        if outcome.stem.endswith(SUFFIXES["photo"]):
            (category / "label_maps" / f"{number}_4.png").unlink(missing_ok=True)
            (category / "keypoints" / f"{number}_2.json").unlink(missing_ok=True)
    return len(others)


def write_lists(root: Path, pairs: Sequence[PlannedPair], refusals: Sequence[Refusal]) -> None:
    """Write all lists of the data set.

    In the unpaired order of the tests, each person gets the garment of the next one of the category. Captions of fewer
    chunks than a fine caption must have are written as coarse ones.
    """
    _write_captions(root, pairs)
    for category in CATEGORIES:
        of_category = [pair for pair in pairs if pair.category == category]
        train = [pair for pair in of_category if pair.row.split == "train"]
        test = [pair for pair in of_category if pair.row.split == "test"]
        garments_of_next = [pair.garment.id for pair in test[1:] + test[:1]]
        _write_pairs(root / category / "train_pairs.txt", train, [pair.garment.id for pair in train])
        _write_pairs(root / category / "test_pairs_paired.txt", test, [pair.garment.id for pair in test])
        _write_pairs(root / category / "test_pairs_unpaired.txt", test, garments_of_next)
    _write_names(root / NAMES_FILE, pairs)
    _write_garments(root, pairs)
    lines = [json.dumps(asdict(refusal), ensure_ascii=False) + "\n" for refusal in refusals]
    write_whole(root / SKIPPED_FILE, "".join(lines).encode())


def _write_captions(root: Path, pairs: Sequence[PlannedPair]) -> None:
    fine: dict[str, list[str]] = {}
    coarse: dict[str, list[str]] = {}
    for pair in pairs:
        captions = fine if len(pair.row.chunks) >= MIN_FINE_CHUNKS else coarse
        captions[pair.garment.id] = list(pair.row.chunks)
    for name, captions in (("fine_captions.json", fine), ("coarse_captions.json", coarse)):
        write_whole(root / name, json.dumps(captions, ensure_ascii=False, indent=0).encode())


def _write_pairs(path: Path, pairs: Sequence[PlannedPair], garment_ids: Sequence[str]) -> None:
    write_whole(path, pairs_lines([pair.person.id for pair in pairs], garment_ids).encode())


def _write_names(path: Path, pairs: Sequence[PlannedPair]) -> None:
    """Write the shop's names of all ids as CSV."""
    rows = []
    for pair in pairs:
        rows.append((pair.person.id, "photo", pair.category, pair.row.photo))
        rows.append((pair.garment.id, "garment", pair.category, pair.row.garment))
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(("id", "kind", "category", "name"))
    writer.writerows(dict.fromkeys(rows))
    write_whole(path, content.getvalue().encode())


def _write_garments(root: Path, pairs: Sequence[PlannedPair]) -> None:
    """Write a table of all garments, from which a catalogue with the shop's names is built."""
    garments = {pair.garment_name: pair for pair in reversed(pairs)}
    table = pa.table(
        {
            "id": list(garments),
            "category": [pair.category for pair in garments.values()],
            "image": [image_path(root, pair.garment).relative_to(root).as_posix() for pair in garments.values()],
            "caption": [pair.row.caption for pair in garments.values()],
        }
    )
    content = io.BytesIO()
    pq.write_table(table, content)
    write_whole(root / GARMENTS_FILE, content.getbuffer())
