import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.retrieval import run as retrieval
from benchmarks.retrieval.report import plot, tables
from benchmarks.retrieval.run import FILTERS, QUICK, World, benchmark, make_data, measure, read_queries, timed
from benchmarks.retrieval.systems import GRAPHS, SYSTEMS

SMALL = replace(QUICK, sizes=(3000, 6000), graphs_up_to=3000, dim=16, num_clusters=20, num_queries=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    make_data(path, 3000, SMALL)
    return path


def test_the_world_is_unit_vectors_the_same_each_time_in_every_size() -> None:
    pictures, categories = World(16, 20, seed=0).pictures(block=1, count=50)
    np.testing.assert_allclose(np.linalg.norm(pictures, axis=1), 1, atol=1e-6)
    again, _ = World(16, 20, seed=0).pictures(block=1, count=50)
    np.testing.assert_array_equal(pictures, again)
    assert set(categories) == {0, 1, 2}
    different = [World(16, 20, seed=1).pictures(1, 50)[0], World(16, 20, seed=0).pictures(0, 50)[0]]
    assert not any(np.allclose(pictures, vectors) for vectors in different)


def test_texts_are_far_from_all_pictures_yet_nearer_to_some() -> None:
    world = World(256, 100, seed=0)
    (pictures, _), (texts, _) = world.pictures(0, 2000), world.texts(50)
    assert (texts @ pictures.T).max() < np.quantile(pictures[:200] @ pictures[200:].T, 0.1)
    spread = (texts @ pictures.T).max(axis=1) - (texts @ pictures.T).mean(axis=1)
    assert spread.min() > 0.05


def test_the_best_are_those_of_brute_force(folder: Path) -> None:
    vectors, masks = np.load(folder / "vectors.npy"), np.load(folder / "masks.npz")
    queries = read_queries(folder)
    assert len(queries) == SMALL.num_queries
    for query in queries:
        assert query.masks["category"] != query.masks["other category"]
        for name in FILTERS:
            rows = np.flatnonzero(masks[query.masks[name]])
            scores = vectors @ query.vector
            assert len(set(query.best[name])) == min(10, len(rows))
            assert set(query.best[name]) <= set(rows.tolist())
            # Two whose scores differ in the last digit alone may have changed places.
            np.testing.assert_allclose(scores[query.best[name]], np.sort(scores[rows])[::-1][:10], rtol=0, atol=1e-6)
    assert masks["none"].all()
    np.testing.assert_allclose(sum(masks[f"category {number}"].astype(int) for number in range(3)), 1)
    assert 0.05 < masks["10 %"].mean() < 0.15


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_finds_most_of_the_best_in_so_little(folder: Path, system: str) -> None:
    if system in GRAPHS:
        pytest.importorskip(system)
    for record in measure(system, folder, SMALL):
        assert record["num_vectors"] == 3000
        assert record["system"].split()[0] == system
        assert record["filters"].keys() == set(FILTERS)
        for name in FILTERS if system != "usearch" else ("none", "10 %"):
            figures = record["filters"][name]
            # An exact system may take one of the sixty for another, whose score differs in the last digit alone.
            assert figures["recall"] >= (0.98 if system in ("ours", "flat") else 0.9)
            assert figures["least_recall"] <= figures["recall"]
            assert 0 < figures["p50_ms"] <= figures["p99_ms"]


def test_recall_counts_what_is_missed(folder: Path) -> None:
    queries = read_queries(folder)
    best = {(query.vector.tobytes(), query.masks[name]): query.best[name] for query in queries for name in FILTERS}

    def half(query: NDArray[np.float32], k: int, name: str) -> NDArray[np.int64]:
        return np.array(best[query.tobytes(), name][: k // 2])

    by_filter = timed(half, queries, SMALL)
    assert [by_filter[name]["recall"] for name in FILTERS[:3]] == [0.5] * 3


def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "find_spec", lambda name: None if name == "usearch" else find_spec(name))
    assert "usearch" in retrieval._left_out(1000, SMALL)
    monkeypatch.setattr(retrieval, "find_spec", lambda name: True)
    assert retrieval._left_out(1000, SMALL) == []
    assert retrieval._left_out(SMALL.graphs_up_to + 1, SMALL) == list(GRAPHS)


def test_the_result_is_plain_and_can_be_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in GRAPHS:
        pytest.importorskip(name)
    # Starting processes takes most of a minute.
    monkeypatch.setattr(retrieval, "ProcessPoolExecutor", lambda num_workers, context: ThreadPoolExecutor(num_workers))
    messages: list[str] = []
    kept: list[str] = []
    result = benchmark(replace(SMALL, num_queries=2), messages.append, lambda result: kept.append(json.dumps(result)))
    assert json.loads(kept[-1]) == json.loads(json.dumps(result))
    assert len(kept) == 6 and len(messages) == 8
    assert result["left_out"] == [{"system": name, "num_vectors": 6000} for name in ("hnswlib", "usearch")]
    console = Console(file=io.StringIO(), width=80)
    console.print(*tables(result), sep="\n")
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    assert all(name in shown for name in ("ours", "hnswlib 200", "usearch 1000", "not built: hnswlib, usearch"))
    plot(result).savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
