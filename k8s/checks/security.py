"""The check that pods have no rights that they do not need, and that nothing unnamed can reach them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from k8s.checks.overlay import Document, Overlay

# The fields of a pod that would give it the networks and processes of its node.
FORBIDDEN = ("hostNetwork", "hostPID", "hostIPC")


def check(overlay: Overlay) -> list[str]:
    """Return a fault for each right that a pod does not need, and for a namespace without a closed network."""
    faults = [f"{pod.where}: {fault}" for pod in overlay.pods for fault in _pod(pod.spec)]
    for service in overlay.ray_services:
        sidecar = service["spec"]["rayClusterConfig"].get("autoscalerOptions", {})
        faults += [f"autoscaler: {fault}" for fault in _container(sidecar, {})]
        if service["spec"]["rayClusterConfig"].get("authOptions", {}).get("mode") != "token":
            faults.append("authOptions: mode must be token, or any pod inside may run code on the cluster")
        if not any(_denies_all(policy) for policy in overlay.of_kind("NetworkPolicy")):
            faults.append("there is no NetworkPolicy that denies what no other allows")
    return faults


def _pod(spec: Document) -> Iterator[str]:
    """Yield the rights of a pod that it does not need."""
    if spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken: must be false"
    for field in FORBIDDEN:
        if spec.get(field):
            yield f"{field}: must not be set"
    for volume in spec.get("volumes", []):
        if "hostPath" in volume:
            yield f"volume {volume['name']}: must not be of the host"
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        for fault in _container(container, spec.get("securityContext", {})):
            yield f"{container['name']}: {fault}"


def _container(container: dict[str, Any], pod_context: dict[str, Any]) -> Iterator[str]:
    """Yield the rights of a container that it does not need. pod_context: the securityContext of its pod."""
    context = pod_context | container.get("securityContext", {})
    for field, value in (
        ("allowPrivilegeEscalation", False),
        ("readOnlyRootFilesystem", True),
        ("runAsNonRoot", True),
        ("capabilities", {"drop": ["ALL"]}),
        ("seccompProfile", {"type": "RuntimeDefault"}),
    ):
        if context.get(field) != value:
            yield f"securityContext.{field}: got {context.get(field)}; must be {value}"
    if "memory" not in container.get("resources", {}).get("limits", {}):
        yield "resources.limits: must have memory"


def _denies_all(policy: Document) -> bool:
    """Return whether a NetworkPolicy denies all pods all traffic that no other policy allows."""
    spec = policy["spec"]
    return (
        spec["podSelector"] == {}
        and set(spec["policyTypes"]) == {"Ingress", "Egress"}
        and spec.keys() == {"podSelector", "policyTypes"}
    )
