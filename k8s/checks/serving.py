"""The check that a RayService serves our graph as Serve reads it, and survives upgrades, drains and lost pods."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from k8s.checks.capacity import deployments_of
from k8s.checks.overlay import Document, Overlay, graph_of, groups_of, pods_of
from serve.app import RAY_DEFAULTS
from serve.config import (
    BatchSettings,
    ConditionerSettings,
    Config,
    DenoiserSettings,
    IngressSettings,
    ParserSettings,
    RetrieverSettings,
    ServeConfig,
    StagesSettings,
)
from serve.config_file import Graph

# The longest name of a RayService.
MAX_NAME = 47
# The settings that each deployment reads in its `reconfigure`.
SETTINGS: dict[str, type[Config]] = {
    "Ingress": IngressSettings,
    "Denoiser": DenoiserSettings,
    "Conditioner": ConditionerSettings,
    "Retriever": RetrieverSettings,
    "Parser": ParserSettings,
    "VAE": BatchSettings,
    "Stages": StagesSettings,
}


def check(overlay: Overlay) -> list[str]:
    """Return the faults in the graph that is served, in its cluster, and in the times and limits of stopping pods."""
    faults = []
    for service in overlay.ray_services:
        name = service["metadata"]["name"]
        if len(name) > MAX_NAME:
            faults.append(f"RayService {name}: its name must have at most {MAX_NAME} characters")
        try:
            graph = graph_of(service)
        except ValueError as error:
            faults.append(f"serveConfigV2: {error}")
            continue
        faults += _graph_faults(graph)
        faults += _time_faults(service, graph)
        faults += _cluster_faults(service)
        faults += _disruption_faults(overlay, service)
    return faults


def _graph_faults(graph: Graph) -> list[str]:
    """Return the faults of a graph, which is built in the way in which Serve's controller builds it."""
    faults = []
    bound = {deployment.name for deployment in deployments_of(graph)}
    for options in graph.deployments:
        name, settings = options["name"], options.get("user_config", {})
        if name not in bound:
            faults.append(f"deployment {name}: is not in the graph, which has {', '.join(sorted(bound))}")
            continue
        try:
            SETTINGS[name].from_args(settings)
        except ValidationError as error:
            faults.append(f"deployment {name}: user_config: {error}")
        scaling = options.get("autoscaling_config", {})
        policy = scaling.get("policy", {}).get("policy_function")
        if name == "Denoiser" and scaling and policy != "serve.autoscaling:LoadPolicy":
            faults.append("deployment Denoiser: autoscaling_config: must have the policy serve.autoscaling:LoadPolicy")
    return faults


def _time_faults(service: Document, graph: Graph) -> list[str]:
    """Return the times that are too short.

    A pod's preStop must last longer than the drain of a replica, and its grace period longer than preStop. An old
    cluster must last longer than the drain.
    """
    faults = []
    drain_s = ServeConfig.from_args(graph.args).drain_s
    for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        command = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
        limit_s = float(command[command.index("--limit-s") + 1]) if "--limit-s" in command else 0.0
        grace_s = pod.get("terminationGracePeriodSeconds", 30)
        if not drain_s < limit_s < grace_s:
            times = f"drain_s {drain_s:g}, preStop {limit_s:g}, terminationGracePeriodSeconds {grace_s:g}"
            faults.append(f"group {group['groupName']}: each of these must be longer than the one before: {times}")
    deletion_s = service["spec"].get("rayClusterDeletionDelaySeconds", 60)
    if deletion_s <= drain_s:
        faults.append(f"rayClusterDeletionDelaySeconds: got {deletion_s}; must be more than drain_s, {drain_s:g}")
    return faults


def _cluster_faults(service: Document) -> list[str]:
    """Return the faults in the head, in the way of upgrading, and in the environment of the pods."""
    cluster = service["spec"]["rayClusterConfig"]
    start = cluster["headGroupSpec"].get("rayStartParams", {})
    faults = []
    offers_nothing = (start.get("num-cpus"), start.get("num-gpus")) == ("0", "0")
    if not (offers_nothing and service["spec"]["excludeHeadPodFromServeSvc"]):
        faults.append("head: must offer no CPU and no GPU to replicas, and must not take requests")
    strategy = service["spec"].get("upgradeStrategy", {}).get("type")
    if strategy == "NewClusterWithIncrementalUpgrade" and not cluster.get("enableInTreeAutoscaling"):
        faults.append("upgradeStrategy: an incremental upgrade needs enableInTreeAutoscaling")
    for pod in pods_of(service):
        environment: dict[str, Any] = {entry["name"]: entry.get("value") for entry in pod.spec["containers"][0]["env"]}
        for variable, value in RAY_DEFAULTS.items():
            if environment.get(variable) != value:
                got = f"got {environment.get(variable)!r}"
                faults.append(f"{pod.where}: env {variable}: {got}; must be {value!r}, as everywhere")
    return faults


def _disruption_faults(overlay: Overlay, service: Document) -> list[str]:
    """Return the disruption budgets that leave no pod to spare, and so stop every drain of a node."""
    faults = []
    min_pods = {group.name: group.min_pods for group in groups_of(service)}
    for budget in overlay.of_kind("PodDisruptionBudget"):
        group = budget["spec"]["selector"]["matchLabels"].get("ray.io/group")
        available = budget["spec"].get("minAvailable")
        if not isinstance(available, int) or available >= min_pods.get(group, 0):
            rule = f"must be a number below minReplicas of its group, {min_pods.get(group)}"
            faults.append(f"PodDisruptionBudget {budget['metadata']['name']}: minAvailable: got {available}; {rule}")
    return faults
