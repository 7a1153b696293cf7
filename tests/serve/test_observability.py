"""Tests what an operator sees of the running graph: metrics by name, and logs that name the edit of each line."""

import json
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray

from serve.proxy.traced import TRACE_RESPONSE
from tests.serve.client import PATIENCE_S, edit, exported, total


def test_metrics_count_what_was_done(url: str) -> None:
    # At least so much more: what tests before this one have done may be reported only now.
    wanted = [
        ("fashion_rag_edits_total", {"status": "200"}, 2),
        ("fashion_rag_edits_total", {"status": "400"}, 1),
        ("fashion_rag_edit_seconds_count", {}, 2),
        ("fashion_rag_step_seconds_count", {}, 8),
        # Not its sum: Ray passes observations on as the middles of their buckets.
        ("fashion_rag_rows_per_step_count", {}, 8),
        ("fashion_rag_queue_seconds_count", {}, 2),
        ("fashion_rag_cache_lookups_total", {"outcome": "stored"}, 2),
        ("fashion_rag_first_preview_seconds_count", {}, 1),
    ] + [
        ("fashion_rag_stage_seconds_count", {"stage": stage}, 2)
        for stage in ("retrieve", "condition", "encode", "denoise", "decode")
    ]
    before = exported()
    edit(url, steps=4, garment_ids=["black-dress"]).raise_for_status()
    edit(url, steps=4, garment_ids=["black-dress"], stream="true", partial_images=1).raise_for_status()
    assert edit(url, category="hats").status_code == 400
    end = time.monotonic() + PATIENCE_S
    missing = wanted
    while missing and time.monotonic() < end:
        after = exported()
        missing = [
            (name, tags, number)
            for name, tags, number in wanted
            if total(after, name, **tags) - total(before, name, **tags) < number
        ]
        # Replicas report every few seconds, each at its own time.
        time.sleep(0.5)
    assert missing == []
    for gauge in ("fashion_rag_rows_in_flight", "fashion_rag_edits_waiting"):
        assert f"ray_{gauge}" in after
        assert total(after, gauge) == 0


def log_entries(request_id: str, wanted: set[str]) -> list[dict[str, Any]]:
    """Return the replicas' log lines of a request, once all of these deployments have logged something."""
    folder = Path(ray._private.worker.global_worker.node.get_session_dir_path()) / "logs" / "serve"
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        lines = [line for path in folder.glob("replica_*.log") for line in path.read_text().splitlines()]
        entries = [json.loads(line) for line in lines if request_id in line]
        if wanted <= {deployment(entry) for entry in entries}:
            return entries
    pytest.fail(f"not all of {wanted} logged the request")


def deployment(entry: dict[str, Any]) -> str:
    return str(entry["deployment"]).removeprefix("fashion-rag_")


def test_logs_are_json_and_bear_the_request_id(url: str) -> None:
    request_id = uuid.uuid4().hex
    edit(url, headers={"x-request-id": request_id}).raise_for_status()
    entries = log_entries(request_id, {"Ingress", "Retriever", "Conditioner", "Denoiser", "VAE"})
    assert all(entry["request_id"] == request_id for entry in entries)


def test_what_is_the_callers_fault_takes_a_line_in_each_replica_and_no_traceback(url: str) -> None:
    of_garment, of_edit = uuid.uuid4().hex, uuid.uuid4().hex
    # A replica also logs that it makes a handle, at the first call through it.
    httpx.get(f"{url}/v1/garments/red-dress", timeout=PATIENCE_S).raise_for_status()
    reply = httpx.get(f"{url}/v1/garments/no-such", headers={"x-request-id": of_garment}, timeout=PATIENCE_S)
    assert reply.status_code == 404
    assert edit(url, headers={"x-request-id": of_edit}, garment_ids=["no-such"]).status_code == 400
    entries = log_entries(of_garment, {"Ingress", "Retriever"})
    assert sorted(map(deployment, entries)) == ["Ingress", "Retriever"]
    entries += log_entries(of_edit, {"Ingress", "Retriever", "Conditioner", "Denoiser"})
    assert "Traceback" not in json.dumps(entries)


def test_a_graph_that_does_not_trace_answers_without_a_trace(url: str) -> None:
    sent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    reply = httpx.get(f"{url}/v1/models", headers=sent, timeout=PATIENCE_S).raise_for_status()
    assert TRACE_RESPONSE not in reply.headers
