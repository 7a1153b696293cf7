"""Whether what the graph needs of Ray fits on what the worker groups offer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from k8s.checks.overlay import Overlay, WorkerGroup, groups_of, sound_graph_of
from serve.app import build
from serve.config import ServeConfig
from serve.config_file import Graph

# Ray counts in ten-thousandths.
TINY = 1e-4


@dataclass(frozen=True)
class ReplicaNeed:
    """What a replica of a deployment needs of Ray, and how many replicas there are."""

    deployment: str
    cpus: float
    gpus: float
    memory_bytes: float
    labels: dict[str, str]
    min_replicas: int
    max_replicas: int

    def fits(self, group: WorkerGroup) -> bool:
        """Return whether a pod of the group has room for a replica."""
        return (
            self.labels.items() <= group.labels.items()
            and self.cpus <= group.cpus + TINY
            and self.gpus <= group.gpus + TINY
            and self.memory_bytes <= group.memory_bytes
        )

    def taken_from(self, group: WorkerGroup) -> WorkerGroup:
        """Return what a replica leaves of a pod."""
        return replace(
            group,
            cpus=group.cpus - self.cpus,
            gpus=group.gpus - self.gpus,
            memory_bytes=group.memory_bytes - self.memory_bytes,
        )


def check(overlay: Overlay) -> list[str]:
    """Return the deployments without a place, and pools that are too small for the fewest or the most replicas."""
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
        for word, pods, replicas in (
            ("warm minimum", [group.min_pods for group in usable], [need.min_replicas for need in needs]),
            ("maximum", [group.max_pods for group in usable], [need.max_replicas for need in needs]),
        ):
            left = without_place(needs, replicas, usable, pods)
            faults += [f"{name}: {number} of its {word} of replicas find no place" for name, number in left.items()]
    return faults


def needs_of(graph: Graph) -> list[ReplicaNeed]:
    """Return what each deployment needs, as Serve puts it together: the file's word goes before the code's.

    Raises pydantic's ValidationError for an autoscaling_config that Serve would refuse.
    """
    told = {deployment["name"]: deployment for deployment in graph.deployments}
    needs = []
    for deployment in deployments_of(graph):
        own = told.get(deployment.name, {})
        actor = own.get("ray_actor_options", deployment.ray_actor_options or {})
        scaling: Any = own.get("autoscaling_config", deployment._deployment_config.autoscaling_config)
        if isinstance(scaling, dict):
            scaling = AutoscalingConfig(**scaling)
        number = own.get("num_replicas", deployment.num_replicas) or 1
        lowest, highest = (scaling.min_replicas, scaling.max_replicas) if scaling else (number, number)
        needs.append(
            ReplicaNeed(
                deployment.name,
                actor.get("num_cpus", 1),
                actor.get("num_gpus", 0) or 0,
                actor.get("memory", 0) or 0,
                actor.get("label_selector") or {},
                lowest,
                highest,
            )
        )
    return needs


def deployments_of(graph: Graph) -> list[Any]:
    """Return the deployments that the graph's builder binds."""
    pending: list[Any] = [build(ServeConfig.from_args(graph.args))]
    found: dict[str, Any] = {}
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            pending += node.values()
        elif isinstance(node, Application):
            found[node._bound_deployment.name] = node._bound_deployment
            pending += node._bound_deployment.init_args
    return list(found.values())


def without_place(
    needs: Sequence[ReplicaNeed], replicas: Sequence[int], groups: Sequence[WorkerGroup], pods: Sequence[int]
) -> dict[str, int]:
    """Return how many replicas of which deployments are left when all others have been put into pods, the largest
    first.
    """
    room = [group for group, number in zip(groups, pods, strict=True) for _ in range(number)]
    left: dict[str, int] = {}
    order = sorted(zip(needs, replicas, strict=True), key=lambda pair: (-pair[0].gpus, -pair[0].memory_bytes))
    for need, number in order:
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
