"""Tests of the cores that replicas are pinned to."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.cores import cores_by_node, pin, share_of


@pytest.fixture
def all_cores() -> Iterator[set[int]]:
    """Return the cores of this process, which it has again after the test."""
    cores = os.sched_getaffinity(0)
    yield cores
    pin(cores)


def make_nodes(folder: Path, *lists: str) -> Path:
    for number, text in enumerate(lists):
        (folder / f"node{number}").mkdir()
        (folder / f"node{number}" / "cpulist").write_text(f"{text}\n")
    return folder


def test_cores_are_grouped_by_numa_node(tmp_path: Path) -> None:
    nodes = make_nodes(tmp_path, "0-3,8", "4-7,9-10", "")
    assert cores_by_node(range(11), nodes) == [[0, 1, 2, 3, 8], [4, 5, 6, 7, 9, 10]]
    # Only cores that this process may use count.
    assert cores_by_node({5, 1, 10}, nodes) == [[1], [5, 10]]
    assert cores_by_node({1, 0}, tmp_path / "missing") == [[0, 1]]


@pytest.mark.parametrize(
    ("num_threads", "expected"),
    [
        (1, [{0}, {1}, {2}, {4}, {5}, {6}, {7}, {0}]),
        # Core 2 is left over, because a replica has cores of one node.
        (2, [{0, 1}, {4, 5}, {6, 7}, {0, 1}]),
        (4, [{4, 5, 6, 7}, {4, 5, 6, 7}]),
        (5, [{0, 1, 2, 4, 5, 6, 7}]),
    ],
)
def test_replicas_have_cores_of_their_own(num_threads: int, expected: list[set[int]]) -> None:
    by_node = [[0, 1, 2], [4, 5, 6, 7]]
    assert [share_of(rank, num_threads, by_node) for rank in range(len(expected))] == expected


def test_all_threads_are_pinned_and_those_that_start_later(all_cores: set[int]) -> None:
    if len(all_cores) < 2:
        pytest.skip("needs two cores")
    seen: dict[str, set[int]] = {}
    may_look = threading.Event()

    def look(name: str) -> None:
        may_look.wait()
        seen[name] = os.sched_getaffinity(0)

    early = threading.Thread(target=look, args=("early",))
    early.start()
    pin({max(all_cores)})
    may_look.set()
    late = threading.Thread(target=look, args=("late",))
    late.start()
    for thread in (early, late):
        thread.join()
    assert seen == {"early": {max(all_cores)}, "late": {max(all_cores)}}
