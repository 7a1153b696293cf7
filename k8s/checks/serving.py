"""Whether the RayService serves our graph, as Serve reads it, and lasts through upgrades, drains and deaths."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from k8s.checks.capacity import deployments_of
from k8s.checks.overlay import Document, Overlay, graph_of, groups_of, pods_of
from serve.app import RAY_DEFAULTS
from serve.config import ServeConfig
from serve.config_file import Graph

MAX_NAME = 47
# The settings that each deployment reads in its `reconfigure`, by its name.
SETTINGS = {name: name.lower() for name in ("Ingress", "Denoiser", "Conditioner", "Retriever", "VAE")}


def check(overlay: Overlay) -> list[str]:
    """Return the faults in what is served, where, and in how pods come and go."""
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
    """Return the graph is really built, as Serve's controller builds it."""
    faults = []
    bound = {deployment.name for deployment in deployments_of(graph)}
    for told in graph.deployments:
        name, settings = told["name"], told.get("user_config", {})
        if name not in bound:
            faults.append(f"deployment {name}: is not in the graph, which has {', '.join(sorted(bound))}")
            continue
        try:
            type(getattr(ServeConfig.from_args(graph.args), SETTINGS[name])).from_args(settings)
        except ValidationError as error:
            faults.append(f"deployment {name}: user_config: {error}")
        scaling = told.get("autoscaling_config", {})
        policy = scaling.get("policy", {}).get("policy_function")
        if name == "Denoiser" and scaling and policy != "serve.autoscaling:LoadPolicy":
            faults.append("deployment Denoiser: autoscaling_config: must have the policy serve.autoscaling:LoadPolicy")
    return faults


def _time_faults(service: Document, graph: Graph) -> list[str]:
    """Return a replica's drain < the pod's preStop < its grace; and an old cluster outlasts the drain."""
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
    cluster = service["spec"]["rayClusterConfig"]
    start = cluster["headGroupSpec"].get("rayStartParams", {})
    faults = []
    if (start.get("num-cpus"), start.get("num-gpus")) != ("0", "0") or not service["spec"][
        "excludeHeadPodFromServeSvc"
    ]:
        faults.append("head: must offer no CPU and no GPU to replicas, and be no way in")
    strategy = service["spec"].get("upgradeStrategy", {}).get("type")
    if strategy == "NewClusterWithIncrementalUpgrade" and not cluster.get("enableInTreeAutoscaling"):
        faults.append("upgradeStrategy: an incremental upgrade needs enableInTreeAutoscaling")
    for pod in pods_of(service):
        told: dict[str, Any] = {entry["name"]: entry.get("value") for entry in pod.spec["containers"][0]["env"]}
        faults += [
            f"{pod.where}: env {variable}: got {told.get(variable)!r}; must be {value!r}, as everywhere"
            for variable, value in RAY_DEFAULTS.items()
            if told.get(variable) != value
        ]
    return faults


def _disruption_faults(overlay: Overlay, service: Document) -> list[str]:
    """Return a budget that can never be kept to stops every drain of a node."""
    faults = []
    least = {group.name: group.min_pods for group in groups_of(service)}
    for budget in overlay.of_kind("PodDisruptionBudget"):
        group = budget["spec"]["selector"]["matchLabels"].get("ray.io/group")
        stays = budget["spec"].get("minAvailable")
        if not isinstance(stays, int) or stays >= least.get(group, 0):
            rule = f"must be a number below minReplicas of its group, {least.get(group)}"
            faults.append(f"PodDisruptionBudget {budget['metadata']['name']}: minAvailable: got {stays}; {rule}")
    return faults
