"""Rehearses on one machine what a Kubernetes cluster does to the graph: see `rehearsal.py`. Slow; needs root."""

import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks import scaling
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.pipeline import Pipeline
from tests.cluster import rehearsal
from tests.cluster.load import Load
from tests.cluster.nodes import Cluster, cluster, why_not
from tests.cluster.rehearsal import add_node, deploy, places, scaled_down, settled, url
from tests.serve.client import edit, expected, picture
from tests.waiting import wait_for

REASON = why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

NUM_CALLERS = 3
# ONNX Runtime against PyTorch, and rows with other neighbours: each within 1.
TOLERANCE = 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return rehearsal.make_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pipeline(folders: dict[str, str]) -> Iterator[Pipeline]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Pipeline.load(DEMO_BUNDLE, Path(folders["catalogue"]))
    torch.set_num_threads(threads)


EDITS: list[dict[str, Any]] = [
    {"seed": seed, "steps": random.Random(seed).randint(4, 20), "num_garments": seed % 3} for seed in range(6)
]


@pytest.fixture(scope="module")
def wanted(pipeline: Pipeline) -> list[NDArray[np.uint8]]:
    return [expected(pipeline, **changes) for changes in EDITS]


@pytest.mark.parametrize("overlay", ["cpu-demo", "gpu-split"])
def test_an_overlay_serves(overlay: str, folders: dict[str, str], wanted: list[NDArray[np.uint8]]) -> None:
    graph, groups = rehearsal.read(overlay)
    with cluster(rehearsal.ENVIRONMENT) as started:
        workers = [add_node(started, group.name, group) for group in groups]
        deploy(started, scaled_down(graph, folders, min_replicas=1))
        assert all(places(started).values())
        for name, where in places(started).items():
            pools = ["cpu"] if overlay == "cpu-demo" else ["unet"] if name == "Denoiser" else ["stages"]
            assert where == pools, f"{name} is on {where}"
        assert edit(url(workers[0])).status_code == 401
        for worker in workers:
            shown = picture(edit(url(worker), headers=rehearsal.HEADERS, **EDITS[0]))
            assert np.abs(shown.astype(int) - wanted[0]).max() <= TOLERANCE


@pytest.fixture(scope="module")
def gpu_cluster(folders: dict[str, str]) -> Iterator[Cluster]:
    """Return the overlay `gpu` on two workers, two replicas of each deployment."""
    graph, (group,) = rehearsal.read("gpu")
    with cluster(rehearsal.ENVIRONMENT) as started:
        add_node(started, "first", group)
        add_node(started, "second", group)
        deploy(started, scaled_down(graph, folders, min_replicas=2))
        yield started


@pytest.fixture
def load(gpu_cluster: Cluster, wanted: list[NDArray[np.uint8]]) -> Iterator[Load]:
    """Have edits enter at both workers in turn; afterwards none has failed, and each has its picture."""
    wait_for(settled(gpu_cluster, 2))
    edits = Load([url(node) for node in gpu_cluster.workers()], EDITS, wanted, rehearsal.HEADERS)
    with edits.running(NUM_CALLERS):
        edits.wait_for(NUM_CALLERS)
        yield edits
        edits.wait_for(2 * len(EDITS))
    print(f"{edits.num_done} edits, sent again: {dict(edits.again)}, largest difference {edits.largest_difference}")
    assert edits.failed == []
    assert edits.largest_difference <= TOLERANCE


def test_a_node_that_is_drained_takes_nothing_with_it(gpu_cluster: Cluster, load: Load) -> None:
    _, (group,) = rehearsal.read("gpu")
    leaving = gpu_cluster.workers()[0]
    # As the autoscaler would: replicas that must move need a place.
    add_node(gpu_cluster, "third", group)
    # A pod that is to end is taken out of its service at once, and one that is not ready yet is not in it.
    load.urls.remove(url(leaving))
    command = ["python", "-m", "serve.drain", "--limit-s", "120", "--node-ip", leaving.ip]
    # KubeRay sets it in every pod.
    address = {"RAY_ADDRESS": f"{gpu_cluster.head.ip}:6379"}
    run = leaving.run(*command, environment=gpu_cluster.environment | address)
    assert run.returncode == 0, run.stdout + run.stderr
    gpu_cluster.remove(leaving)
    wait_for(settled(gpu_cluster, 2))
    assert leaving.name not in {name for where in places(gpu_cluster).values() for name in where}
    assert load.again == {}


def test_a_node_that_dies_costs_no_edit(gpu_cluster: Cluster, load: Load) -> None:
    _, (group,) = rehearsal.read("gpu")
    dying = gpu_cluster.workers()[0]
    gpu_cluster.remove(dying)
    load.wait_for(NUM_CALLERS)
    load.urls.remove(url(dying))
    add_node(gpu_cluster, "fourth", group)
    wait_for(settled(gpu_cluster, 2))
    # Only those that had entered at the node itself had to be sent again.
    assert not any(why.startswith("5") for why in load.again), load.again


def test_the_controller_dies(gpu_cluster: Cluster, load: Load) -> None:
    (controller,) = gpu_cluster.head.processes("ray::ServeController")
    os.kill(controller, signal.SIGKILL)
    load.wait_for(2 * NUM_CALLERS)
    wait_for(lambda: gpu_cluster.head.processes("ray::ServeController") not in ([], [controller]))
    wait_for(settled(gpu_cluster, 2))
    assert load.again == {}


def test_a_new_version_rolls_out(gpu_cluster: Cluster, load: Load, folders: dict[str, str], tmp_path: Path) -> None:
    graph, _ = rehearsal.read("gpu")
    newer = folders | {"bundle": str(shutil.copytree(DEMO_BUNDLE, tmp_path / "bundle"))}
    before = {one["actor_id"] for one in rehearsal.replicas(gpu_cluster)}
    deploy(gpu_cluster, scaled_down(graph, newer, min_replicas=2))
    wait_for(lambda: before.isdisjoint({one["actor_id"] for one in rehearsal.replicas(gpu_cluster)}))
    wait_for(settled(gpu_cluster, 2))
    assert load.again == {}


def test_denoisers_follow_the_load(folders: dict[str, str]) -> None:
    trace, load = scaling.measure(folders)
    running = [sample.running for sample in trace]
    most = running.index(max(running))
    assert (running[0], max(running), running[-1]) == (1, scaling.NUM_WORKERS, 1)
    assert running[:most] == sorted(running[:most])
    assert load.failed == []
    assert load.largest_difference <= TOLERANCE
