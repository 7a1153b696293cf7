"""The indexes that `run.py` compares, each as functions that find rows.

A system is a function of vectors and masks; it builds an index and returns a search for each of its efforts, by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import faiss as typed_faiss
import numpy as np
from numpy.typing import NDArray

from fashion_rag.catalogue.vector_index import VectorIndex

faiss: Any = typed_faiss

NEIGHBOURS, BUILD_EF = 16, 128  # usearch's own choice of both
EFS = (200, 1000)
BLOCK_ROWS = 10_000
OVERFETCH = 2  # times k / share, which would be enough if vectors near the query were allowed as often as the rest
MAX_FETCHED = 20_000

Vectors = NDArray[np.float32]
Masks = Mapping[str, NDArray[np.bool_]]
# Returns at most k rows [n], best first, for a query [D], k, and the name of a mask.
Search = Callable[[Vectors, int, str], NDArray[np.int64]]


def ours(vectors: Vectors, masks: Masks) -> dict[str, Search]:
    """Return the search of the catalogue's own index."""
    index = VectorIndex.build(vectors)
    allowed = {name: None if name == "none" else index.allow(mask) for name, mask in masks.items()}
    return {"ours": lambda query, k, name: index.search(query, k, allowed[name])[1]}


def flat(vectors: Vectors, masks: Masks) -> dict[str, Search]:
    """Return the search of FAISS's exact index."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    for start in range(0, len(vectors), BLOCK_ROWS):
        index.add(vectors[start : start + BLOCK_ROWS])
    bits = {name: np.packbits(mask, bitorder="little") for name, mask in masks.items()}

    def search(query: Vectors, k: int, name: str) -> NDArray[np.int64]:
        selector = None if name == "none" else faiss.IDSelectorBitmap(bits[name])
        return index.search(query[None], k, params=faiss.SearchParameters(sel=selector))[1][0]

    return {"flat": search}


def hnsw(vectors: Vectors, masks: Masks) -> dict[str, Search]:
    """Return the searches of hnswlib's graph."""
    import hnswlib

    index = hnswlib.Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), M=NEIGHBOURS, ef_construction=BUILD_EF, random_seed=0)
    for start in range(0, len(vectors), BLOCK_ROWS):
        index.add_items(vectors[start : start + BLOCK_ROWS], num_threads=1)

    def search(ef: int, query: Vectors, k: int, name: str) -> NDArray[np.int64]:
        index.set_ef(ef)
        try:
            allows = None if name == "none" else masks[name].item
            return index.knn_query(query, k, num_threads=1, filter=allows)[0][0].astype(np.int64)
        except RuntimeError:  # The search met fewer than k vectors that are allowed.
            return np.empty(0, np.int64)

    return {f"hnswlib {ef}": partial(search, ef) for ef in EFS}


def usearch(vectors: Vectors, masks: Masks) -> dict[str, Search]:
    """Return the searches of usearch's graph."""
    from usearch.index import Index

    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=NEIGHBOURS, expansion_add=BUILD_EF)
    for start in range(0, len(vectors), BLOCK_ROWS):
        block = vectors[start : start + BLOCK_ROWS]
        index.add(np.arange(start, start + len(block)), block, threads=1)
    shares = {name: mask.mean() for name, mask in masks.items()}

    def search(ef: int, query: Vectors, k: int, name: str) -> NDArray[np.int64]:
        index.expansion_search = ef
        count = k if name == "none" else min(math.ceil(OVERFETCH * k / shares[name]), MAX_FETCHED)
        rows = index.search(query, count, threads=1).keys.astype(np.int64)
        return rows[masks[name][rows]][:k]

    return {f"usearch {ef}": partial(search, ef) for ef in EFS}


SYSTEMS: dict[str, Callable[[Vectors, Masks], dict[str, Search]]] = {
    "ours": ours,
    "flat": flat,
    "hnswlib": hnsw,
    "usearch": usearch,
}
# The systems that are packages of their own, which need not be installed.
GRAPHS = ("hnswlib", "usearch")
