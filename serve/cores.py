"""The cores that the threads of a replica run on. The denoiser calls it, for operators who pin denoisers to cores."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

NODES = Path("/sys/devices/system/node")
TASKS = Path("/proc/self/task")


def cores_by_node(cores: Collection[int], nodes: Path = NODES) -> list[list[int]]:
    """Return `cores` in a list for each NUMA node, rising.

    nodes: the folder in which the kernel lists the cores of each node. Where it lists none, there is one node.
    """
    by_node = []
    for path in sorted(nodes.glob("node[0-9]*/cpulist")):
        own = sorted(_listed(path.read_text()) & set(cores))
        if own:
            by_node.append(own)
    return by_node or [sorted(cores)]


def share_of(rank: int, num_threads: int, by_node: Sequence[Sequence[int]]) -> set[int]:
    """Return the cores of the replica with this rank on its machine, as many as it has threads.

    Replicas share cores only if there are too few for all. The cores of a replica are of one NUMA node, unless no node
    has as many as it has threads.

    by_node: as `cores_by_node` returns it.
    """
    shares: list[set[int]] = []
    for cores in by_node:
        for start in range(0, len(cores) - num_threads + 1, num_threads):
            shares.append(set(cores[start : start + num_threads]))
    if shares:
        return shares[rank % len(shares)]
    return {core for cores in by_node for core in cores}


def pin(cores: Collection[int]) -> None:
    """Let all threads of this process, and those that they start, run on `cores` alone."""
    for task in TASKS.iterdir():
        # A thread may end meanwhile.
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cores)


def _listed(text: str) -> set[int]:
    """Return the numbers of a list as the kernel writes it, such as 0-3,8; the list of a node may be empty."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            numbers |= set(range(int(first), int(last or first) + 1))
    return numbers
