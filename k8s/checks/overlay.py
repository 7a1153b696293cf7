"""An overlay as Kubernetes would get it, and the parts of it that the checks look at."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve.config_file import Graph, parse_graph

Document = dict[str, Any]

ROOT = Path(__file__).parents[1]
# The factors that the suffixes of a Kubernetes quantity stand for.
FACTORS = {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
FACTORS |= {f"{prefix}i": 1024.0**power for power, prefix in enumerate("KMGT", 1)}


@dataclass(frozen=True)
class WorkerGroup:
    """A worker group: the resources that each of its pods offers to Ray, and the number of its pods."""

    name: str
    labels: dict[str, str]
    cpus: float
    gpus: float
    memory_bytes: float
    object_store_bytes: float
    min_pods: int
    max_pods: int


@dataclass(frozen=True)
class Pod:
    """A pod that a document describes.

    where: names the document. labels: include those that KubeRay adds. claims: the volumes that the pod has from the
    claim templates of its StatefulSet.
    """

    where: str
    labels: dict[str, str]
    spec: Document
    claims: frozenset[str]

    @classmethod
    def of(
        cls, where: str, template: Document, added: Mapping[str, str] = {}, claims: frozenset[str] = frozenset()
    ) -> Pod:
        """Return the pod of a template or of a Pod, both of which have metadata and spec."""
        labels = template["metadata"].get("labels", {}) | added
        return cls(where, labels, template["spec"], claims)


@dataclass(frozen=True)
class Overlay:
    """The documents of an overlay, rendered."""

    documents: list[Document]

    @classmethod
    def render(cls, folder: Path) -> Overlay:
        """Return the documents that `kubectl kustomize` makes of a folder. Raises ValueError if it fails."""
        installed = Path(sys.executable).with_name("kubectl")
        kubectl = str(installed) if installed.exists() else "kubectl"
        run = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True)
        if run.returncode:
            raise ValueError(f"{folder}: {run.stderr.strip()}")
        return cls(list(yaml.safe_load_all(run.stdout)))

    def of_kind(self, *kinds: str) -> list[Document]:
        """Return the documents of these kinds."""
        return [document for document in self.documents if document["kind"] in kinds]

    @property
    def ray_services(self) -> list[Document]:
        """Return the RayServices; a sound overlay has at most one."""
        return self.of_kind("RayService")

    @property
    def pods(self) -> list[Pod]:
        """Return the pods of all documents."""
        return [pod for document in self.documents for pod in pods_of(document)]


def pods_of(document: Document) -> Iterator[Pod]:
    """Yield the pods that a document describes, as a Pod or by templates."""
    where, spec = f"{document['kind']} {document['metadata']['name']}", document.get("spec", {})
    if document["kind"] == "Pod":
        yield Pod.of(where, document)
    elif document["kind"] == "RayService":
        cluster = spec["rayClusterConfig"]
        yield Pod.of(f"{where}, head", cluster["headGroupSpec"]["template"], _kuberay_labels("head", "headgroup"))
        for group in cluster.get("workerGroupSpecs", []):
            name = group["groupName"]
            yield Pod.of(f"{where}, group {name}", group["template"], _kuberay_labels("worker", name))
    elif "template" in spec:
        claims = frozenset(claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", []))
        yield Pod.of(where, spec["template"], claims=claims)


def _kuberay_labels(node_type: str, group: str) -> dict[str, str]:
    """Return the labels that KubeRay adds to a pod."""
    return {"ray.io/is-ray-node": "yes", "ray.io/node-type": node_type, "ray.io/group": group}


def graph_of(ray_service: Document) -> Graph:
    """Return the graph that a RayService deploys. Raises ValueError, naming the fault, if it has one."""
    return parse_graph(ray_service["spec"].get("serveConfigV2", ""))


def sound_graph_of(ray_service: Document) -> Graph | None:
    """Return the graph that a RayService deploys, or None if it has a fault, which only `serving` reports."""
    try:
        return graph_of(ray_service)
    except ValueError:
        return None


def groups_of(ray_service: Document) -> list[WorkerGroup]:
    """Return the worker groups of a RayService with the resources that KubeRay tells Ray.

    These are the limits of the first container, unless rayStartParams give others.
    """
    groups = []
    for spec in ray_service["spec"]["rayClusterConfig"].get("workerGroupSpecs", []):
        limits = spec["template"]["spec"]["containers"][0]["resources"].get("limits", {})
        start = spec.get("rayStartParams", {})
        gpus = next((value for name, value in limits.items() if name.endswith("gpu")), 0)
        groups.append(
            WorkerGroup(
                name=spec["groupName"],
                labels=spec.get("labels", {}),
                cpus=quantity(start.get("num-cpus", limits.get("cpu", 0))),
                gpus=quantity(start.get("num-gpus", gpus)),
                memory_bytes=quantity(start.get("memory", limits.get("memory", 0))),
                object_store_bytes=quantity(start.get("object-store-memory", 0)),
                min_pods=spec.get("minReplicas", 0),
                max_pods=spec.get("maxReplicas", spec.get("minReplicas", 0)),
            )
        )
    return groups


def quantity(value: str | int | float) -> float:
    """Return a Kubernetes quantity as a number: "500m" as 0.5 and "2Gi" as 2147483648.

    Raises ValueError for anything that is no quantity.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]*)", str(value))
    if not match or match[2] not in FACTORS:
        raise ValueError(f"got {value!r}; must be a quantity, such as 500m or 2Gi")
    return float(match[1]) * FACTORS[match[2]]
