"""Whether what documents name is there: labels, ports, services, volumes, secrets and their keys, paths, images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from k8s.checks.overlay import Document, Overlay, graph_of

# Made by Kubernetes itself in every namespace.
KUBERNETES_OWN = {"kube-root-ca.crt"}
PATHS = ("bundle", "catalogue", "compiled", "api_keys", "catalogue_keys")


def check(overlay: Overlay, parents: Sequence[Document], runbook: str) -> list[str]:
    """parents: documents that are there when the overlay's are applied. runbook: says how the secrets are made."""
    documents = [*overlay.documents, *parents]
    secrets = dict(_secrets(runbook))
    faults = []
    for where, template in overlay.pods():
        spec = template["spec"]
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        for volume in volumes.values():
            faults += [f"{where}: volume {volume['name']}: {fault}" for fault in _source(volume, documents, secrets)]
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            faults += [f"{where}: {fault}" for fault in _container(container, volumes, secrets)]
    faults += [fault for job in overlay.of_kind("Job") for fault in _compiled(job, documents)]
    labels = [labelled for document in documents for labelled in _labels(document)]
    faults += [fault for document in overlay.documents for fault in _selectors(document, labels)]
    for service in overlay.ray_services:
        faults += _addresses(service, documents)
        faults += _paths(service, secrets)
    return faults


def _secrets(runbook: str) -> Iterator[tuple[str, set[str]]]:
    """The secrets that the runbook's commands make, with their keys."""
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


def _container(container: dict[str, Any], volumes: dict[str, Any], secrets: dict[str, set[str]]) -> Iterator[str]:
    tag = container["image"].partition(":")[2]
    if not tag or tag == "latest":
        yield f"image {container['image']}: must have a tag, and not latest"
    for mount in container.get("volumeMounts", []):
        if mount["name"] not in volumes and mount["name"] != "data":
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


def _labels(document: Document) -> Iterator[tuple[dict[str, str], set[Any]]]:
    """The labels of each pod of a document, with those that KubeRay adds, and its ports by name and number."""
    if document["kind"] == "RayService":
        cluster = document["spec"]["rayClusterConfig"]
        yield _of_pod(cluster["headGroupSpec"]["template"], {"ray.io/node-type": "head", "ray.io/group": "headgroup"})
        for group in cluster.get("workerGroupSpecs", []):
            yield _of_pod(group["template"], {"ray.io/node-type": "worker", "ray.io/group": group["groupName"]})
    elif document["kind"] != "Pod" and "template" in document.get("spec", {}):
        yield _of_pod(document["spec"]["template"], {})


def _of_pod(template: Document, added: dict[str, str]) -> tuple[dict[str, str], set[Any]]:
    if added:
        added = added | {"ray.io/is-ray-node": "yes"}
    ports = [port for container in template["spec"]["containers"] for port in container.get("ports", [])]
    numbers = {port["containerPort"] for port in ports} | {port["name"] for port in ports}
    return template["metadata"].get("labels", {}) | added, numbers


def _selectors(document: Document, labels: list[tuple[dict[str, str], set[Any]]]) -> Iterator[str]:
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
            if "namespaceSelector" not in peer and not any(inside.items() <= each.items() for each, _ in labels):
                yield f"{where}: no pod has the labels {inside}"
    else:
        return
    matched = [has for each, has in labels if wanted.items() <= each.items()]
    if not matched:
        yield f"{where}: no pod has the labels {wanted}"
    for port in ports:
        if matched and not any(port in has for has in matched):
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
    """What the graph reads as files, every pod with replicas must have."""
    try:
        args = graph_of(service).args
    except ValueError:
        return  # `serving` says it better
    for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        mounts = {mount["mountPath"]: mount for mount in pod["containers"][0]["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for name in PATHS:
            path = args.get(name)
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
    """A job compiles where the graph looks: the same path of the same folder, on the GPUs of the pool."""
    where, pod = f"Job {job['metadata']['name']}", job["spec"]["template"]["spec"]
    path = next((entry["value"] for entry in pod["containers"][0]["env"] if entry["name"] == "COMPILED"), None)
    for service in (document for document in documents if document["kind"] == "RayService"):
        if path != (looked := graph_of(service).args.get("compiled")):
            yield f"{where}: COMPILED: got {path}; must be {looked}, as in serve.yaml"
        pools = [group["template"]["spec"] for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]]
        if (own := _pool(pod)) not in map(_pool, pools):
            yield f"{where}: no worker group has its nodes and folder, {own}"


def _pool(pod: dict[str, Any]) -> tuple[dict[str, str], str | None]:
    mounts = {mount["mountPath"]: mount.get("subPath") for mount in pod["containers"][0]["volumeMounts"]}
    return pod.get("nodeSelector", {}), mounts.get("/models/compiled")
