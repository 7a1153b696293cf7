"""Whether what documents name is there: labels, ports, services, volumes, secrets and their keys, paths, images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from k8s.checks.overlay import Document, Overlay, Pod, pods_of, sound_graph_of

# Made by Kubernetes itself in every namespace.
KUBERNETES_OWN = {"kube-root-ca.crt"}
PATHS = ("bundle", "catalogue", "compiled", "api_keys", "catalogue_keys")


def check(overlay: Overlay, parents: Sequence[Document], runbook: str) -> list[str]:
    """parents: documents that are there when the overlay's are applied. runbook: says how the secrets are made."""
    documents = [*overlay.documents, *parents]
    secrets = dict(_secrets(runbook))
    faults = []
    for pod in overlay.pods:
        volumes = pod.spec.get("volumes", [])
        for volume in volumes:
            found = _source(volume, documents, secrets)
            faults += [f"{pod.where}: volume {volume['name']}: {fault}" for fault in found]
        names = {volume["name"] for volume in volumes} | pod.claims
        for container in [*pod.spec["containers"], *pod.spec.get("initContainers", [])]:
            faults += [f"{pod.where}: {fault}" for fault in _container(container, names, secrets)]
    faults += [fault for job in overlay.of_kind("Job") for fault in _compiled(job, documents)]
    pods = [pod for document in documents for pod in pods_of(document)]
    faults += [fault for document in overlay.documents for fault in _selectors(document, pods)]
    for service in overlay.ray_services:
        faults += _addresses(service, documents)
        faults += _paths(service, secrets)
    return faults


def _secrets(runbook: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the secrets that the runbook's commands make, with their keys."""
    for name, options in re.findall(r"create secret generic (\S+)((?:\s+(?:\\\n\s*)?--\S+)*)", runbook):
        yield name, set(re.findall(r"--from-(?:literal|file)=([\w.-]+)=", options))


def _source(volume: dict[str, Any], documents: Sequence[Document], secrets: dict[str, set[str]]) -> Iterator[str]:
    named = {(document["kind"], document["metadata"]["name"]) for document in documents}
    claim = volume.get("persistentVolumeClaim", {}).get("claimName")
    if claim and ("PersistentVolumeClaim", claim) not in named:
        yield f"there is no PersistentVolumeClaim {claim}"
    if (secret := volume.get("secret")) and secret["secretName"] not in secrets:
        yield f"the runbook makes no secret {secret['secretName']}"
    sources = [volume, *volume.get("projected", {}).get("sources", [])]
    for name in (source["configMap"]["name"] for source in sources if "configMap" in source):
        if ("ConfigMap", name) not in named and name not in KUBERNETES_OWN:
            yield f"there is no ConfigMap {name}"


def _container(container: dict[str, Any], volumes: set[str], secrets: dict[str, set[str]]) -> Iterator[str]:
    tag = container["image"].partition(":")[2]
    if not tag or tag == "latest":
        yield f"image {container['image']}: must have a tag, and not latest"
    for mount in container.get("volumeMounts", []):
        if mount["name"] not in volumes:
            yield f"volumeMounts: there is no volume {mount['name']}"
    for entry in container.get("env", []):
        yield from _secret_key(entry.get("valueFrom", {}), secrets)
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        action = container.get(probe, {})
        port = (action.get("httpGet") or action.get("tcpSocket") or {}).get("port")
        if isinstance(port, str) and port not in ports:
            yield f"{probe}: the container has no port {port}"


def _secret_key(source: dict[str, Any], secrets: dict[str, set[str]]) -> Iterator[str]:
    if (wanted := source.get("secretKeyRef")) and wanted["key"] not in secrets.get(wanted["name"], set()):
        yield f"the runbook makes no secret {wanted['name']} with the key {wanted['key']}"


def _ports(pod: Pod) -> set[Any]:
    """By name and by number."""
    ports = [port for container in pod.spec["containers"] for port in container.get("ports", [])]
    return {port["containerPort"] for port in ports} | {port["name"] for port in ports}


def _selectors(document: Document, pods: Sequence[Pod]) -> Iterator[str]:
    """Selectors that match no pod, and ports that none of those they match has."""
    where, spec = f"{document['kind']} {document['metadata']['name']}", document.get("spec", {})
    if document["kind"] == "Service":
        wanted, ports = spec["selector"], [port.get("targetPort", port["port"]) for port in spec["ports"]]
    elif document["kind"] == "PodDisruptionBudget":
        wanted, ports = spec["selector"]["matchLabels"], []
    elif document["kind"] == "NetworkPolicy":
        wanted = spec["podSelector"].get("matchLabels", {})
        ports = [port["port"] for rule in spec.get("ingress", []) for port in rule.get("ports", [])]
        rules = [*spec.get("ingress", []), *spec.get("egress", [])]
        peers = [peer for rule in rules for peer in (*rule.get("from", []), *rule.get("to", []))]
        for peer in peers:
            inside = peer.get("podSelector", {}).get("matchLabels", {})
            if "namespaceSelector" not in peer and not any(inside.items() <= pod.labels.items() for pod in pods):
                yield f"{where}: no pod has the labels {inside}"
    else:
        return
    matched = [pod for pod in pods if wanted.items() <= pod.labels.items()]
    if not matched:
        yield f"{where}: no pod has the labels {wanted}"
    for port in ports:
        if matched and not any(port in _ports(pod) for pod in matched):
            yield f"{where}: no pod that it selects has the port {port}"


def _addresses(service: Document, documents: Sequence[Document]) -> Iterator[str]:
    options = service["spec"]["rayClusterConfig"].get("gcsFaultToleranceOptions", {})
    offered = {
        f"redis://{document['metadata']['name']}:{port['port']}"
        for document in documents
        if document["kind"] == "Service"
        for port in document["spec"]["ports"]
    }
    if "redisAddress" in options and options["redisAddress"] not in offered:
        yield f"redisAddress: no service is at {options['redisAddress']}"


def _paths(service: Document, secrets: dict[str, set[str]]) -> Iterator[str]:
    """Yield what the graph reads as files, every pod with replicas must have."""
    if (graph := sound_graph_of(service)) is None:
        return
    for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        mounts = {mount["mountPath"]: mount for mount in pod["containers"][0]["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for name in PATHS:
            path = graph.args.get(name)
            if not path or "://" in path:
                continue
            folder = next((folder for folder in mounts if path == folder or path.startswith(f"{folder}/")), None)
            if folder is None:
                yield f"group {group['groupName']}: {name}: nothing is mounted where {path} is"
                continue
            secret = volumes[mounts[folder]["name"]].get("secret")
            if secret and path[len(folder) + 1 :] not in secrets.get(secret["secretName"], set()):
                yield f"{name}: the runbook makes no secret {secret['secretName']} with a key for {path}"


def _compiled(job: Document, documents: Sequence[Document]) -> Iterator[str]:
    """Yield a job compiles where the graph looks: the same path of the same folder, on the GPUs of the pool."""
    where, pod = f"Job {job['metadata']['name']}", job["spec"]["template"]["spec"]
    path = next((entry["value"] for entry in pod["containers"][0]["env"] if entry["name"] == "COMPILED"), None)
    for service in (document for document in documents if document["kind"] == "RayService"):
        if (graph := sound_graph_of(service)) and path != (looked := graph.args.get("compiled")):
            yield f"{where}: COMPILED: got {path}; must be {looked}, as in serve.yaml"
        pools = [group["template"]["spec"] for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]]
        if (own := _pool(pod)) not in map(_pool, pools):
            yield f"{where}: no worker group has its nodes and folder, {own}"


def _pool(pod: dict[str, Any]) -> tuple[dict[str, str], str | None]:
    mounts = {mount["mountPath"]: mount.get("subPath") for mount in pod["containers"][0]["volumeMounts"]}
    return pod.get("nodeSelector", {}), mounts.get("/models/compiled")
