"""The check of alerts, pod monitors and dashboards, which needs no cluster.

Expressions are parsed, and everything that they name is looked up: our metrics in `serve.metrics`, Ray's in a list.
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

# What Ray appends to the name of a metric. The `_sum` of histograms is missing, so that no expression can use it: Ray
# adds up the middles of buckets in it.
SUFFIXES = {Counter: ("_total",), Gauge: ("",), Histogram: ("_bucket", "_count")}
# The labels that Ray Serve adds to our metrics, and those that all metrics get from the Prometheus operator and our pod
# monitors.
RAY_LABELS = {"application", "deployment", "replica"}
TARGET_LABELS = {"namespace", "pod", "container", "endpoint", "instance", "job", "ray_io_cluster"}

# The names under which Ray 2.60 exports its metrics. Those of Serve are in
# ray/serve/_private/{deployment_state,application_state}.py, and those of nodes in
# ray/dashboard/modules/reporter/reporter_agent.py. `up` is a metric of Prometheus itself.
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

# The labels that KubeRay gives its pods, with their values (None for any), and the ports that the containers name, by
# ray.io/node-type.
POD_LABELS: dict[str, set[str] | None] = {
    "ray.io/cluster": None,
    "ray.io/group": None,
    "ray.io/is-ray-node": {"yes"},
    "ray.io/node-type": {"head", "worker"},
}
PORTS = {"head": {"metrics", "as-metrics", "dash-metrics"}, "worker": {"metrics"}}
META_LABEL = "__meta_kubernetes_pod_label_"

# The fields that monitoring.coreos.com/v1 allows at each place. Fields below these are not checked.
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
    """The labels that the series of a metric may have, and the bounds of its buckets, as Ray writes them in `le`."""

    labels: frozenset[str]
    bounds: frozenset[str] = frozenset()


@dataclass(frozen=True)
class MetricNames:
    """The metrics that expressions may name: ours, with their labels and buckets, and the names of others."""

    ours: Mapping[str, MetricSeries]
    others: set[str]


def our_series() -> dict[str, MetricSeries]:
    """Return the series of the metrics in `serve.metrics`, by the names that Prometheus reads."""
    series = {}
    for make in vars(metrics).values():
        kind = getattr(make, "__annotations__", {}).get("return")
        if kind not in SUFFIXES:
            continue
        metric = make()
        name = f"ray_{metric.info['name']}"
        labels = frozenset({*metric.info["tag_keys"], *RAY_LABELS, *TARGET_LABELS})
        for suffix in SUFFIXES[kind]:
            if suffix == "_bucket":
                bounds = frozenset({*map(floatToGoString, metric.boundaries), "+Inf"})
                series[name + suffix] = MetricSeries(labels | {"le"}, bounds)
            else:
                series[name + suffix] = MetricSeries(labels)
    return series


def check(documents: Sequence[dict[str, Any]], dashboards: Sequence[dict[str, Any]], runbook: str) -> list[str]:
    """Return the faults of rendered Kubernetes documents and Grafana dashboards, one line each.

    runbook: the text of k8s/README.md, which must have a heading for each alert.
    """
    rules = [rule for document in documents for rule in _rules(document)]
    names = MetricNames(our_series(), RAY_METRICS | {rule["record"] for rule in rules if "record" in rule})
    headings = {heading.strip().lower() for heading in re.findall(r"^#+ (.+)$", runbook, re.MULTILINE)}
    faults: list[str] = []
    for document in documents:
        faults += _unknown_fields(document, document.get("kind", ""))
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
    """Return the rules of a document, if it is a PrometheusRule."""
    if document.get("kind") != "PrometheusRule":
        return []
    return [rule for group in document["spec"].get("groups", []) for rule in group.get("rules", [])]


def _rule_name(rule: Mapping[str, Any]) -> str:
    return f"alert {rule['alert']}" if "alert" in rule else f"record {rule.get('record')}"


def _unknown_fields(document: dict[str, Any], kind: str) -> Iterator[str]:
    """Yield the fields of a document that its kind does not have."""
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
    """Yield the labels and ports of a pod monitor that the pods of KubeRay do not have."""
    name, spec = f"PodMonitor {document['metadata']['name']}", document["spec"]
    selected = spec["selector"].get("matchLabels", {})
    for label, value in selected.items():
        if label not in POD_LABELS:
            yield f"{name}: KubeRay gives pods no label {label!r}"
        elif (values := POD_LABELS[label]) is not None and value not in values:
            yield f"{name}: the label {label!r} is never {value!r}"
    # Without a node type, the monitor may use only the ports that all pods have.
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
    """Yield the faults in the severity, annotations and runbook entry of a rule."""
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
    """Yield the faults of an expression. where: names the rule or panel that has it."""
    try:
        expression = promql_parser.parse(text)
    except ValueError as error:
        yield f"{where}: {error}: {text}"
        return
    for node in _nodes(expression):
        if isinstance(node, VectorSelector):
            for fault in _selector_faults(node, names):
                yield f"{where}: {fault}"
        elif isinstance(node, AggregateExpr):
            for fault in _grouping_faults(node, names.ours):
                yield f"{where}: {fault}"
        elif isinstance(node, Call) and node.func.name == "histogram_quantile" and not _keeps_le(node.args[1]):
            yield f"{where}: histogram_quantile of an aggregation without le: {text}"


def _nodes(expression: Expr) -> list[Any]:
    """Return the parts of an expression, itself included."""
    nodes: list[Any] = []
    promql_parser.walk(expression, nodes.append)
    return nodes


def _selector_faults(selector: VectorSelector, names: MetricNames) -> Iterator[str]:
    """Yield the metric, labels and buckets of a selector that do not exist."""
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
    """Yield the labels of an aggregation that none of its metrics has, as far as they are ours."""
    selectors = [node for node in _nodes(aggregate.expr) if isinstance(node, VectorSelector)]
    names = [selector.name for selector in selectors if selector.name and selector.name in ours]
    if names and aggregate.modifier is not None:
        known = frozenset().union(*(ours[name].labels for name in names))
        for label in aggregate.modifier.labels:
            if label not in known:
                yield f"{' and '.join(names)} cannot be grouped by {label!r}"


def _keeps_le(expression: Expr) -> bool:
    """Return whether all aggregations in an expression keep the label `le`."""
    for node in _nodes(expression):
        if isinstance(node, AggregateExpr):
            modifier = node.modifier
            kept = modifier is not None and (modifier.type == AggModifierType.By) == ("le" in modifier.labels)
            if not kept:
                return False
    return True


def _without_variables(expression: str) -> str:
    """Return the expression with a duration for each Grafana variable in brackets, and a number for any other."""
    return re.sub(r"\$\w+", "1", re.sub(r"\[\$\w+\]", "[5m]", expression))


def _panels(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the panels of a dashboard, with those inside rows."""
    panels = []
    for panel in dashboard["panels"]:
        panels += [panel, *panel.get("panels", [])]
    return panels


def _layout_faults(dashboard: Mapping[str, Any]) -> Iterator[str]:
    """Yield the faults in the uid and the variables of a dashboard, and in the ids and places of its panels."""
    name = f"dashboard {dashboard.get('title')!r}"
    if not dashboard.get("uid"):
        yield f"{name}: no uid"
    variables = dashboard.get("templating", {}).get("list", [])
    if "datasource" not in {variable["type"] for variable in variables}:
        yield f"{name}: no variable for the datasource"
    for first, second in itertools.combinations(_panels(dashboard), 2):
        titles = f"{first['title']!r} and {second['title']!r}"
        if first["id"] == second["id"]:
            yield f"{name}: {titles} have the same id"
        if _overlap(first["gridPos"], second["gridPos"]):
            yield f"{name}: {titles} overlap"


def _overlap(first: Mapping[str, int], second: Mapping[str, int]) -> bool:
    """Return whether two places on a dashboard's grid share a part."""
    return all(
        first[start] < second[start] + second[size] and second[start] < first[start] + first[size]
        for start, size in (("x", "w"), ("y", "h"))
    )
