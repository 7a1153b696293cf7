"""The claim: a search of a million garments takes under 10 ms on one thread and misses less than 2 % of the best ten.

This measures, by the number of vectors and with filters that leave more or fewer of them, recall of ten against exact
search, the time of a search, and the memory and time that building takes. The systems:

    ours       the catalogue's VectorIndex: exact up to a size, then product codes, and the best by them scored exactly
    flat       FAISS's exact index with its own filter
    hnswlib    a graph with its own filter: a Python function, called for every vector that is met
    usearch    a graph; its Python package has no filter, so more are fetched and then filtered: twice as many as would
               be enough if vectors near the query were allowed as often as the rest, but at most 20,000

The number after a graph's name is how many vectors a search keeps in sight (ef). Graphs of many vectors take hours to
build on one thread; above --graphs-up-to, or where they are not installed, they are left out.

The vectors are made up: clusters of very different sizes and tightness around a common mean, with a few strong
directions and many weak ones, as garment pictures have in CLIP's space. A query is like a text: it is far from all
pictures, and its direction among them is the blurred direction of a garment that is not there. `data` in the result has
the cosines. The filters are independent of the vectors, except for the category, which is the query's own or, in the
hard case, another.

Each system has a process of its own and opens the same files. A time is the median of a few searches of one query, all
filters in turn; p50 and p99 are over queries. `cpu` is the time on the processor, which other work disturbs less.

    python -m benchmarks.retrieval --out benchmarks/results/retrieval.json --plot benchmarks/results/retrieval.png
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import faiss
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.retrieval.report import Record, plot, tables
from benchmarks.retrieval.systems import GRAPHS, SYSTEMS, Search
from fashion_rag.provenance import provenance, write_figure, write_result

BLOCK_ROWS = 20_000
NUM_CATEGORIES = 3
SHARES = {"10 %": 0.1, "1 %": 0.01, "0.1 %": 0.001}
FILTERS = ("none", "category", "other category", *SHARES)

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class RetrievalSettings:
    """How much is run.

    sizes: numbers of vectors. graphs_up_to: the most vectors that graphs are built of. enough_s: seconds after which no
    further round of searches is begun.
    """

    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    graphs_up_to: int = 100_000
    dim: int = 768
    num_clusters: int = 3000
    num_queries: int = 200
    k: int = 10
    num_rounds: int = 3
    enough_s: float = 60.0
    seed: int = 0


QUICK = RetrievalSettings(sizes=(10_000, 30_000), num_queries=30, num_rounds=1)


class World:
    """Made-up garment pictures and texts as unit vectors. A larger world begins with the rows of a smaller one."""

    def __init__(self, dim: int, num_clusters: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._seed = seed
        # The rotation keeps any system from gaining by directions that lie along axes.
        self._rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)
        variances = 1 / (np.arange(dim) + 8)
        self._deviations = np.sqrt(variances / variances.sum()).astype(np.float32)
        weights = (np.arange(num_clusters) + 10.0) ** -0.8
        self._weights = weights / weights.sum()
        centres = (rng.standard_normal((num_clusters, dim)) * self._deviations).astype(np.float32)
        self._centres = _unit(centres)
        self._spread = rng.lognormal(0, 0.25, (num_clusters, 1)).astype(np.float32)
        self._categories = rng.integers(0, NUM_CATEGORIES, num_clusters)
        means = np.linalg.qr(rng.standard_normal((dim, 2)))[0].T.astype(np.float32)
        self._mean, self._text_mean = means[0], 0.2 * means[0] + 0.98 * means[1]

    def pictures(self, block: int, count: int) -> tuple[Vectors, NDArray[np.int64]]:
        """Return vectors [count, dim] and categories [count] of one block of garments."""
        clusters, offsets = self._garments(np.random.default_rng([self._seed, 1, block]), count)
        vectors = (np.float32(np.sqrt(0.5)) * self._mean + offsets) @ self._rotation
        return _unit(vectors), self._categories[clusters]

    def texts(self, count: int) -> tuple[Vectors, NDArray[np.int64]]:
        """Return vectors [count, dim] and categories [count] of queries."""
        rng = np.random.default_rng([self._seed, 2])
        clusters, offsets = self._garments(rng, count)
        blurred = offsets + 0.6 * self._noise(rng, count)
        return _unit((0.9 * self._text_mean + 0.4 * blurred) @ self._rotation), self._categories[clusters]

    def _garments(self, rng: np.random.Generator, count: int) -> tuple[NDArray[np.int64], Vectors]:
        clusters = rng.choice(len(self._weights), count, p=self._weights)
        offsets = 0.5 * (self._centres[clusters] + self._spread[clusters] * self._noise(rng, count))
        return clusters, offsets.astype(np.float32, copy=False)

    def _noise(self, rng: np.random.Generator, count: int) -> Vectors:
        return rng.standard_normal((count, len(self._deviations)), np.float32) * self._deviations


def _unit(vectors: Vectors) -> Vectors:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Query(NamedTuple):
    """The vector of a query, and for each filter the mask that it is searched with and the best rows, in order."""

    vector: Vectors
    masks: dict[str, str]
    best: dict[str, list[int]]


def make_data(folder: Path, num_vectors: int, settings: RetrievalSettings) -> Record:
    """Write `vectors.npy`, `masks.npz` and `queries.npz` to `folder`; return figures that describe the data."""
    world = World(settings.dim, settings.num_clusters, settings.seed)
    texts, text_categories = world.texts(settings.num_queries)
    rng = np.random.default_rng([settings.seed, 3])
    draws = rng.random(num_vectors)
    masks = {"none": np.ones(num_vectors, bool)} | {name: draws < share for name, share in SHARES.items()}
    masks |= {f"category {number}": np.zeros(num_vectors, bool) for number in range(NUM_CATEGORIES)}
    best = {name: (np.empty((len(texts), 0), np.float32), np.empty((len(texts), 0), np.int64)) for name in masks}
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, shape=(num_vectors, settings.dim))
    for start in range(0, num_vectors, BLOCK_ROWS):
        rows = np.arange(start, min(start + BLOCK_ROWS, num_vectors))
        vectors[rows], categories = world.pictures(start // BLOCK_ROWS, len(rows))
        for number in range(NUM_CATEGORIES):
            masks[f"category {number}"][rows] = categories == number
        scores = texts @ vectors[rows].T
        for name, mask in masks.items():
            best[name] = _merge(best[name], scores[:, mask[rows]], rows[mask[rows]], settings.k)
    _save(folder / "masks.npz", masks)
    queries: dict[str, NDArray[Any]] = {"vectors": texts, "categories": text_categories}
    for name, (_, best_rows) in best.items():
        queries[f"best {name}"] = best_rows
    _save(folder / "queries.npz", queries)
    half = min(num_vectors, BLOCK_ROWS) // 2
    pairs = vectors[: half // 5] @ vectors[half : half + half // 5].T
    return {
        "picture_to_picture": {"mean": float(pairs.mean()), "std": float(pairs.std())},
        "text_to_picture": {"mean": float(scores.mean()), "std": float(scores.std())},
        "text_to_nearest": float(best["none"][0][:, 0].mean()),
        f"text_to_number_{settings.k}": float(best["none"][0][:, -1].mean()),
        "shares": {name: float(mask.mean()) for name, mask in masks.items()},
    }


def _save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    named: dict[str, Any] = dict(arrays)
    np.savez(path, **named)


def _merge(
    best: tuple[Vectors, NDArray[np.int64]], scores: Vectors, rows: NDArray[np.int64], k: int
) -> tuple[Vectors, NDArray[np.int64]]:
    """Return the scores and rows [queries, k] of the best `k` of those so far and of one more block."""
    scores = np.concatenate([best[0], scores], axis=1)
    rows = np.concatenate([best[1], np.broadcast_to(rows, (len(scores), len(rows)))], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def read_queries(folder: Path) -> list[Query]:
    """Return the queries of `make_data`. The other category is the next one."""
    with np.load(folder / "queries.npz") as content:
        arrays = {name: content[name] for name in content}
    queries = []
    for number, (vector, category) in enumerate(zip(arrays["vectors"], arrays["categories"], strict=True)):
        masks = {name: name for name in FILTERS} | {
            "category": f"category {category}",
            "other category": f"category {(category + 1) % NUM_CATEGORIES}",
        }
        best = {name: arrays[f"best {mask}"][number].tolist() for name, mask in masks.items()}
        queries.append(Query(vector, masks, best))
    return queries


def anonymous_bytes() -> int:
    """Return the memory that this process has for itself, without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def measure(system: str, folder: Path, settings: RetrievalSettings) -> list[Record]:
    """Return what is reported of a system on the data in `folder`, for each of its efforts.

    It must run in a fresh process, whose memory it measures.
    """
    faiss.omp_set_num_threads(1)
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    with np.load(folder / "masks.npz") as content:
        masks = {name: content[name] for name in content}
    before, start = anonymous_bytes(), time.perf_counter()
    searches = SYSTEMS[system](vectors, masks)
    build_s, memory_bytes = time.perf_counter() - start, anonymous_bytes() - before
    built = {"num_vectors": len(vectors), "build_s": build_s, "memory_bytes": memory_bytes}
    queries = read_queries(folder)
    return [{"system": name, **built, "filters": timed(search, queries, settings)} for name, search in searches.items()]


def timed(search: Search, queries: Sequence[Query], settings: RetrievalSettings) -> Record:
    """Return recall, and percentiles of the time of a search in ms, by filter."""
    for query in queries[:3]:
        for name in FILTERS:
            search(query.vector, len(query.best[name]), query.masks[name])
    shape = (settings.num_rounds, len(FILTERS), len(queries))
    wall, cpu, recall = np.full(shape, np.nan), np.full(shape, np.nan), np.empty(shape[1:])
    begin = time.perf_counter()
    for round_number in range(settings.num_rounds):
        if round_number and time.perf_counter() - begin > settings.enough_s:
            break
        for number, query in enumerate(queries):
            for filter_number, name in enumerate(FILTERS):
                here = (round_number, filter_number, number)
                best = query.best[name]
                start, cpu_start = time.perf_counter(), time.thread_time()
                # hnswlib cannot find fewer than are asked for.
                rows = search(query.vector, len(best), query.masks[name])
                cpu[here], wall[here] = time.thread_time() - cpu_start, time.perf_counter() - start
                recall[here[1:]] = len(set(best) & set(rows.tolist())) / len(best)
    ms = {"": 1000 * np.nanmedian(wall, axis=0), "cpu_": 1000 * np.nanmedian(cpu, axis=0)}
    by_filter = {}
    for number, name in enumerate(FILTERS):
        figures = {"recall": float(recall[number].mean()), "least_recall": float(recall[number].min())}
        for clock, times in ms.items():
            for percent in (50, 99):
                figures[f"{clock}p{percent}_ms"] = float(np.percentile(times[number], percent))
        by_filter[name] = figures
    return by_filter


def _left_out(num_vectors: int, settings: RetrievalSettings) -> Sequence[str]:
    return [name for name in GRAPHS if num_vectors > settings.graphs_up_to or not find_spec(name)]


def benchmark(settings: RetrievalSettings, say: Callable[[str], None], keep: Callable[[Record], None]) -> Record:
    """Return the result as plain values for JSON. `say` is told of progress; `keep` gets the result so far."""
    packages = {name: version(name) for name in GRAPHS if find_spec(name)}
    data: dict[str, Record] = {}
    measured: list[Record] = []
    left_out = []
    for num_vectors in settings.sizes:
        left_out += [{"system": system, "num_vectors": num_vectors} for system in _left_out(num_vectors, settings)]
    result = {
        "from": provenance(),
        "settings": asdict(settings) | {"packages": packages},
        "data": data,
        "measured": measured,
        "left_out": left_out,
    }
    for num_vectors in settings.sizes:
        with tempfile.TemporaryDirectory(prefix="retrieval-") as folder:
            say(f"making {num_vectors:,} vectors")
            data[str(num_vectors)] = make_data(Path(folder), num_vectors, settings)
            for system in [name for name in SYSTEMS if name not in _left_out(num_vectors, settings)]:
                say(f"{num_vectors:,} vectors: {system}")
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    measured += pool.submit(measure, system, Path(folder), settings).result()
                keep(result)
    return result


def main(
    sizes: Annotated[str, typer.Option(help="Numbers of vectors, with commas.")] = "10000,100000,1000000",
    graphs_up_to: Annotated[int, typer.Option(help="The most vectors that graphs are built of.")] = 100_000,
    out: Annotated[Path | None, typer.Option(help="JSON file to write, anew after every system.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Picture to write.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One short round, to see that it works.")] = False,
) -> None:
    """Compare the catalogue's vector index with exact search and with graphs."""
    settings = QUICK if quick else RetrievalSettings(tuple(int(size) for size in sizes.split(",")), graphs_up_to)

    def keep(result: Record) -> None:
        if out:
            write_result(out, result)

    with Console(stderr=True).status("") as status:
        result = benchmark(settings, status.update, keep)
    Console().print(*tables(result), sep="\n")
    if plot_file:
        write_figure(plot_file, plot(result))
