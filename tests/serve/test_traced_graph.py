"""Tests the traces of a graph that is started as an operator starts it: one trace an edit, over all replicas."""

import json
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from serve import tracing
from serve.bench.budget import KINDS
from serve.bench.spans import Collector, TracedSpan, collector
from serve.bench.traced import exported_to
from serve.config_file import Graph
from serve.ports import free_port
from serve.proxy.traced import TRACE_RESPONSE
from tests.serve.client import PATIENCE_S, edit, form
from tests.serve.test_start import command, interrupt, options_of
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

STEPS = 3
# Far more than a test waits for.
MANY_STEPS = 900
# Of the spans of an edit whose mask, key points and category are given, the span that each lies within. The VAE also
# completes the request.
WITHIN = {
    "POST": "",
    "proxy_http_request Ingress POST /v1/images/edits": "POST",
    "route_to_replica Ingress __call__": "proxy_http_request Ingress POST /v1/images/edits",
    "replica_handle_request Ingress __call__": "route_to_replica Ingress __call__",
    "read form": "replica_handle_request Ingress __call__",
    "open pictures": "replica_handle_request Ingress __call__",
    "put request": "replica_handle_request Ingress __call__",
    "call denoise": "replica_handle_request Ingress __call__",
    "complete request": "replica_handle_request Ingress __call__",
    "call decode": "replica_handle_request Ingress __call__",
    "paste": "replica_handle_request Ingress __call__",
    "write reply": "replica_handle_request Ingress __call__",
    "encode png": "write reply",
    "route_to_replica Denoiser denoise": "call denoise",
    "replica_handle_request Denoiser denoise": "route_to_replica Denoiser denoise",
    "call condition": "replica_handle_request Denoiser denoise",
    "route_to_replica Conditioner condition": "call condition",
    "replica_handle_request Conditioner condition": "route_to_replica Conditioner condition",
    "call retrieve": "replica_handle_request Conditioner condition",
    "route_to_replica Retriever retrieve": "call retrieve",
    "replica_handle_request Retriever retrieve": "route_to_replica Retriever retrieve",
    "wait for a batch of retrieve": "replica_handle_request Retriever retrieve",
    "batch of retrieve": "replica_handle_request Retriever retrieve",
    "wait for a batch of condition": "replica_handle_request Conditioner condition",
    "batch of condition": "replica_handle_request Conditioner condition",
    "call encode": "replica_handle_request Denoiser denoise",
    "route_to_replica VAE encode": "call encode",
    "replica_handle_request VAE encode": "route_to_replica VAE encode",
    "wait for a batch of encode": "replica_handle_request VAE encode",
    "batch of encode": "replica_handle_request VAE encode",
    "denoise": "replica_handle_request Denoiser denoise",
    "wait for the first step": "denoise",
    "route_to_replica VAE decode": "call decode",
    "replica_handle_request VAE decode": "route_to_replica VAE decode",
    "wait for a batch of decode": "replica_handle_request VAE decode",
    "batch of decode": "replica_handle_request VAE decode",
}


class Traced(NamedTuple):
    """A running graph and what collects its spans."""

    url: str
    collecting: Collector

    def spans(self, headers: dict[str, str]) -> list[TracedSpan]:
        """Return the spans of the request that was sent with these headers."""
        _, trace_id, caller_id, _ = headers["traceparent"].split("-")
        return self.collecting.trace(trace_id, caller_id, PATIENCE_S)


def traceparent() -> dict[str, str]:
    return {"traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"}


@pytest.fixture(scope="module")
def traced(
    tiny_bundle: Path, tiny_catalogue: Path, onnx_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Traced]:
    folder, port = tmp_path_factory.mktemp("traced"), free_port()
    args = {"bundle": str(tiny_bundle), "catalogue": str(tiny_catalogue), "compiled": str(onnx_folder)}
    graph = Graph(args | {"backend": "onnx", "ingress": {"deadline_s": 3600.0}}, [])
    url = f"http://127.0.0.1:{port}"
    with (
        collector() as collecting,
        exported_to(collecting.url),
        command(folder, *options_of(graph, folder, port), "--traced") as process,
    ):
        wait_for(lambda: process.poll() is not None or _is_ready(url))
        assert process.poll() is None, (folder / "err").read_text()
        yield Traced(url, collecting)
        assert interrupt(process) == 0


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=PATIENCE_S).is_success
    except httpx.TransportError:
        return False


ALL = Counter(WITHIN.items()) + Counter([("complete request", "replica_handle_request VAE encode")])


def parents(spans: list[TracedSpan]) -> Counter[tuple[str, str]]:
    """Count the spans by their name and the name of the one that they lie within; "" for the caller's."""
    names = {span.id: span.name for span in spans}
    return Counter((span.name, names.get(span.parent_id, "")) for span in spans)


def keypoints() -> str:
    return json.dumps([[20.0, 20.0]] * 18)


def errors(spans: list[TracedSpan]) -> dict[str, str]:
    return {span.name: span.error for span in spans if span.error}


def test_an_edit_is_one_trace_over_all_replicas(traced: Traced) -> None:
    headers = traceparent()
    reply = edit(traced.url, headers, steps=STEPS, category="dresses", keypoints=keypoints()).raise_for_status()
    spans = traced.spans(headers)
    assert parents(spans) == ALL
    assert errors(spans) == {}
    (root,) = [span for span in spans if span.name == "POST"]
    _, trace_id, caller_id, _ = headers["traceparent"].split("-")
    assert root.parent_id == caller_id
    assert reply.headers[TRACE_RESPONSE] == f"00-{trace_id}-{root.id}-01"
    (denoise,) = [span for span in spans if span.name == "denoise"]
    assert [event.attributes["step"] for event in denoise.events] == list(range(1, STEPS + 1))
    assert all(
        0 < event.attributes["seconds"] * 1e9 <= denoise.ended_ns - denoise.started_ns for event in denoise.events
    )


def test_a_stream_is_one_trace_to_its_end(traced: Traced) -> None:
    headers = traceparent()
    changes = {"steps": STEPS, "keypoints": keypoints(), "stream": "true", "partial_images": 1}
    edit(traced.url, headers, **changes).raise_for_status()
    spans = traced.spans(headers)
    assert set(WITHIN) - {span.name for span in spans} == {"write reply"}
    assert Counter(span.name for span in spans)["encode png"] == 2
    assert errors(spans) == {}


def test_edits_at_the_same_time_have_traces_of_their_own(traced: Traced) -> None:
    all_headers = [traceparent() for _ in range(4)]
    with ThreadPoolExecutor(len(all_headers)) as threads:
        sent = [
            threads.submit(edit, traced.url, headers, steps=STEPS, seed=seed, keypoints=keypoints())
            for seed, headers in enumerate(all_headers)
        ]
    assert [reply.result().status_code for reply in sent] == [200] * len(all_headers)
    for headers in all_headers:
        spans = traced.spans(headers)
        assert parents(spans) == ALL
        (denoise,) = [span for span in spans if span.name == "denoise"]
        assert [event.attributes["step"] for event in denoise.events] == list(range(1, STEPS + 1))


def test_a_refused_edit_says_where_and_why(traced: Traced) -> None:
    headers = traceparent()
    assert edit(traced.url, headers, garment_ids=["no-such"]).status_code == 400
    spans = traced.spans(headers)
    failed = errors(spans)
    for name in ("batch of retrieve", "call retrieve", "call condition", "call denoise"):
        assert failed[name] == "InvalidRequest"
    statuses = {span.attributes.get(tracing.STATUS_CODE) for span in spans if span.name == "POST"}
    assert statuses == {400}


def test_a_caller_who_leaves_ends_all_spans(traced: Traced) -> None:
    headers = traceparent()
    parts = form(steps=MANY_STEPS, keypoints=keypoints(), stream="true", partial_images=3)
    address = f"{traced.url}/v1/images/edits"
    with httpx.stream("POST", address, headers=headers, timeout=PATIENCE_S, **parts) as reply:
        # The first preview comes after a quarter of the steps.
        assert b"partial_image" in next(reply.iter_bytes())
    spans = traced.spans(headers)
    failed = errors(spans)
    assert failed["POST"] == "ClientDisconnect"
    assert failed["call denoise"] == failed["denoise"] == "CancelledError"
    (denoise,) = [span for span in spans if span.name == "denoise"]
    assert max(event.attributes["step"] for event in denoise.events) < MANY_STEPS
    assert "batch of decode" not in {span.name for span in spans}


def test_the_command_says_where_the_time_of_an_edit_goes(tiny_bundle: Path, tmp_path: Path) -> None:
    program = "from fashion_rag.cli import app; app()"
    options = ("--bundle", str(tiny_bundle), "--steps", str(STEPS), "--edits", "2", "--warm-up", "1")
    files = ("--out", str(tmp_path / "trace.json"), "--plot", str(tmp_path / "trace.png"))
    arguments = [sys.executable, "-c", program, "trace", *options, *files, "--backend", "torch"]
    ran = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert all(kind in ran.stdout for kind in KINDS)
    assert f"denoise ({STEPS} steps)" in ran.stdout
    result = json.loads((tmp_path / "trace.json").read_text())
    assert (result["num_steps"], result["num_edits"], len(result["edits"])) == (STEPS, 2, 2)
    mean_ms = sum(traced_edit["ms"] for traced_edit in result["edits"]) / 2
    assert sum(result["budget_ms"].values()) == pytest.approx(mean_ms)
    assert sum(part["ms"] for part in result["parts"]) == pytest.approx(mean_ms)
    assert result["budget_ms"]["network"] > 0
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")
