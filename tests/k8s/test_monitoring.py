"""The alerts, pod monitors and dashboard have no fault, and each kind of fault is found in a broken copy of them."""

import copy
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.checks.monitoring import check, our_series

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "k8s/components/monitoring"
RULE_TESTS = Path(__file__).parent / "alerts_test.yaml"
ALERTS, MONITORS, DASHBOARD = "alerts.yaml", "pod-monitors.yaml", "dashboard.json"
QUEUE = "sum by (le) (rate(ray_fashion_rag_queue_seconds_bucket[10m]))"
# This runbook has a heading for each alert, even if the real one does not.
RUNBOOK = "\n".join(f"### {name}" for name in re.findall(r"alert: (\w+)", (FOLDER / ALERTS).read_text()))


def faults(changed: str = "", old: str = "", new: str = "", runbook: str = RUNBOOK) -> list[str]:
    """Return the faults of the real files after replacing `old` by `new` in the file `changed`."""
    texts = {name: (FOLDER / name).read_text() for name in (ALERTS, MONITORS, DASHBOARD)}
    if changed:
        assert old in texts[changed]
        texts[changed] = texts[changed].replace(old, new, 1)
    documents = [document for name in (MONITORS, ALERTS) for document in yaml.safe_load_all(texts[name])]
    return check(documents, [json.loads(texts[DASHBOARD])], runbook)


def test_the_files_have_no_fault() -> None:
    assert faults() == []


def test_every_alert_has_its_place_in_the_runbook() -> None:
    assert faults(runbook=(ROOT / "k8s/README.md").read_text()) == []


def test_our_series_have_the_names_labels_and_bounds_that_ray_exports() -> None:
    series = our_series()
    assert "status" in series["ray_fashion_rag_edits_total"].labels
    assert {"0.001", "30.0", "300.0", "+Inf"} <= series["ray_fashion_rag_edit_seconds_bucket"].bounds
    assert "le" not in series["ray_fashion_rag_edit_seconds_count"].labels
    assert "ray_fashion_rag_rows_in_flight" in series
    assert "ray_fashion_rag_edit_seconds_sum" not in series


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("sum(rate(ray_fashion_rag_cache", "sum(rate((ray_fashion_rag_cache", "unclosed left parenthesis"),
        (
            "ray_fashion_rag_queue_seconds_bucket",
            "ray_fashion_rag_wait_seconds_bucket",
            "no metric 'ray_fashion_rag_wait",
        ),
        # A counter, a gauge and a histogram get suffixes of other kinds of metrics.
        ("ray_fashion_rag_retries_total", "ray_fashion_rag_retries", "no metric 'ray_fashion_rag_retries'"),
        (
            "ray_fashion_rag_rows_in_flight",
            "ray_fashion_rag_rows_in_flight_total",
            "no metric 'ray_fashion_rag_rows_in",
        ),
        ("ray_fashion_rag_step_seconds_count", "ray_fashion_rag_step_seconds_sum", "no metric 'ray_fashion_rag_step_"),
        ("ray_serve_application_status", "ray_serve_app_status", "no metric 'ray_serve_app_status'"),
        ("fashion_rag:refused_edits:ratio10m > ", "fashion_rag:refused:ratio10m > ", "no metric 'fashion_rag:refused:"),
        ('outcome="miss"', 'result="miss"', "ray_fashion_rag_cache_lookups_total has no label 'result'"),
        ("sum by (pod, replica) (ray", "sum by (pod, lane) (ray", "rows_in_flight cannot be grouped by 'lane'"),
        (QUEUE, QUEUE.replace("by (le) ", ""), "histogram_quantile of an aggregation without le"),
        (QUEUE, QUEUE.replace("by (le)", "by (pod)"), "histogram_quantile of an aggregation without le"),
        (QUEUE, QUEUE.replace("by (le)", "without (le)"), "histogram_quantile of an aggregation without le"),
        ('le="30.0"', 'le="20.0"', 'ray_fashion_rag_edit_seconds_bucket has no bucket le="20.0"'),
        ('le="30.0"', 'le="30"', 'ray_fashion_rag_edit_seconds_bucket has no bucket le="30"'),
        ("{severity: page}", "{severity: critical}", "severity is 'critical'"),
        ("labels: {severity: page}", "labels: {}", "severity is None"),
        (
            "summary: Edits are refused for",
            "note: Edits are refused for",
            "FashionRAGRefusing: no annotation 'summary'",
        ),
        ("description: One edit", "text: One edit", "FashionRAGQueueing: no annotation 'description'"),
        ("runbook: k8s/README.md#fashionragstuck", "url: x", "FashionRAGStuck: no annotation 'runbook'"),
        ("#fashionragstuck", "#fashionragstick", "FashionRAGStuck: runbook is"),
        ("alert: FashionRAGStuck", "alert: FashionRAGHangs", "FashionRAGHangs: k8s/README.md has no heading"),
        ("for: 20m", "during: 20m", "PrometheusRule fashion-rag: spec.groups.rules has no field 'during'"),
        ("interval: 30s", "every: 30s", "PrometheusRule fashion-rag: spec.groups has no field 'every'"),
        ("- alert: FashionRAGStuck", "- alert: FashionRAGStuck\n          record: a:b", "either alert or record"),
    ],
)
def test_faults_of_rules_are_found(old: str, new: str, fault: str) -> None:
    assert fault in "\n".join(faults(ALERTS, old, new))


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("port: as-metrics", "port: autoscaler", "fashion-rag-head: its pods have no port 'autoscaler'"),
        ("ray.io/node-type: head", "ray.io/node-type: worker", "fashion-rag-head: its pods have no port 'as-metrics'"),
        ("ray.io/node-type: head", "ray.io/kind: head", "KubeRay gives pods no label 'ray.io/kind'"),
        ("ray.io/node-type: head", "ray.io/node-type: leader", "the label 'ray.io/node-type' is never 'leader'"),
        ("label_ray_io_cluster", "label_ray_cluster", "no label for '__meta_kubernetes_pod_label_ray_cluster'"),
        ("podMetricsEndpoints:", "endpoints: []\n  podMetricsEndpoints:", "spec has no field 'endpoints'"),
        ("port: metrics", "port: metrics\n      every: 5s", "spec.podMetricsEndpoints has no field 'every'"),
        ("matchLabels:", "labels:", "spec.selector has no field 'labels'"),
        ("targetLabel: job", "target: job", "spec.podMetricsEndpoints.relabelings has no field 'target'"),
    ],
)
def test_faults_of_pod_monitors_are_found(old: str, new: str, fault: str) -> None:
    assert fault in "\n".join(faults(MONITORS, old, new))


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("sum by (status)", "sum by (code)", "panel 'Edits by status': ray_fashion_rag_edits_total cannot be grouped"),
        ("[$__rate_interval]", "[$__rate_interval", "panel 'Edits by status': "),
        ('"uid": "fashion-rag"', '"uid": ""', "dashboard 'Fashion-RAG': no uid"),
        ('"type": "datasource"', '"type": "custom"', "no variable for the datasource"),
        ('"id": 3,', '"id": 2,', "have the same id"),
        ('"x": 8,', '"x": 7,', "overlap"),
    ],
)
def test_faults_of_dashboards_are_found(old: str, new: str, fault: str) -> None:
    assert fault in "\n".join(faults(DASHBOARD, old, new))


def test_panels_inside_a_row_are_looked_at() -> None:
    dashboard: dict[str, Any] = json.loads((FOLDER / DASHBOARD).read_text())
    panel = copy.deepcopy(dashboard["panels"][1])
    panel["id"], panel["targets"][0]["expr"] = 99, "unheard_of"
    panel["gridPos"]["y"] = 1000
    dashboard["panels"][0]["panels"] = [panel]
    assert "there is no metric 'unheard_of'" in "\n".join(check([], [dashboard], ""))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Prometheus")
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    (document,) = yaml.safe_load_all((FOLDER / ALERTS).read_text())
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": document["spec"]["groups"]}))
    shutil.copy(RULE_TESTS, tmp_path)
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", RULE_TESTS.name]):
        ran = subprocess.run(["promtool", *command], cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
