"""What is wrong with alerts, pod monitors and dashboards, before a cluster has them. The tests call `check`.

Expressions are parsed, and all that they name is looked up: our metrics in `serve.metrics`, Ray's in a list.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import promql_parser
from prometheus_client.utils import floatToGoString
from promql_parser import AggModifierType, AggregateExpr, Call, Expr, MatchOp, VectorSelector
from ray.serve.metrics import Counter, Gauge, Histogram

from serve import metrics

RUNBOOK = "k8s/README.md"
SEVERITIES = {"page", "ticket"}
ALERT_ANNOTATIONS = ("summary", "description", "runbook")

# What Ray appends to a name. The `_sum` of its histograms adds up the middles of buckets, so no expression may use it.
SUFFIXES = {Counter: ("_total",), Gauge: ("",), Histogram: ("_bucket", "_count")}
# Added by Ray Serve to our metrics, and by the Prometheus operator and our pod monitors to all.
RAY_LABELS = {"application", "deployment", "replica"}
TARGET_LABELS = {"namespace", "pod", "container", "endpoint", "instance", "job", "ray_io_cluster"}

# As Ray 2.60 exports them. Serve's: ray/serve/_private/{deployment_state,application_state}.py; the nodes':
# ray/dashboard/modules/reporter/reporter_agent.py. `up` is Prometheus' own.
RAY_METRICS = {
    "up",
    "ray_serve_application_status",
    "ray_serve_autoscaling_target_replicas",
    "ray_serve_deployment_replica_healthy",
    "ray_serve_deployment_status",
    "ray_serve_replica_startup_latency_ms_bucket",
    "ray_serve_replica_startup_latency_ms_count",
    "ray_node_cpu_utilization",
    "ray_node_gpus_utilization",
    "ray_node_gram_available",
    "ray_node_gram_used",
    "ray_node_mem_total",
    "ray_node_mem_used",
}

# What KubeRay puts on its pods (None: any value), and the ports that their containers name, by ray.io/node-type.
POD_LABELS: dict[str, set[str] | None] = {
    "ray.io/cluster": None,
    "ray.io/group": None,
    "ray.io/is-ray-node": {"yes"},
    "ray.io/node-type": {"head", "worker"},
}
PORTS = {"head": {"metrics", "as-metrics", "dash-metrics"}, "worker": {"metrics"}}
META_LABEL = "__meta_kubernetes_pod_label_"

# The fields of monitoring.coreos.com/v1 that may stand at each place; deeper ones are not looked at.
FIELDS = {
    "PodMonitor": {
        "spec": {"attachMetadata", "jobLabel", "namespaceSelector", "podMetricsEndpoints", "podTargetLabels"}
        | {"sampleLimit", "scrapeClass", "scrapeProtocols", "selector", "targetLimit"},
        "spec.selector": {"matchExpressions", "matchLabels"},
        "spec.namespaceSelector": {"any", "matchNames"},
        "spec.podMetricsEndpoints": {"authorization", "filterRunning", "honorLabels", "honorTimestamps", "interval"}
        | {"metricRelabelings", "params", "path", "port", "relabelings", "scheme", "scrapeTimeout", "tlsConfig"},
        "spec.podMetricsEndpoints.relabelings": {"action", "modulus", "regex", "replacement", "separator"}
        | {"sourceLabels", "targetLabel"},
    },
    "PrometheusRule": {
        "spec": {"groups"},
        "spec.groups": {"interval", "labels", "limit", "name", "query_offset", "rules"},
        "spec.groups.rules": {"alert", "annotations", "expr", "for", "keep_firing_for", "labels", "record"},
    },
}


@dataclass(frozen=True)
class MetricSeries:
    """What the series of one name may have: labels, and as `le` the bounds of buckets, as Ray writes them."""

    labels: frozenset[str]
    bounds: frozenset[str] = frozenset()


@dataclass(frozen=True)
class MetricNames:
    """What expressions may name: series of ours, of which labels and buckets are known, and others, by name alone."""

    ours: Mapping[str, MetricSeries]
    others: set[str]


def our_series() -> dict[str, MetricSeries]:
    """Return what `serve.metrics` exports, by the names that Prometheus reads."""
    found = {}
    for make in vars(metrics).values():
        kind = getattr(make, "__annotations__", {}).get("return")
        if kind not in SUFFIXES:
            continue
        metric = make()
        labels = frozenset({*metric.info["tag_keys"], *RAY_LABELS, *TARGET_LABELS})
        for suffix in SUFFIXES[kind]:
            bounds = {floatToGoString(bound) for bound in metric.boundaries} | {"+Inf"} if suffix == "_bucket" else ()
            le = {"le"} if bounds else set()
            found[f"ray_{metric.info['name']}{suffix}"] = MetricSeries(labels | le, frozenset(bounds))
    return found


def check(documents: Sequence[dict[str, Any]], dashboards: Sequence[dict[str, Any]], runbook: str) -> list[str]:
    """Return the faults, one line each, of rendered Kubernetes documents and Grafana dashboards.

    runbook: the text of k8s/README.md, with a heading for each alert.
    """
    rules = [rule for document in documents for rule in _rules(document)]
    names = MetricNames(our_series(), RAY_METRICS | {rule["record"] for rule in rules if "record" in rule})
    headings = {heading.strip().lower() for heading in re.findall(r"^#+ (.+)$", runbook, re.MULTILINE)}
    faults = [fault for document in documents for fault in _unknown_fields(document, document.get("kind", ""))]
    for document in documents:
        if document.get("kind") == "PodMonitor":
            faults += _monitor_faults(document)
    for rule in rules:
        faults += _rule_faults(rule, headings)
        faults += _expression_faults(_rule_name(rule), str(rule.get("expr", "")), names)
    for dashboard in dashboards:
        faults += _layout_faults(dashboard)
        for panel in _panels(dashboard):
            for target in panel.get("targets", []):
                name = f"panel {panel.get('title')!r}"
                faults += _expression_faults(name, _without_variables(target["expr"]), names)
    return faults


def _rules(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    if document.get("kind") != "PrometheusRule":
        return []
    return [rule for group in document["spec"].get("groups", []) for rule in group.get("rules", [])]


def _rule_name(rule: Mapping[str, Any]) -> str:
    return f"alert {rule['alert']}" if "alert" in rule else f"record {rule.get('record')}"


def _unknown_fields(document: dict[str, Any], kind: str) -> Iterator[str]:
    allowed = FIELDS.get(kind, {})

    def below(node: Any, path: str) -> Iterator[str]:
        if isinstance(node, list):
            for item in node:
                yield from below(item, path)
        elif isinstance(node, dict) and path in allowed:
            for key, value in node.items():
                if key not in allowed[path]:
                    yield f"{kind} {document['metadata']['name']}: {path} has no field {key!r}"
                yield from below(value, f"{path}.{key}")

    yield from below(document.get("spec"), "spec")


def _monitor_faults(document: dict[str, Any]) -> Iterator[str]:
    name, spec = f"PodMonitor {document['metadata']['name']}", document["spec"]
    selected = spec["selector"].get("matchLabels", {})
    for label, value in selected.items():
        if label not in POD_LABELS:
            yield f"{name}: KubeRay gives pods no label {label!r}"
        elif (values := POD_LABELS[label]) is not None and value not in values:
            yield f"{name}: the label {label!r} is never {value!r}"
    # Without a node type, the ports that all pods have.
    ports = PORTS.get(selected.get("ray.io/node-type"), set.intersection(*PORTS.values()))
    meta_labels = {META_LABEL + re.sub(r"\W", "_", label) for label in POD_LABELS}
    for endpoint in spec.get("podMetricsEndpoints", []):
        if endpoint.get("port") not in ports:
            yield f"{name}: its pods have no port {endpoint.get('port')!r}"
        for relabeling in endpoint.get("relabelings", []):
            for source in relabeling.get("sourceLabels", []):
                if source.startswith(META_LABEL) and source not in meta_labels:
                    yield f"{name}: KubeRay gives pods no label for {source!r}"


def _rule_faults(rule: Mapping[str, Any], headings: set[str]) -> Iterator[str]:
    name = _rule_name(rule)
    if ("alert" in rule) == ("record" in rule):
        yield f"{name}: a rule has either alert or record"
    if "alert" not in rule:
        return
    if (severity := rule.get("labels", {}).get("severity")) not in SEVERITIES:
        yield f"{name}: severity is {severity!r}, not one of {sorted(SEVERITIES)}"
    annotations = rule.get("annotations", {})
    for annotation in ALERT_ANNOTATIONS:
        if not annotations.get(annotation):
            yield f"{name}: no annotation {annotation!r}"
    anchor = rule["alert"].lower()
    if annotations.get("runbook", "") not in ("", f"{RUNBOOK}#{anchor}"):
        yield f"{name}: runbook is {annotations['runbook']!r}, not '{RUNBOOK}#{anchor}'"
    if anchor not in headings:
        yield f"{name}: {RUNBOOK} has no heading for it"


def _expression_faults(where: str, text: str, names: MetricNames) -> Iterator[str]:
    try:
        expression = promql_parser.parse(text)
    except ValueError as error:
        yield f"{where}: {error}: {text}"
        return
    for node in _nodes(expression):
        if isinstance(node, VectorSelector):
            yield from (f"{where}: {fault}" for fault in _selector_faults(node, names))
        elif isinstance(node, AggregateExpr):
            yield from (f"{where}: {fault}" for fault in _grouping_faults(node, names.ours))
        elif isinstance(node, Call) and node.func.name == "histogram_quantile" and not _keeps_le(node.args[1]):
            yield f"{where}: histogram_quantile of an aggregation without le: {text}"


def _nodes(expression: Expr) -> list[Any]:
    found: list[Any] = []
    promql_parser.walk(expression, found.append)
    return found


def _selector_faults(selector: VectorSelector, names: MetricNames) -> Iterator[str]:
    name = selector.name or ""
    if name not in names.ours:
        if name not in names.others:
            yield f"there is no metric {name!r}"
        return
    series = names.ours[name]
    for matcher in selector.matchers.matchers:
        if matcher.name not in series.labels:
            yield f"{name} has no label {matcher.name!r}"
        elif matcher.name == "le" and (matcher.op != MatchOp.Equal or matcher.value not in series.bounds):
            yield f"{name} has no bucket {matcher}"


def _grouping_faults(aggregate: AggregateExpr, ours: Mapping[str, MetricSeries]) -> Iterator[str]:
    named = [node.name or "" for node in _nodes(aggregate.expr) if isinstance(node, VectorSelector)]
    names = [name for name in named if name in ours]
    if names and aggregate.modifier is not None:
        known = frozenset().union(*(ours[name].labels for name in names))
        for label in aggregate.modifier.labels:
            if label not in known:
                yield f"{' and '.join(names)} cannot be grouped by {label!r}"


def _keeps_le(expression: Expr) -> bool:
    for node in _nodes(expression):
        if isinstance(node, AggregateExpr):
            modifier = node.modifier
            kept = modifier is not None and (modifier.type == AggModifierType.By) == ("le" in modifier.labels)
            if not kept:
                return False
    return True


def _without_variables(expression: str) -> str:
    """Return the expression with Grafana's variables replaced by a duration in brackets and a number elsewhere."""
    return re.sub(r"\$\w+", "1", re.sub(r"\[\$\w+\]", "[5m]", expression))


def _panels(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [each for panel in dashboard["panels"] for each in (panel, *panel.get("panels", []))]


def _layout_faults(dashboard: Mapping[str, Any]) -> Iterator[str]:
    name = f"dashboard {dashboard.get('title')!r}"
    if not dashboard.get("uid"):
        yield f"{name}: no uid"
    if "datasource" not in {each["type"] for each in dashboard.get("templating", {}).get("list", [])}:
        yield f"{name}: no variable for the datasource"
    for one, other in itertools.combinations(_panels(dashboard), 2):
        if one["id"] == other["id"]:
            yield f"{name}: {one['title']!r} and {other['title']!r} have the same id"
        if _overlap(one["gridPos"], other["gridPos"]):
            yield f"{name}: {one['title']!r} and {other['title']!r} overlap"


def _overlap(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    return all(
        one[start] < other[start] + other[size] and other[start] < one[start] + one[size]
        for start, size in (("x", "w"), ("y", "h"))
    )
