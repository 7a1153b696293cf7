"""The overlays of k8s/ on nodes of this machine, with the demo model in the place of a real one.

What differs from KubeRay, beside the model: nobody adds or replaces nodes by himself; there are no pods, probes,
volumes, network policies or gateways; Redis is not behind the head; GPUs and memory are numbers that Ray counts.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from export.runtime import Runtime
from fashion_rag.artifacts import write_json
from fashion_rag.demo.world.catalogue import ensure_demo_world
from fashion_rag.manifest import DEMO_BUNDLE
from k8s.checks.overlay import ROOT, Overlay, WorkerGroup, graph_of, groups_of
from serve.app import RAY_DEFAULTS
from serve.config_file import Graph
from tests.cluster.nodes import Cluster, Node
from tests.waiting import wait_for

REPOSITORY = Path(__file__).parents[2]
# So that what takes minutes on a cluster takes seconds here. Metrics are pushed every 10 s otherwise.
ENVIRONMENT = RAY_DEFAULTS | {
    "PYTHONPATH": str(REPOSITORY),
    # What asks runs on this machine as well, and would starve those who answer.
    "RAY_worker_niceness": "0",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
}
DELAYS = {"upscale_delay_s": 2, "downscale_delay_s": 10}
KEY = "key-of-a-shop"
HEADERS = {"authorization": f"Bearer {KEY}"}


def make_folders(folder: Path) -> dict[str, str]:
    """Return what stands in for the volume and the secret, below `folder`: paths for the arguments of the graph."""
    catalogue = ensure_demo_world(folder / "world", DEMO_BUNDLE)
    compiled = Runtime(str(DEMO_BUNDLE), backend="onnx").open().folder
    paths = {"bundle": DEMO_BUNDLE, "catalogue": catalogue, "compiled": compiled}
    for name in ("api_keys", "catalogue_keys"):
        paths[name] = folder / name
        paths[name].write_text(f"{KEY}\n")
    return {name: str(path) for name, path in paths.items()}


def read(overlay: str) -> tuple[Graph, list[WorkerGroup]]:
    """Return the graph of an overlay, and its worker groups."""
    (service,) = Overlay.render(ROOT / "overlays" / overlay).ray_services
    return graph_of(service), groups_of(service)


def scaled_down(graph: Graph, folders: Mapping[str, str], min_replicas: int, target_load: float | None = None) -> Graph:
    """Return the graph on the demo model: other folders, ONNX Runtime, `min_replicas` of each, and shorter delays.

    target_load: of the denoisers, in place of the overlay's.
    """
    args = graph.args | {"backend": "onnx", "wait_s": 60, "drain_s": 60} | folders
    deployments = []
    for deployment in graph.deployments:
        scaling = deployment["autoscaling_config"] | DELAYS | {"min_replicas": min_replicas}
        scaling["max_replicas"] = max(scaling["max_replicas"], min_replicas)
        if target_load and deployment["name"] == "Denoiser":
            scaling["policy"] = scaling["policy"] | {"policy_kwargs": {"target_load": target_load}}
        deployments.append(deployment | {"autoscaling_config": scaling})
    return Graph(args, deployments)


def add_node(cluster: Cluster, name: str, group: WorkerGroup) -> Node:
    """Return a node with what a pod of the group offers."""
    labels = ",".join(f"{key}={value}" for key, value in group.labels.items())
    numbers = {"--num-cpus": group.cpus, "--num-gpus": group.gpus, "--memory": group.memory_bytes}
    options = [word for option, number in numbers.items() for word in (option, str(round(number)))]
    return cluster.add(name, *options, "--labels", labels)


def deploy(cluster: Cluster, graph: Graph) -> None:
    """Bring the graph by `serve deploy`; return when all of it runs."""
    path = cluster.folder / "graph.yaml"
    # JSON is YAML.
    write_json(path, {"proxy_location": "EveryNode", "http_options": {"host": "0.0.0.0"}} | graph.as_config())
    cluster.serve("deploy", str(path), "--address", cluster.dashboard)
    wait_for(lambda: status(cluster) == "RUNNING", lambda: yaml.safe_dump(application(cluster)))


def application(cluster: Cluster) -> dict[str, Any]:
    """Return what Serve tells of the graph."""
    found: dict[str, Any] = cluster.details()["applications"].get("fashion-rag", {})
    return found


def status(cluster: Cluster) -> str:
    """Return RUNNING where every deployment has its replicas."""
    return str(application(cluster).get("status"))


def replicas(cluster: Cluster) -> list[dict[str, Any]]:
    """Return what Serve tells of each running replica."""
    deployments = application(cluster)["deployments"].values()
    return [one for deployment in deployments for one in deployment["replicas"] if one["state"] == "RUNNING"]


def places(cluster: Cluster) -> dict[str, list[str]]:
    """Return the names of the nodes on which each deployment has running replicas."""
    names = {node.ip: node.name for node in cluster.nodes}
    return {
        name: sorted(names[one["node_ip"]] for one in deployment["replicas"] if one["state"] == "RUNNING")
        for name, deployment in application(cluster)["deployments"].items()
    }


def url(node: Node) -> str:
    """Return where edits enter at a node."""
    return f"http://{node.ip}:8000"


def settled(cluster: Cluster, min_replicas: int) -> Callable[[], bool]:
    """Return whether every deployment has its replicas again."""
    return lambda: (
        status(cluster) == "RUNNING" and all(len(where) >= min_replicas for where in places(cluster).values())
    )
