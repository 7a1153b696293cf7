"""Whether pods may do no more than they must, and nothing reaches them but what is named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from k8s.checks.overlay import Document, Overlay

FORBIDDEN = ("hostNetwork", "hostPID", "hostIPC")


def check(overlay: Overlay) -> list[str]:
    """Return the pods with rights that they do not need, and a namespace that is open."""
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
    if spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken: must be false"
    yield from (f"{field}: must not be set" for field in FORBIDDEN if spec.get(field))
    yield from (
        f"volume {volume['name']}: must not be of the host"
        for volume in spec.get("volumes", [])
        if "hostPath" in volume
    )
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        yield from (f"{container['name']}: {fault}" for fault in _container(container, spec.get("securityContext", {})))


def _container(container: dict[str, Any], of_pod: dict[str, Any]) -> Iterator[str]:
    context = of_pod | container.get("securityContext", {})
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
    spec = policy["spec"]
    return (
        spec["podSelector"] == {}
        and set(spec["policyTypes"]) == {"Ingress", "Egress"}
        and spec.keys() == {"podSelector", "policyTypes"}
    )
