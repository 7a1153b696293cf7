"""Plans: ids, and rows that contradict earlier ones."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from fashion_rag.preparation.pairs_file import PairRow, Refusal
from fashion_rag.preparation.planning import PlannedPair, Planner, catalogue_id
from tests.preparation.knowing import no_category


def row(number: int, photo: str, garment: str, category: str = "dresses", caption: str = "dress") -> PairRow:
    return PairRow(number, photo, garment, (caption,), category, "train")


def plan(root: Path, rows: Sequence[PairRow], network: str = "a") -> tuple[list[PlannedPair], list[Refusal]]:
    """Plan rows whose pictures hold the first letter of their names, so that a1 and a2 are the same picture."""
    for name in {row.photo for row in rows} | {row.garment for row in rows}:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name[0])
    return Planner(root, root, {"photo": network, "garment": "b"}, no_category).plan(rows)


def test_ids_depend_on_content_category_and_networks_and_not_on_names(tmp_path: Path) -> None:
    ((first,), _), ((renamed,), _), ((other_network,), _), ((other_category,), _), ((other_content,), _) = (
        plan(tmp_path, [row(2, "p1", "g1")]),
        plan(tmp_path, [row(9, "p2", "g2")]),
        plan(tmp_path, [row(2, "p1", "g1")], "other"),
        plan(tmp_path, [row(2, "p1", "g1", "upper_body")]),
        plan(tmp_path, [row(2, "q1", "h1")]),
    )
    assert (renamed.person.id, renamed.garment.id) == (first.person.id, first.garment.id)
    assert other_network.person.id != first.person.id and other_network.garment.id == first.garment.id
    for changed in (other_category, other_content):
        assert changed.person.id != first.person.id and changed.garment.id != first.garment.id
    assert first.person.id != first.garment.id
    assert first.person.id.isdigit() and len(first.person.id) == 15


def test_a_garment_has_many_photos_and_a_photo_a_garment_of_each_category(tmp_path: Path) -> None:
    rows = [row(2, "p1", "g1", "upper_body"), row(3, "q1", "g1", "upper_body"), row(4, "p1", "h1", "lower_body")]
    pairs, refusals = plan(tmp_path, rows)
    assert refusals == []
    assert pairs[0].garment == pairs[1].garment
    assert pairs[0].person.id != pairs[2].person.id


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (row(3, "p1", "h1"), ("photo", "p1", "row 2", "one garment of dresses")),
        (row(3, "p2", "h1"), ("photo", "p2", "row 2", "one garment of dresses")),
        (row(3, "q1", "g1", "upper_body"), ("category", "upper_body", "must be dresses", "row 2")),
        (row(3, "q1", "g1", caption="gown"), ("caption", "gown", "row 2", "'dress'")),
        (row(3, "q1", "g2", caption="gown"), ("caption", "gown", "row 2", "'dress'")),
        (row(3, "q1", "g1.png"), ("garment", "g1.png", "row 2")),
    ],
)
def test_a_row_that_contradicts_an_earlier_one_is_refused(
    tmp_path: Path, second: PairRow, words: tuple[str, ...]
) -> None:
    pairs, (refusal,) = plan(tmp_path, [row(2, "p1", "g1"), second, row(4, "r1", "i1")])
    assert [pair.row.number for pair in pairs] == [2, 4]
    assert refusal.row == 3
    assert all(word in refusal.reason for word in words), refusal.reason


@pytest.mark.parametrize(
    ("garment", "expected"),
    [("a.jpg", "a"), ("shirts/red one.v2.jpg", "shirts-red-one.v2"), (".a.jpg", "a"), ("Blüte.png", "Bl-te")],
)
def test_names_in_a_catalogue_have_no_ending_and_only_signs_that_ids_may_have(garment: str, expected: str) -> None:
    assert catalogue_id(garment) == expected
