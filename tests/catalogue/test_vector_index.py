import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fashion_rag.artifacts import sha256, write_json
from fashion_rag.catalogue.attributes import Attributes, Filters
from fashion_rag.catalogue.vector_index import CODES_FILE, INDEX_FILE, Effort, VectorIndex
from fashion_rag.errors import ArtifactError, InvalidRequest

Vectors = NDArray[np.float32]
NUM_CLUSTERS = 40  # in every data set; each row is of the next cluster
FEW = 64
EFFORT = Effort(max_scanned_rows=FEW, probed_per_root=20, num_candidates=150, candidates_per_result=4)

# Sizes are lists, because a garment comes in several sizes or in none.
GARMENTS = [
    {"category": "dresses", "colour": "red", "size": ["S", "M"]},
    {"category": "dresses", "colour": "blue", "size": ["M"]},
    {"category": "upper_body", "colour": "red", "size": []},
    {"category": "dresses", "colour": "green"},
]


def unit(vectors: NDArray[Any]) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def clustered(num_vectors: int, dim: int = 32, seed: int = 0) -> Vectors:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((NUM_CLUSTERS, dim))
    clusters = np.arange(num_vectors) % NUM_CLUSTERS
    return unit(centres[clusters] + 0.7 * rng.standard_normal((num_vectors, dim)))


def brute_force(vectors: Vectors, query: Vectors, k: int, mask: NDArray[np.bool_]) -> list[int]:
    scores = vectors.astype(np.float64) @ query
    return sorted(np.flatnonzero(mask).tolist(), key=lambda row: (-scores[row], row))[:k]


def assert_the_best(rows: list[int], vectors: Vectors, query: Vectors, k: int, mask: NDArray[np.bool_]) -> None:
    """Hold rows to those of brute force. The index adds up in float32, so it may swap rows of nearly equal scores."""
    scores = vectors.astype(np.float64) @ query
    best = brute_force(vectors, query, k, mask)
    assert len(rows) == len(set(rows)) == len(best)
    assert mask[rows].all()
    np.testing.assert_allclose(scores[rows], scores[best], rtol=0, atol=1e-6)


def everything(index: VectorIndex) -> NDArray[np.bool_]:
    return np.ones(len(index), bool)


@pytest.fixture(scope="module")
def large() -> VectorIndex:
    """Return an approximate index that is small enough for a test."""
    return VectorIndex.build(clustered(4000), EFFORT)


@pytest.mark.parametrize("num_vectors", [1, 2, 9, 500])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_the_exact_index_finds_what_brute_force_finds(num_vectors: int, k: int) -> None:
    vectors = clustered(num_vectors)
    index = VectorIndex.build(vectors)
    assert index.is_exact and len(index) == num_vectors
    for query in clustered(5, seed=1):
        for share in (0.0, 0.2, 0.9, 1.0):
            mask = np.random.default_rng(2).random(num_vectors) < share
            scores, rows = index.search(query, k, index.allow(mask))
            assert_the_best(rows.tolist(), vectors, query, k, mask)
            np.testing.assert_allclose(scores, vectors[rows] @ query, atol=1e-6)
        assert_the_best(index.search(query, k)[1].tolist(), vectors, query, k, everything(index))


def test_an_index_of_nothing_finds_nothing(tmp_path: Path) -> None:
    nothing = np.empty((0, 8), np.float32)
    VectorIndex.build(nothing).save(tmp_path)
    scores, rows = VectorIndex.open(tmp_path, nothing).search(unit(np.ones(8)), 3)
    assert len(scores) == len(rows) == 0


def test_equal_vectors_score_the_same_wherever_they_are_and_come_by_row() -> None:
    kinds = clustered(3, dim=768)
    kind_of_row = np.random.default_rng(0).integers(0, 3, 1003)
    index = VectorIndex.build(kinds[kind_of_row])
    for query in clustered(5, dim=768, seed=1):
        order = np.argsort(-(kinds @ query))
        expected = np.concatenate([np.flatnonzero(kind_of_row == kind) for kind in order])
        for k in (1, 7, 400, 1003):
            scores, rows = index.search(query, k)
            assert rows.tolist() == expected[:k].tolist()
            assert len(set(scores.tolist())) == len(set(kind_of_row[rows].tolist()))


def share_found(index: VectorIndex, query: Vectors, mask: NDArray[np.bool_]) -> float:
    rows = index.search(query, 10, index.allow(mask))[1].tolist()
    assert len(rows) == 10 and mask[rows].all()
    return len(set(rows) & set(brute_force(clustered(4000), query, 10, mask))) / 10


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.03])
def test_the_approximate_index_finds_nearly_all_of_the_best_with_any_filter(large: VectorIndex, share: float) -> None:
    mask = np.random.default_rng(3).random(len(large)) < share
    assert not large.is_exact
    assert np.mean([share_found(large, query, mask) for query in clustered(40, seed=1)]) >= 0.97


def test_a_filter_that_leaves_only_what_is_unlike_the_query_finds_nearly_all_of_the_best(large: VectorIndex) -> None:
    clusters = np.arange(4000) % NUM_CLUSTERS
    centres = np.array([clustered(4000)[clusters == number].mean(axis=0) for number in range(NUM_CLUSTERS)])
    shares = []
    for query in clustered(40, seed=1):
        unlike = np.argsort(centres @ query)[:8]
        shares.append(share_found(large, query, np.isin(clusters, unlike)))
    assert np.mean(shares) >= 0.97


@pytest.mark.parametrize("count", [0, 1, 9, FEW])
def test_a_filter_that_leaves_few_is_exact(large: VectorIndex, count: int) -> None:
    vectors = clustered(4000)
    mask = np.zeros(len(large), bool)
    mask[np.random.default_rng(4).choice(len(large), count, replace=False)] = True
    for query in clustered(5, seed=1):
        rows = large.search(query, 10, large.allow(mask))[1].tolist()
        assert_the_best(rows, vectors, query, 10, mask)
        assert len(rows) == min(10, count)


@given(data=st.data())
def test_k_allowed_rows_come_in_order_whenever_they_exist(large: VectorIndex, data: st.DataObject) -> None:
    vectors = clustered(4000)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    # The allowed rows are a run, or are near one vector, so that whole lists are allowed and others have no such row.
    allowed_count = data.draw(st.integers(0, len(large)) | st.integers(0, 2 * FEW), label="allowed")
    likeness = vectors @ vectors[rng.integers(len(large))]
    order = data.draw(st.sampled_from([np.arange(4000), rng.permutation(4000), np.argsort(likeness)]), label="order")
    mask = np.zeros(len(large), bool)
    mask[order[:allowed_count]] = True
    query = unit(rng.standard_normal(32))
    k = data.draw(st.integers(1, 300), label="k")
    scores, rows = large.search(query, k, large.allow(mask))
    assert len(scores) == len(rows) == len(set(rows.tolist())) == min(k, allowed_count)
    assert mask[rows].all()
    assert np.lexsort((rows, -scores)).tolist() == list(range(len(rows)))
    np.testing.assert_allclose(scores, vectors[rows] @ query, atol=1e-6)


def test_searches_at_once_are_what_they_are_alone(large: VectorIndex) -> None:
    queries = clustered(200, seed=5)
    alone = [large.search(query, 10) for query in queries]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda query: large.search(query, 10), queries))
    for (scores, rows), (other_scores, other_rows) in zip(alone, together, strict=True):
        np.testing.assert_array_equal(scores, other_scores)
        np.testing.assert_array_equal(rows, other_rows)


@pytest.mark.parametrize("k", [0, -1])
def test_a_search_for_nothing_is_refused(large: VectorIndex, k: int) -> None:
    with pytest.raises(InvalidRequest, match=f"k: got {k}; must be at least 1"):
        large.search(clustered(1)[0], k)


def test_rows_allowed_in_another_index_are_not_taken(large: VectorIndex) -> None:
    small = VectorIndex.build(clustered(10))
    with pytest.raises(AssertionError, match="another index"):
        large.search(clustered(1)[0], 1, small.allow(everything(small)))


@pytest.fixture
def saved(large: VectorIndex, tmp_path: Path) -> Path:
    """Return a folder with the approximate index, with its vectors beside the folder."""
    np.save(tmp_path / "vectors.npy", clustered(4000))
    (tmp_path / "index").mkdir()
    large.save(tmp_path / "index")
    return tmp_path / "index"


def mapped(saved: Path) -> Vectors:
    vectors: Vectors = np.load(saved.parent / "vectors.npy", mmap_mode="r")
    return vectors


def test_an_opened_index_finds_the_same(large: VectorIndex, saved: Path) -> None:
    opened = VectorIndex.open(saved, mapped(saved), EFFORT)
    mask = np.random.default_rng(6).random(len(large)) < 0.3
    for query in clustered(20, seed=7):
        for allowed, allowed_again in ((None, None), (large.allow(mask), opened.allow(mask))):
            scores, rows = large.search(query, 10, allowed)
            scores_again, rows_again = opened.search(query, 10, allowed_again)
            np.testing.assert_array_equal(scores, scores_again)
            np.testing.assert_array_equal(rows, rows_again)


def test_a_build_is_repeatable_and_reads_mapped_vectors(large: VectorIndex, saved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    VectorIndex.build(mapped(saved), EFFORT).save(again)
    for name in (INDEX_FILE, CODES_FILE):
        assert (again / name).read_bytes() == (saved / name).read_bytes()


def test_an_exact_index_is_saved_without_codes(tmp_path: Path) -> None:
    vectors = clustered(100)
    VectorIndex.build(vectors).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [INDEX_FILE]
    assert VectorIndex.open(tmp_path, vectors).is_exact


@pytest.mark.parametrize("name", [INDEX_FILE, CODES_FILE])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "changed"])
def test_a_missing_or_damaged_file_is_refused(saved: Path, name: str, damage: str) -> None:
    path = saved / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        middle = len(content) // 2
        changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"empty": b"", "cut": content[:middle], "changed": changed}[damage])
    with pytest.raises(ArtifactError, match=re.escape(str(saved))):
        VectorIndex.open(saved, mapped(saved))


def other_vectors() -> dict[str, Vectors]:
    vectors = clustered(4000)
    return {
        "fewer": vectors[:-1],
        "shorter": np.ascontiguousarray(vectors[:, :-2]),
        "others": clustered(4000, seed=1),
        "double": vectors.astype(np.float64),  # type: ignore[dict-item]
        "by columns": np.asfortranarray(vectors),
        "a list": vectors[0],
    }


@pytest.mark.parametrize("kind", other_vectors())
def test_other_vectors_are_refused(saved: Path, kind: str) -> None:
    with pytest.raises(ArtifactError):
        VectorIndex.open(saved, other_vectors()[kind])


def product_codes(
    rows: Vectors, metric: int = faiss.METRIC_INNER_PRODUCT, ids: Any = None, quantizer: Any = None
) -> Any:
    """Return an index of the kind that `VectorIndex` uses, unless the arguments say otherwise."""
    dim = rows.shape[1]
    index: Any = faiss.IndexIVFPQFastScan(quantizer or faiss.IndexFlatIP(dim), dim, 16, dim // 2, 4, metric)
    index.cp.min_points_per_centroid = 1
    index.train(rows)
    index.add_with_ids(rows, np.arange(len(rows)) if ids is None else ids)
    return index


def with_a_list_too_many(index: Any) -> Any:
    faiss.downcast_index(index.quantizer).add(np.ones((1, index.d), np.float32))
    return index


def flat(quantizer: Any, rows: Vectors) -> Any:
    quantizer.add(rows)
    return quantizer


def numbered(row: int, number: int) -> NDArray[np.int64]:
    numbers = np.arange(4000)
    numbers[row] = number
    return numbers


@pytest.mark.parametrize(
    ("make", "fits"),
    [
        (product_codes, True),
        (lambda rows: flat(faiss.IndexFlatIP(32), rows), False),
        (lambda rows: product_codes(rows, faiss.METRIC_L2), False),
        (lambda rows: product_codes(rows, quantizer=faiss.IndexFlatL2(32)), False),
        (lambda rows: with_a_list_too_many(product_codes(rows)), False),
        (lambda rows: product_codes(rows[:-1]), False),
        (lambda rows: product_codes(np.ascontiguousarray(rows[:, :30])), False),
        (lambda rows: product_codes(rows, ids=numbered(7, 10**9)), False),
        (lambda rows: product_codes(rows, ids=numbered(7, 8)), False),
    ],
    ids=["ours", "kind", "metric", "lists' metric", "lists", "number", "size", "a row not there", "a row twice"],
)
def test_codes_of_another_kind_or_size_are_refused(saved: Path, make: Any, fits: bool) -> None:
    vectors, path = mapped(saved), saved / CODES_FILE
    faiss.write_index(make(np.array(vectors)), str(path))
    write_json(saved / INDEX_FILE, json.loads((saved / INDEX_FILE).read_text()) | {"codes": sha256(path)})
    if fits:
        assert not VectorIndex.open(saved, vectors).is_exact
    else:
        with pytest.raises(ArtifactError, match=re.escape(CODES_FILE)):
            VectorIndex.open(saved, vectors)


def test_codes_that_are_no_index_are_refused(saved: Path) -> None:
    path = saved / CODES_FILE
    path.write_bytes(b"no index")
    write_json(saved / INDEX_FILE, json.loads((saved / INDEX_FILE).read_text()) | {"codes": sha256(path)})
    with pytest.raises(ArtifactError, match="not a readable index"):
        VectorIndex.open(saved, mapped(saved))


@pytest.mark.parametrize("kind", ["double", "by columns", "a list"])
def test_vectors_of_another_layout_are_not_built(kind: str) -> None:
    with pytest.raises(ArtifactError, match=re.escape("must be float32 [N, D], row by row")):
        VectorIndex.build(other_vectors()[kind])


@pytest.mark.parametrize("length", [0.0, 0.9, np.nan, np.inf])
def test_vectors_that_are_not_unit_vectors_are_not_built(length: float) -> None:
    vectors = clustered(50)
    vectors[31] = np.full(32, length / np.sqrt(32))
    with pytest.raises(ArtifactError, match="vector 31: has the length"):
        VectorIndex.build(vectors)


@pytest.mark.parametrize(
    ("wanted", "rows"),
    [
        ({}, [0, 1, 2, 3]),
        ({"category": "dresses"}, [0, 1, 3]),
        ({"category": "dresses", "colour": ["red", "blue"]}, [0, 1]),
        ({"category": ["dresses"], "colour": ("red", "red"), "size": ["M"]}, [0]),
        ({"size": ["S", "M"]}, [0, 1]),
        ({"size": "XL"}, []),
        ({"colour": "red", "size": ["L", "XL"]}, []),
    ],
)
def test_a_filter_passes_rows_with_one_of_the_values_of_each_attribute(wanted: Any, rows: list[int]) -> None:
    attributes = Attributes(GARMENTS)
    assert np.flatnonzero(attributes.mask(wanted)).tolist() == rows


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"color": "red"}, "attributes: got 'color'; must name attributes among category, colour, size"),
        ({"colour": []}, "attributes: got {'colour': []}; must be a text or a list of at least one"),
        ({"colour": ["red", 3]}, "attributes: got {'colour': ['red', 3]}; must be"),
    ],
)
def test_a_filter_that_cannot_be_is_refused(wanted: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        Attributes(GARMENTS).mask(wanted)


def test_filters_that_mean_the_same_are_made_once() -> None:
    vectors = clustered(4)
    index = VectorIndex.build(vectors)
    filters = Filters(index, Attributes(GARMENTS))
    wanted = filters.allowed({"category": "dresses", "colour": ["red", "blue"]})
    assert filters.allowed({"colour": ("blue", "red", "blue"), "category": ["dresses"]}) is wanted
    assert filters.allowed({"category": "dresses"}) is not wanted
    assert sorted(index.search(vectors[2], 3, wanted)[1].tolist()) == [0, 1]
