"""How well a catalogue is found by words: each garment's own caption should find it among all of its category.

The measure of the paper's retrieval (arXiv 2504.14011): text of one or three noun chunks, recall at 1, 3, 5, 10 and 20.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from fashion_rag.catalogue.catalogue import Catalogue, GarmentQuery
from fashion_rag.catalogue.garments import Garment
from fashion_rag.errors import ArtifactError

RANKS = (1, 3, 5, 10, 20)
NUM_CHUNKS = (1, 3)
SEARCHED_TOGETHER = 32


@dataclass(frozen=True)
class Recall:
    """at: by rank, the share of the garments that are at this rank or before it when their caption is searched for."""

    category: str
    num_chunks: int
    num_garments: int
    at: dict[int, float]


def evaluate(catalogue: Catalogue, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Recall]:
    """Return the recall of each category, and of all, with one and with three chunks.

    Garments without a caption are left out. progress: takes how many searches are done, and how many there are. Raises
    ArtifactError if no garment has a caption.
    """
    of_category: defaultdict[str, list[Garment]] = defaultdict(list)
    for garment in catalogue:
        if garment.caption:
            of_category[garment.category].append(garment)
    if not of_category:
        raise ArtifactError("catalogue: no garment has a caption to search for")
    recalls = []
    done, total = 0, len(NUM_CHUNKS) * sum(map(len, of_category.values()))
    for num_chunks in NUM_CHUNKS:
        ranks: dict[str, list[int | None]] = {}
        for category, garments in sorted(of_category.items()):
            ranks[category] = []
            for start in range(0, len(garments), SEARCHED_TOGETHER):
                some = garments[start : start + SEARCHED_TOGETHER]
                queries = [GarmentQuery(_first_chunks(garment, num_chunks), category, max(RANKS)) for garment in some]
                for garment, matches in zip(some, catalogue.search_many(queries), strict=True):
                    ids = [match.garment.id for match in matches]
                    ranks[category].append(ids.index(garment.id) + 1 if garment.id in ids else None)
                done += len(some)
                progress(done, total)
        ranks["all"] = [rank for found in ranks.values() for rank in found]
        recalls += [_recall(category, num_chunks, found) for category, found in ranks.items()]
    return recalls


def _first_chunks(garment: Garment, num_chunks: int) -> str:
    chunks = garment.chunks or tuple(chunk.strip() for chunk in garment.caption.split(","))
    return ", ".join(chunks[:num_chunks])


def _recall(category: str, num_chunks: int, ranks: list[int | None]) -> Recall:
    shares = {rank: sum(found is not None and found <= rank for found in ranks) / len(ranks) for rank in RANKS}
    return Recall(category, num_chunks, len(ranks), shares)
