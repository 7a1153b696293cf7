"""The check that everything exists that documents name: labels, ports, services, volumes, secrets, paths and images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from k8s.checks.overlay import Document, Overlay, Pod, pods_of, sound_graph_of

# The config maps that Kubernetes itself makes in every namespace.
KUBERNETES_OWN = {"kube-root-ca.crt"}
# The arguments of the graph that are paths in its pods.
PATHS = ("bundle", "catalogue", "compiled", "api_keys", "catalogue_keys")


def check(overlay: Overlay, parents: Sequence[Document], runbook: str) -> list[str]:
    """Return the references of an overlay to things that do not exist.

    parents: the documents that are applied before those of the overlay. runbook: the text with the commands that make
    the secrets.
    """
    documents = [*overlay.documents, *parents]
    secrets = dict(_secrets(runbook))
    faults = []
    for pod in overlay.pods:
        volumes = pod.spec.get("volumes", [])
        for volume in volumes:
            for fault in _source(volume, documents, secrets):
                faults.append(f"{pod.where}: volume {volume['name']}: {fault}")
        names = {volume["name"] for volume in volumes} | pod.claims
        for container in [*pod.spec["containers"], *pod.spec.get("initContainers", [])]:
            faults += [f"{pod.where}: {fault}" for fault in _container(container, names, secrets)]
    for job in overlay.of_kind("Job"):
        faults += _compiled(job, documents)
    pods: list[Pod] = []
    for document in documents:
        pods += pods_of(document)
    for document in overlay.documents:
        faults += _selectors(document, pods)
    for service in overlay.ray_services:
        faults += _addresses(service, documents)
        faults += _paths(service, secrets)
    return faults


def _secrets(runbook: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the name and the keys of each secret that the runbook's commands make."""
    for name, options in re.findall(r"create secret generic (\S+)((?:\s+(?:\\\n\s*)?--\S+)*)", runbook):
        yield name, set(re.findall(r"--from-(?:literal|file)=([\w.-]+)=", options))


def _source(volume: dict[str, Any], documents: Sequence[Document], secrets: dict[str, set[str]]) -> Iterator[str]:
    """Yield the sources of a volume that do not exist."""
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
    """Yield the faults in the image, mounts, environment and probes of a container."""
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
    reference = source.get("secretKeyRef")
    if reference and reference["key"] not in secrets.get(reference["name"], set()):
        yield f"the runbook makes no secret {reference['name']} with the key {reference['key']}"


def _ports(pod: Pod) -> set[Any]:
    """Return the names and the numbers of a pod's ports."""
    ports = [port for container in pod.spec["containers"] for port in container.get("ports", [])]
    return {port["containerPort"] for port in ports} | {port["name"] for port in ports}


def _selectors(document: Document, pods: Sequence[Pod]) -> Iterator[str]:
    """Yield the selectors of a document that match no pod, and its ports that none of the selected pods has."""
    where, spec = f"{document['kind']} {document['metadata']['name']}", document.get("spec", {})
    if document["kind"] == "Service":
        labels, ports = spec["selector"], [port.get("targetPort", port["port"]) for port in spec["ports"]]
    elif document["kind"] == "PodDisruptionBudget":
        labels, ports = spec["selector"]["matchLabels"], []
    elif document["kind"] == "NetworkPolicy":
        labels = spec["podSelector"].get("matchLabels", {})
        ports = [port["port"] for rule in spec.get("ingress", []) for port in rule.get("ports", [])]
        for peer in _peers(spec):
            peer_labels = peer.get("podSelector", {}).get("matchLabels", {})
            if "namespaceSelector" not in peer and not _having(peer_labels, pods):
                yield f"{where}: no pod has the labels {peer_labels}"
    else:
        return
    selected = _having(labels, pods)
    if not selected:
        yield f"{where}: no pod has the labels {labels}"
    for port in ports:
        if selected and not any(port in _ports(pod) for pod in selected):
            yield f"{where}: no pod that it selects has the port {port}"


def _peers(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the peers that the rules of a NetworkPolicy name."""
    for rule in (*spec.get("ingress", []), *spec.get("egress", [])):
        yield from rule.get("from", [])
        yield from rule.get("to", [])


def _having(labels: dict[str, str], pods: Sequence[Pod]) -> list[Pod]:
    """Return the pods that have all of the labels."""
    return [pod for pod in pods if labels.items() <= pod.labels.items()]


def _addresses(service: Document, documents: Sequence[Document]) -> Iterator[str]:
    """Yield a fault if no service has the Redis address of a RayService."""
    options = service["spec"]["rayClusterConfig"].get("gcsFaultToleranceOptions", {})
    offered = set()
    for document in documents:
        if document["kind"] == "Service":
            name = document["metadata"]["name"]
            offered |= {f"redis://{name}:{port['port']}" for port in document["spec"]["ports"]}
    if "redisAddress" in options and options["redisAddress"] not in offered:
        yield f"redisAddress: no service is at {options['redisAddress']}"


def _paths(service: Document, secrets: dict[str, set[str]]) -> Iterator[str]:
    """Yield the files that the graph reads and that the pods of a worker group do not have."""
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
    """Yield the ways in which a job that compiles does not fit the graph.

    It must write to the path that the graph reads, in the same folder of the volume, and run on the nodes of a group.
    """
    where, pod = f"Job {job['metadata']['name']}", job["spec"]["template"]["spec"]
    path = next((entry["value"] for entry in pod["containers"][0]["env"] if entry["name"] == "COMPILED"), None)
    for service in (document for document in documents if document["kind"] == "RayService"):
        graph = sound_graph_of(service)
        if graph and path != graph.args.get("compiled"):
            yield f"{where}: COMPILED: got {path}; must be {graph.args.get('compiled')}, as in serve.yaml"
        groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        nodes_and_folder = _nodes_and_folder(pod)
        if nodes_and_folder not in [_nodes_and_folder(group["template"]["spec"]) for group in groups]:
            yield f"{where}: no worker group has its nodes and folder, {nodes_and_folder}"


def _nodes_and_folder(pod: dict[str, Any]) -> tuple[dict[str, str], str | None]:
    """Return the node selector of a pod, and the folder of the volume that it has at /models/compiled."""
    mounts = {mount["mountPath"]: mount.get("subPath") for mount in pod["containers"][0]["volumeMounts"]}
    return pod.get("nodeSelector", {}), mounts.get("/models/compiled")
