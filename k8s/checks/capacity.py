"""The check that the worker groups have room for the replicas of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from k8s.checks.overlay import Overlay, WorkerGroup, groups_of, sound_graph_of
from serve.config import ServeConfig
from serve.config_file import Graph
from serve.graph import build
from serve.handles import StageHandle

# Ray counts CPUs and GPUs in ten-thousandths.
TINY = 1e-4


@dataclass(frozen=True)
class ReplicaNeed:
    """The resources that a replica of a deployment needs from Ray, and the number of its replicas."""

    deployment: str
    cpus: float
    gpus: float
    memory_bytes: float
    labels: dict[str, str]
    min_replicas: int
    max_replicas: int

    def fits(self, group: WorkerGroup) -> bool:
        """Return whether an empty pod of the group has room for a replica."""
        return (
            self.labels.items() <= group.labels.items()
            and self.cpus <= group.cpus + TINY
            and self.gpus <= group.gpus + TINY
            and self.memory_bytes <= group.memory_bytes
        )

    def taken_from(self, group: WorkerGroup) -> WorkerGroup:
        """Return the group with the resources that a pod still offers beside a replica."""
        return replace(
            group,
            cpus=group.cpus - self.cpus,
            gpus=group.gpus - self.gpus,
            memory_bytes=group.memory_bytes - self.memory_bytes,
        )


def check(overlay: Overlay) -> list[str]:
    """Return a fault for each deployment that no worker group can run, or can run only with too few replicas."""
    faults = []
    for service in overlay.ray_services:
        if (graph := sound_graph_of(service)) is None:
            continue
        try:
            needs = needs_of(graph)
        except ValidationError as error:
            faults.append(f"autoscaling_config: {error}")
            continue
        groups = groups_of(service)
        for need in needs:
            if not any(need.fits(group) for group in groups):
                faults.append(f"{need.deployment}: no worker group has {_describe(need)}")
        usable = [replace(group, memory_bytes=group.memory_bytes - group.object_store_bytes) for group in groups]
        fewest_pods: list[WorkerGroup] = []
        most_pods: list[WorkerGroup] = []
        for group in usable:
            fewest_pods += [group] * group.min_pods
            most_pods += [group] * group.max_pods
        fewest_replicas = [(need, need.min_replicas) for need in needs]
        most_replicas = [(need, need.max_replicas) for need in needs]
        for word, replicas, pods in (
            ("warm minimum", fewest_replicas, fewest_pods),
            ("maximum", most_replicas, most_pods),
        ):
            for name, number in without_place(replicas, pods).items():
                faults.append(f"{name}: {number} of its {word} of replicas find no place")
    return faults


def needs_of(graph: Graph) -> list[ReplicaNeed]:
    """Return what each deployment needs. As in Serve, an option in the file replaces the one in the code.

    Raises pydantic's ValidationError for an autoscaling_config that Serve would refuse.
    """
    file_options = {deployment["name"]: deployment for deployment in graph.deployments}
    needs = []
    for deployment in deployments_of(graph):
        options = file_options.get(deployment.name, {})
        actor = options.get("ray_actor_options", deployment.ray_actor_options or {})
        scaling: Any = options.get("autoscaling_config", deployment._deployment_config.autoscaling_config)
        if isinstance(scaling, dict):
            scaling = AutoscalingConfig(**scaling)
        fewest = most = options.get("num_replicas", deployment.num_replicas) or 1
        if scaling:
            fewest, most = scaling.min_replicas, scaling.max_replicas
        needs.append(
            ReplicaNeed(
                deployment=deployment.name,
                cpus=actor.get("num_cpus", 1),
                gpus=actor.get("num_gpus", 0) or 0,
                memory_bytes=actor.get("memory", 0) or 0,
                labels=actor.get("label_selector") or {},
                min_replicas=fewest,
                max_replicas=most,
            )
        )
    return needs


def deployments_of(graph: Graph) -> list[Any]:
    """Return the deployments that the graph's builder binds."""
    pending: list[Any] = [build(ServeConfig.from_args(graph.args))]
    deployments: dict[str, Any] = {}
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            pending += node.values()
        elif isinstance(node, StageHandle):
            pending.append(node.handle)
        elif isinstance(node, Application):
            deployments[node._bound_deployment.name] = node._bound_deployment
            pending += node._bound_deployment.init_args
    return list(deployments.values())


def without_place(replicas: Sequence[tuple[ReplicaNeed, int]], pods: Sequence[WorkerGroup]) -> dict[str, int]:
    """Return by deployment how many replicas find no room in any pod, where there are such.

    replicas: what a replica of each deployment needs, and the number of its replicas. pods: the group of each pod.
    The replicas that need the most GPU and then the most memory are placed first, each in the first pod with room.
    """
    room = list(pods)
    left: dict[str, int] = {}
    for need, number in sorted(replicas, key=lambda replica: (-replica[0].gpus, -replica[0].memory_bytes)):
        for _ in range(number):
            place = next((index for index, pod in enumerate(room) if need.fits(pod)), None)
            if place is None:
                left[need.deployment] = left.get(need.deployment, 0) + 1
            else:
                room[place] = need.taken_from(room[place])
    return left


def _describe(need: ReplicaNeed) -> str:
    words = [f"{need.cpus:g} CPUs", f"{need.gpus:g} GPUs", f"{need.memory_bytes / 1024**3:.1f} GiB"]
    return ", ".join(words) + (f" and labels {need.labels}" if need.labels else "")
