"""The vector index of one catalogue version: which garments are most like a query, among those that a filter allows.

If there are few vectors, all are scored. If there are many, product-quantized codes (FAISS's IVFPQFastScan) first
choose candidates. The scores that are returned always come from the vectors, which stay in their memory-mapped file.
How many are few, and the other numbers below, were chosen with `benchmarks/retrieval`. An index never changes: the
build of a catalogue makes and saves it, and the catalogue opens it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss as typed_faiss
import numpy as np
from numpy.typing import NDArray

from fashion_rag.artifacts import read_config, sha256, write_json
from fashion_rag.errors import ArtifactError, InvalidRequest

FORMAT_VERSION = 1
INDEX_FILE = "index.json"
CODES_FILE = "codes.faiss"

# The number of lists is this many square roots of the number of vectors.
LISTS_PER_ROOT = 4
# Codes of 4 bits are looked up in registers. With 3 dimensions a code, twice the candidates had fewer of the best.
DIMS_PER_CODE, BITS_PER_CODE = 2, 4
TRAINING_ROWS_PER_LIST = 40
TRAINING_ROUNDS = 10
MAX_LENGTH_ERROR = 1e-3  # how far the length of a unit vector may be from 1
BLOCK_ROWS = 16_384  # how many vectors are read at a time
SAMPLED_ROWS = 256  # by about so many vectors an index recognises all

# The types that FAISS declares leave out much of what is used here.
faiss: Any = typed_faiss
# An IndexIVFPQFastScan.
Codes = Any


@dataclass(frozen=True)
class Effort:
    """How much a search looks at.

    max_scanned_rows: if no more rows than this are allowed, all are scored; choosing candidates among a million takes
    about as long. probed_per_root: how many codes are looked at, in square roots of the number of vectors, as which the
    time of a search grows. num_candidates, candidates_per_result: how many vectors are scored then, in all or for each
    result, whichever is more.
    """

    max_scanned_rows: int = 16_000
    probed_per_root: int = 200
    num_candidates: int = 500
    candidates_per_result: int = 10


DEFAULT_EFFORT = Effort()


@dataclass(frozen=True)
class Allowed:
    """The rows that a search may return, ready for one index. Made by `VectorIndex.allow`, and worth keeping.

    num_rows: how many rows the index has. rows: the allowed rows in rising order, or None if they are too many to score
    them all. In that case bits has a bit for each row of the index, the lowest bit of a byte first, and in_list has the
    number of allowed rows in each list of the index.
    """

    num_rows: int
    rows: NDArray[np.int64] | None
    bits: NDArray[np.uint8] | None = None
    in_list: NDArray[np.int64] | None = None


class VectorIndex:
    """Unit vectors, found by inner product. Made by `build` or `open`; safe to search from several threads.

    A search is for one query: FAISS scores several by a matrix product, whose last digits depend on their number.
    """

    def __init__(self, vectors: NDArray[np.float32], codes: Codes | None, effort: Effort) -> None:
        self._vectors = vectors
        self._codes = codes
        self._effort = effort
        if codes is not None:
            self._centroids = faiss.downcast_index(codes.quantizer).reconstruct_n(0, codes.nlist)
            self._list_of_row = _list_of_row(codes)
            self._list_sizes = np.bincount(self._list_of_row, minlength=codes.nlist)
        self._all = self.allow(np.ones(len(vectors), bool))

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def is_exact(self) -> bool:
        """Return whether every search scores every allowed vector. If not, only a search with few allowed ones does."""
        return self._codes is None

    def allow(self, mask: NDArray[np.bool_]) -> Allowed:
        """Return the rows that are true in `mask` [N], ready to be given to `search`.

        This takes milliseconds for a million rows.
        """
        assert mask.shape == (len(self),) and mask.dtype == bool
        if self._codes is None or np.count_nonzero(mask) <= self._effort.max_scanned_rows:
            return Allowed(len(self), np.flatnonzero(mask))
        in_list = np.bincount(self._list_of_row[mask], minlength=self._codes.nlist)
        return Allowed(len(self), None, np.packbits(mask, bitorder="little"), in_list)

    def search(
        self, query: NDArray[np.float32], k: int, allowed: Allowed | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the scores and rows [k] of the allowed vectors most like `query` [D], best first, equal ones by row.

        Without `allowed`, all rows are allowed. The result is shorter than `k` only if fewer rows are allowed. The same
        query gives the same answer, whatever else is searched for. Raises InvalidRequest for k < 1.
        """
        assert query.shape == (self._vectors.shape[1],)
        if k < 1:
            raise InvalidRequest("k", k, "must be at least 1")
        allowed = allowed or self._all
        assert allowed.num_rows == len(self), "rows of another index"
        query = np.ascontiguousarray(query, np.float32)
        rows = self._candidates(query, k, allowed) if allowed.rows is None else allowed.rows
        return _best(inner_products(query, self._vectors, rows), rows, k)

    def _candidates(self, query: NDArray[np.float32], k: int, allowed: Allowed) -> NDArray[np.int64]:
        """Return the rows, in rising order, among which the `k` best allowed rows are likely to be.

        There are at least `k` of them if so many are allowed.
        """
        assert self._codes is not None and allowed.in_list is not None
        count = max(self._effort.num_candidates, self._effort.candidates_per_result * k)
        likeness = self._centroids @ query
        lists = np.argsort(-likeness, kind="stable")
        lists = lists[allowed.in_list[lists] > 0]
        # Looking at a row takes the same time whether it is allowed or not.
        num_probed = self._effort.probed_per_root * math.sqrt(len(self))
        enough_rows = np.searchsorted(self._list_sizes[lists].cumsum(), num_probed)
        enough_allowed = np.searchsorted(allowed.in_list[lists].cumsum(), count)
        lists = lists[: max(enough_rows, enough_allowed) + 1]
        likeness = likeness[lists]
        scores, rows = np.empty(count, np.float32), np.empty(count, np.int64)
        probe = faiss.SearchParametersIVF(nprobe=len(lists), sel=faiss.IDSelectorBitmap(allowed.bits))
        arrays = [faiss.swig_ptr(array) for array in (query, lists, likeness, scores, rows)]
        self._codes.search_preassigned_c(1, arrays[0], count, *arrays[1:], False, probe)
        return np.sort(rows[rows >= 0])

    @classmethod
    def build(cls, vectors: NDArray[np.float32], effort: Effort = DEFAULT_EFFORT) -> VectorIndex:
        """Return the index of unit vectors [N, D], which may be memory-mapped and are not copied.

        This takes minutes for a million vectors. Raises ArtifactError for anything but unit vectors.
        """
        _check_vectors(vectors)
        for start, block in _blocks(vectors):
            lengths = np.linalg.norm(block, axis=1)
            # Written so that NaN counts as wrong.
            wrong = np.flatnonzero(~(np.abs(lengths - 1) < MAX_LENGTH_ERROR))
            if len(wrong):
                raise ArtifactError(f"vector {start + wrong[0]}: has the length {lengths[wrong[0]]}; must be 1")
        codes = _build_codes(vectors) if len(vectors) > effort.max_scanned_rows else None
        return cls(vectors, codes, effort)

    def save(self, folder: Path) -> None:
        """Write the index, without the vectors, into `folder`, which must exist."""
        codes_file = None if self._codes is None else folder / CODES_FILE
        if codes_file:
            faiss.write_index(self._codes, str(codes_file))
        write_json(folder / INDEX_FILE, _description(self._vectors, codes_file))

    @classmethod
    def open(cls, folder: Path, vectors: NDArray[np.float32], effort: Effort = DEFAULT_EFFORT) -> VectorIndex:
        """Return the index in `folder` over the vectors [N, D] that it was built from.

        Its codes are read into memory, since FAISS cannot map such lists: 0.2 GB for a million vectors [768]. Raises
        ArtifactError for a folder without an index, and for an index that is damaged or of other vectors.
        """
        _check_vectors(vectors)
        codes_file = folder / CODES_FILE if (folder / CODES_FILE).exists() else None
        stored, expected = read_config(folder / INDEX_FILE), _description(vectors, codes_file)
        wrong = sorted(key for key in stored.keys() | expected.keys() if stored.get(key) != expected.get(key))
        if wrong:
            raise ArtifactError(f"{folder}: not the index of these vectors; {', '.join(wrong)} in {INDEX_FILE} differ")
        codes = _read_codes(codes_file, vectors) if codes_file else None
        return cls(vectors, codes, effort)


def inner_products(
    query: NDArray[np.float32], vectors: NDArray[np.float32], rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the inner products [n] of `query` [D] and the vectors at `rows` [n], each independent of the others."""
    scores = np.empty(len(rows), np.float32)
    arrays = [faiss.swig_ptr(array) for array in (scores, query, vectors, rows)]
    faiss.fvec_inner_products_by_idx(*arrays, len(query), 1, len(rows))
    return scores


def _description(vectors: NDArray[np.float32], codes: Path | None) -> dict[str, Any]:
    """Return what `index.json` says of the vectors and the codes, by which other vectors and codes are recognised."""
    num_vectors, dim = vectors.shape
    sample = vectors[:: max(1, num_vectors // SAMPLED_ROWS)]
    return {
        "format_version": FORMAT_VERSION,
        "num_vectors": num_vectors,
        "dim": dim,
        "sample": hashlib.sha256(sample.tobytes()).hexdigest(),
        "codes": codes and sha256(codes),
    }


def _check_vectors(vectors: NDArray[np.float32]) -> None:
    """Raise ArtifactError unless the array has the type and the layout of vectors [N, D]."""
    if vectors.dtype != np.float32 or vectors.ndim != 2 or not vectors.flags.c_contiguous:
        raise ArtifactError(f"vectors: {vectors.dtype} {list(vectors.shape)}; must be float32 [N, D], row by row")


def is_unit(vector: NDArray[np.float32]) -> bool:
    """Return whether a vector [D] has the length 1, as the index requires."""
    return bool(abs(np.linalg.norm(vector) - 1) < MAX_LENGTH_ERROR)


def _blocks(vectors: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the first row and the vectors of one block after another, as all need not fit into memory."""
    for start in range(0, len(vectors), BLOCK_ROWS):
        yield start, vectors[start : start + BLOCK_ROWS]


def _build_codes(vectors: NDArray[np.float32]) -> Codes:
    """Return the codes of the vectors, trained on a sample of them."""
    num_vectors, dim = vectors.shape
    num_lists = round(LISTS_PER_ROOT * math.sqrt(num_vectors))
    num_codes = dim // math.gcd(dim, DIMS_PER_CODE)
    codes = faiss.IndexIVFPQFastScan(
        faiss.IndexFlatIP(dim), dim, num_lists, num_codes, BITS_PER_CODE, faiss.METRIC_INNER_PRODUCT
    )
    codes.cp.niter = TRAINING_ROUNDS
    # FAISS would print a warning that it wants more points.
    codes.cp.min_points_per_centroid = codes.pq.cp.min_points_per_centroid = 1
    num_sampled = min(num_vectors, TRAINING_ROWS_PER_LIST * num_lists)
    sampled = np.random.default_rng(0).choice(num_vectors, num_sampled, replace=False, shuffle=False)
    codes.train(vectors[np.sort(sampled)])
    for _, block in _blocks(vectors):
        codes.add(block)
    return codes


def _read_codes(path: Path, vectors: NDArray[np.float32]) -> Codes:
    """Return the codes in a file. Raises ArtifactError unless they are of the right kind and as many as the vectors."""
    try:
        codes = faiss.read_index(str(path))
    except (RuntimeError, MemoryError) as error:
        raise ArtifactError(f"{path}: not a readable index: {error}") from error
    num_vectors, dim = vectors.shape
    is_ours = (
        type(codes) is faiss.IndexIVFPQFastScan
        and codes.metric_type == faiss.METRIC_INNER_PRODUCT
        and (codes.ntotal, codes.d) == (num_vectors, dim)
        and type(quantizer := faiss.downcast_index(codes.quantizer)) is faiss.IndexFlatIP
        and (quantizer.ntotal, quantizer.d) == (codes.nlist, dim)
    )
    if not is_ours:
        raise ArtifactError(
            f"{path}: a {type(codes).__name__} of {codes.ntotal} vectors [{codes.d}]; "
            f"must be an IndexIVFPQFastScan of {num_vectors} vectors [{dim}] by inner product"
        )
    return codes


def _list_of_row(codes: Codes) -> NDArray[np.int32]:
    """Return for each row [N] the list that it is in.

    Raises ArtifactError unless every row is in exactly one list: FAISS does not check the numbers of the rows.
    """
    sizes = [codes.invlists.list_size(number) for number in range(codes.nlist)]
    in_lists = [faiss.rev_swig_ptr(codes.invlists.get_ids(number), size) for number, size in enumerate(sizes) if size]
    rows = np.concatenate(in_lists)
    if not np.array_equal(np.sort(rows), np.arange(codes.ntotal)):
        raise ArtifactError(
            f"{CODES_FILE}: its lists hold {len(rows)} rows; must hold 0 to {codes.ntotal - 1}, each once"
        )
    lists = np.empty(codes.ntotal, np.int32)
    lists[rows] = np.repeat(np.arange(codes.nlist), sizes)
    return lists


def _best(
    scores: NDArray[np.float32], rows: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the `k` best scores and their rows, best first, equal ones by row."""
    if len(scores) > k:
        near = scores >= np.partition(scores, -k)[-k]
        scores, rows = scores[near], rows[near]
    order = np.lexsort((rows, -scores))[:k]
    return scores[order], rows[order]
