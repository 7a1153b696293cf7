"""The check that documents have the form that Kubernetes and KubeRay want: all fields are known and of their type.

The schema of RayService v1 is taken from the custom resource definition of KubeRay 1.7.0 (Apache-2.0), without its
descriptions. The definition's rules in CEL and the operator's checks in Go are not applied.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

from k8s.checks.overlay import Document, Overlay

KUBERNETES = "1.32"
RAY_SERVICE_SCHEMA = Path(__file__).with_name("rayservice-1.7.0.json.gz")
# The custom resources whose form `monitoring` checks.
ELSEWHERE = ("PodMonitor", "PrometheusRule")


def check(overlay: Overlay) -> list[str]:
    """Return the faults in the form of the documents, and the documents of an unknown kind."""
    faults = []
    for document in overlay.documents:
        kind, name = document["kind"], document["metadata"]["name"]
        if kind == "RayService":
            faults += [f"RayService {name}: {fault}" for fault in ray_service_faults(document)]
        elif kind not in ELSEWHERE:
            faults += [f"{kind} {name}: {fault}" for fault in core_faults(document)]
    return faults


def core_faults(document: Document) -> list[str]:
    """Return the first fault that kubernetes-validate finds in a document, if any."""
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{_path(error)}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError:
        return [f"apiVersion {document['apiVersion']}: Kubernetes {KUBERNETES} has no such kind"]
    return []


def ray_service_faults(document: Document) -> list[str]:
    """Return all faults of a RayService by KubeRay's schema, after filling in the defaults."""
    filled = _filled(document, _schema())
    errors = jsonschema.Draft202012Validator(_schema()).iter_errors(filled)
    return [f"{_path(error)}: {error.message}" for error in errors]


def stored() -> dict[str, Any]:
    """Return KubeRay's schema as it is stored."""
    schema: dict[str, Any] = json.loads(gzip.decompress(RAY_SERVICE_SCHEMA.read_bytes()))
    return schema


@cache
def _schema() -> dict[str, Any]:
    schema = stored()
    schema["properties"]["metadata"] = {"type": "object"}
    return _closed(schema)


def _closed(schema: Any) -> Any:
    """Return the schema in JSON Schema without the extensions of Kubernetes, and with unknown fields forbidden."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(part) for key, part in schema.items()}
    if closed.pop("x-kubernetes-int-or-string", False):
        closed["type"] = ["integer", "string"]
    open_ended = closed.pop("x-kubernetes-preserve-unknown-fields", False)
    if closed.get("type") == "object" and isinstance(closed.get("properties"), dict) and not open_ended:
        closed.setdefault("additionalProperties", False)
    return closed


def _filled(value: Any, schema: dict[str, Any]) -> Any:
    """Return the value as the API server stores it: without nulls, and with defaults for missing fields."""
    if isinstance(value, list):
        return [_filled(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties", {})
    additional = schema.get("additionalProperties")
    schema_of_others = additional if isinstance(additional, dict) else {}
    defaults = {key: part["default"] for key, part in properties.items() if "default" in part}
    given = {
        key: _filled(item, properties.get(key, schema_of_others)) for key, item in value.items() if item is not None
    }
    return defaults | given


def _path(error: Any) -> str:
    return ".".join(map(str, error.absolute_path)) or "the document"
