"""Measures how well garments are found by words: a garment's own caption should find it among all of its category.

The paper measures its retrieval in the same way (arXiv 2504.14011): it searches with one or three noun chunks, and
counts recall at 1, 3, 5, 10 and 20. `fashion-rag index evaluate` calls this module.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from fashion_rag.catalogue.catalogue import Catalogue, GarmentQuery
from fashion_rag.catalogue.garments import Garment
from fashion_rag.errors import ArtifactError

RANKS = (1, 3, 5, 10, 20)
NUM_CHUNKS = (1, 3)
SEARCHED_TOGETHER = 32


@dataclass(frozen=True)
class Recall:
    """How well the garments of a category are found by the first chunks of their captions.

    at: by rank, the share of the garments that come at this rank or before it when their own words are searched for.
    """

    category: str
    num_chunks: int
    num_garments: int
    at: dict[int, float]


def evaluate(catalogue: Catalogue, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Recall]:
    """Return the recall of each category, and of all, with one and with three chunks.

    Garments without a caption are left out. progress: is called with how many searches are done, and of how many.
    Raises ArtifactError if no garment has a caption.
    """
    by_category: defaultdict[str, list[Garment]] = defaultdict(list)
    for garment in catalogue:
        if garment.caption:
            by_category[garment.category].append(garment)
    if not by_category:
        raise ArtifactError("catalogue: no garment has a caption to search for")
    recalls = []
    done, total = 0, len(NUM_CHUNKS) * sum(map(len, by_category.values()))
    for num_chunks in NUM_CHUNKS:
        ranks: dict[str, list[int | None]] = {}
        for category, garments in sorted(by_category.items()):
            ranks[category] = []
            for start in range(0, len(garments), SEARCHED_TOGETHER):
                batch = garments[start : start + SEARCHED_TOGETHER]
                ranks[category] += _ranks(catalogue, category, batch, num_chunks)
                done += len(batch)
                progress(done, total)
        ranks["all"] = [*chain.from_iterable(ranks.values())]
        recalls += [_recall(category, num_chunks, category_ranks) for category, category_ranks in ranks.items()]
    return recalls


def _ranks(catalogue: Catalogue, category: str, garments: Sequence[Garment], num_chunks: int) -> list[int | None]:
    """Return the rank from 1 at which each garment is found by its own words, None where it is not found."""
    queries = [GarmentQuery(_first_chunks(garment, num_chunks), category, max(RANKS)) for garment in garments]
    ranks = []
    for garment, matches in zip(garments, catalogue.search_many(queries), strict=True):
        ids = [match.garment.id for match in matches]
        ranks.append(ids.index(garment.id) + 1 if garment.id in ids else None)
    return ranks


def _first_chunks(garment: Garment, num_chunks: int) -> str:
    chunks = garment.chunks or tuple(chunk.strip() for chunk in garment.caption.split(","))
    return ", ".join(chunks[:num_chunks])


def _recall(category: str, num_chunks: int, ranks: list[int | None]) -> Recall:
    shares = {}
    for limit in RANKS:
        num_found = sum(rank is not None and rank <= limit for rank in ranks)
        shares[limit] = num_found / len(ranks)
    return Recall(category, num_chunks, len(ranks), shares)
