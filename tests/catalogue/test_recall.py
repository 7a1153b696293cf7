from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.catalogue import GarmentQuery, Match
from fashion_rag.catalogue.garments import Garment, garments_in
from fashion_rag.catalogue.recall import RANKS, SEARCHED_TOGETHER, Recall, evaluate
from fashion_rag.demo.world.layout import write_dresscode
from fashion_rag.errors import ArtifactError
from fashion_rag.manifest import DEMO_BUNDLE


def garment(garment_id: str, caption: str, category: str = "dresses", chunks: tuple[str, ...] = ()) -> Garment:
    return Garment(garment_id, category, caption, Path("nowhere.jpg"), chunks)


class Ranked:
    """A catalogue that finds garments at the ranks in a table.

    ranks: for each category and text, the garment that is found and its rank, None if it is not found at all.
    """

    def __init__(self, garments: Sequence[Garment], ranks: dict[tuple[str, str], tuple[str, int | None]]) -> None:
        self.garments = garments
        self.ranks = ranks
        self.searches: list[list[GarmentQuery]] = []

    def __iter__(self) -> Iterator[Garment]:
        return iter(self.garments)

    def search_many(self, queries: list[GarmentQuery]) -> list[list[Match]]:
        self.searches.append(queries)
        return [self._matches(query) for query in queries]

    def _matches(self, query: GarmentQuery) -> list[Match]:
        garment_id, rank = self.ranks[query.category, str(query.like)]
        ids = [f"other-{position}" for position in range(query.k)]
        if rank is not None:
            ids[rank - 1] = garment_id
        return [Match(garment(name, "", query.category), 1 / (1 + place)) for place, name in enumerate(ids)]


def test_recall_is_the_share_found_at_a_rank_or_before() -> None:
    catalogue: Any = Ranked(
        [
            garment("a", "red, long, silk, soft"),
            garment("b", "blue, short"),
            garment("silent", ""),
            garment("c", "unused", "upper_body", chunks=("green", "warm", "wool", "thick")),
        ],
        {
            ("dresses", "red"): ("a", 3),
            ("dresses", "blue"): ("b", None),
            ("upper_body", "green"): ("c", 20),
            ("dresses", "red, long, silk"): ("a", 1),
            ("dresses", "blue, short"): ("b", 4),
            ("upper_body", "green, warm, wool"): ("c", 10),
        },
    )
    third = 1 / 3
    assert evaluate(catalogue) == [
        Recall("dresses", 1, 2, {1: 0, 3: 0.5, 5: 0.5, 10: 0.5, 20: 0.5}),
        Recall("upper_body", 1, 1, {1: 0, 3: 0, 5: 0, 10: 0, 20: 1}),
        Recall("all", 1, 3, {1: 0, 3: third, 5: third, 10: third, 20: 2 * third}),
        Recall("dresses", 3, 2, {1: 0.5, 3: 0.5, 5: 1, 10: 1, 20: 1}),
        Recall("upper_body", 3, 1, {1: 0, 3: 0, 5: 0, 10: 1, 20: 1}),
        Recall("all", 3, 3, {1: third, 3: third, 5: 2 * third, 10: 1, 20: 1}),
    ]


def test_searches_are_made_together_and_looked_through_to_the_last_rank() -> None:
    names = [f"g{number}" for number in range(SEARCHED_TOGETHER + 3)]
    catalogue: Any = Ranked([garment(name, name) for name in names], {("dresses", name): (name, 1) for name in names})
    calls: list[tuple[int, int]] = []
    recalls = evaluate(catalogue, lambda done, total: calls.append((done, total)))
    assert all(recall.at == dict.fromkeys(RANKS, 1.0) and recall.num_garments == len(names) for recall in recalls)
    total = 2 * len(names)
    assert calls == [(done, total) for done in (SEARCHED_TOGETHER, len(names), len(names) + SEARCHED_TOGETHER, total)]
    assert [len(queries) for queries in catalogue.searches] == [SEARCHED_TOGETHER, 3] * 2
    assert {query.k for queries in catalogue.searches for query in queries} == {max(RANKS)}


def test_nothing_to_search_for_is_refused() -> None:
    catalogue: Any = Ranked([garment("a", "")], {})
    with pytest.raises(ArtifactError, match="no garment has a caption"):
        evaluate(catalogue)


def test_the_demo_bundle_finds_garments_by_their_captions(tmp_path: Path) -> None:
    bundle = Bundle.open(DEMO_BUNDLE)
    write_dresscode(tmp_path / "world", num_pairs=20, seed=5, size=bundle.manifest.image_size)
    bundle.build_catalogue(tmp_path / "catalogue", garments_in(tmp_path / "world"), work=tmp_path / "work")
    recalls = {}
    for recall in evaluate(bundle.open_catalogue(tmp_path / "catalogue")):
        recalls[recall.category, recall.num_chunks] = recall
    assert recalls["all", 3].num_garments == 60
    assert recalls["all", 3].at[1] >= 0.9
    # A single chunk fits several garments.
    assert 0.3 <= recalls["all", 1].at[1] < recalls["all", 3].at[1]
