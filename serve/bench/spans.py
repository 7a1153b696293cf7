"""The spans of traced edits: a collector that processes send them to by OTLP, and the form in which they are read.

`traced` runs the collector; `budget` and `waterfall` read the spans.
"""

import gzip
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

PATH = "/v1/traces"
# A trace to which nothing came for this long is whole. Processes send their spans ten times as often.
SETTLE_S = 1.0
EXPORT_EVERY_MS = 100


@dataclass(frozen=True)
class SpanEvent:
    """What happened at a time in a span, in nanoseconds of Unix time."""

    name: str
    at_ns: int
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class TracedSpan:
    """A span: its ids in hexadecimal, when it started and ended in nanoseconds of Unix time, and what is known of it.

    parent_id: "" in the first span of a trace. error: why it failed; "" where it did not.
    """

    id: str
    parent_id: str
    name: str
    started_ns: int
    ended_ns: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    events: Sequence[SpanEvent] = ()
    error: str = ""


class Collector:
    """Keeps the spans that processes send to `url`, by the id of their trace."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.spans: defaultdict[str, list[TracedSpan]] = defaultdict(list)
        self.last_came: dict[str, float] = {}

    def add(self, request: ExportTraceServiceRequest) -> None:
        """Keep the spans of a request."""
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for sent in scope.spans:
                    trace_id = sent.trace_id.hex()
                    self.spans[trace_id].append(_read(sent))
                    self.last_came[trace_id] = time.monotonic()

    def trace(self, trace_id: str, root_id: str, timeout_s: float = 60.0) -> list[TracedSpan]:
        """Return the spans of a trace, once the span below `root_id` and all parents are here and no more come.

        Raises RuntimeError if that does not happen in time.
        """
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            spans = list(self.spans[trace_id])
            ids = {root_id} | {span.id for span in spans}
            whole = any(span.parent_id == root_id for span in spans) and ids >= {span.parent_id for span in spans}
            if whole and time.monotonic() - self.last_came[trace_id] > SETTLE_S:
                return spans
            time.sleep(SETTLE_S / 10)
        raise RuntimeError(f"the spans of trace {trace_id} did not all come within {timeout_s:.0f} s")


@contextmanager
def collector() -> Iterator[Collector]:
    """Run a collector on a free port of this machine while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            collecting.add(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collecting = Collector(f"http://127.0.0.1:{server.server_port}{PATH}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collecting
        finally:
            server.shutdown()
            thread.join()


def _read(sent: trace_pb2.Span) -> TracedSpan:
    events = [SpanEvent(event.name, event.time_unix_nano, _attributes(event.attributes)) for event in sent.events]
    failed = sent.status.code == trace_pb2.Status.STATUS_CODE_ERROR
    return TracedSpan(
        id=sent.span_id.hex(),
        parent_id=sent.parent_span_id.hex(),
        name=sent.name,
        started_ns=sent.start_time_unix_nano,
        ended_ns=sent.end_time_unix_nano,
        attributes=_attributes(sent.attributes),
        events=events,
        error=(sent.status.message or "error") if failed else "",
    )


def _attributes(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    """Return attributes by name. The spans of this project and of Ray Serve have only plain values."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}
