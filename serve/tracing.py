"""Traces of requests over all replicas, in OpenTelemetry. Stages, calls and the HTTP side make their spans here.

Ray Serve makes a span of every request in its proxy, of every call through a handle, and of every call in a replica,
and passes the trace on from one to the next. Where a node has ENVIRONMENT, Serve sets OpenTelemetry up with
`span_processors` in each of its processes. The spans of this module lie within those of Serve. A span is made only
for a request that Serve traces, so none is made while tracing is off.

This module has no state. What is current belongs to OpenTelemetry's context, which asyncio gives each task of its own.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import MutableHeaders

RATIO = "RAY_SERVE_TRACING_SAMPLING_RATIO"
# The environment of every node of a graph that traces. Serve 2.60 has an option beside it, `tracing_config`, which does
# not reach its proxies. Nor does Serve pass on that a request is left out of a sample: each replica would begin a trace
# of its own. So all requests are traced, and sampling is left to the collector.
ENVIRONMENT = {
    "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "serve.tracing.span_processors",
    RATIO: "1",
    "OTEL_SERVICE_NAME": "fashion-rag",
}
KIND = "fashion_rag.kind"
STATUS_CODE = "http.response.status_code"
# An event of a span: a UNet call that had an edit in it has ended. `seconds` says how long the call took.
STEP = "step"
# From this status on, an answer means that the edit was not made although the request was in order.
FIRST_FAILURE = 499

_TRACE_CONTEXT = TraceContextTextMapPropagator()

logger = logging.getLogger("ray.serve")


class Kind(StrEnum):
    """What the time of a span goes into, apart from the spans within it."""

    NETWORK = "network"
    IMAGE = "image"
    WAIT = "wait"
    HANDOVER = "hand-over"
    HTTP = "http"


def span_processors() -> list[SpanProcessor]:
    """Return what sends the spans of this process to an OTLP collector, as the OTEL_* variables say.

    Log a warning where Serve is to leave requests out.
    """
    # Imported here, because a process that does not trace needs no HTTP client.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    if float(os.environ.get(RATIO, 0)) != 1:
        logger.warning("traces will be in pieces: set %s to %s on every node", RATIO, ENVIRONMENT[RATIO])
    return [BatchSpanProcessor(OTLPSpanExporter())]


def is_set_up() -> bool:
    """Return whether Serve has set tracing up in this process."""
    return isinstance(trace.get_tracer_provider(), TracerProvider)


def _is_traced() -> bool:
    """Return whether this task works for a request that is traced, even if the span around it has ended."""
    return trace.get_current_span().get_span_context().trace_flags.sampled


@contextmanager
def span(name: str, kind: Kind, *, current: bool = True, **attributes: str | int | float) -> Iterator[Span]:
    """Give the block a span within the current one. Where there is none, yield one that takes nothing.

    current: whether spans made in the block lie within this one. It must be False in a generator, whose blocks may be
    left in another context than the one that entered them; see `within`. An error that leaves the block, a cancellation
    included, becomes the span's status.
    """
    if not _is_traced():
        yield INVALID_SPAN
        return
    opened = trace.get_tracer(__name__).start_span(name, attributes={KIND: kind, **attributes})
    with _ended(opened):
        if current:
            with within(opened):
                yield opened
        else:
            yield opened


@contextmanager
def _ended(opened: Span) -> Iterator[None]:
    """End the span with the block. An error that leaves the block becomes the span's status."""
    try:
        yield
    except BaseException as error:
        fail(opened, error)
        raise
    finally:
        opened.end()


def within(opened: Span) -> AbstractContextManager[Span]:
    """Have spans that are made in the block lie within this one, which stays open after it."""
    return trace.use_span(opened, end_on_exit=False, record_exception=False, set_status_on_exception=False)


def record(
    name: str, kind: Kind, started_ns: int, ended_ns: int, error: BaseException | None = None, **attributes: int
) -> None:
    """Make a span of what has happened between two times, in Unix time, within the current one."""
    if not _is_traced():
        return
    tracer = trace.get_tracer(__name__)
    recorded = tracer.start_span(name, attributes={KIND: kind, **attributes}, start_time=started_ns)
    if error is not None:
        fail(recorded, error)
    recorded.end(max(started_ns, ended_ns))


def event(name: str, **attributes: str | int | float) -> None:
    """Add an event to the current span, if there is one that has not ended."""
    current = trace.get_current_span()
    if current.is_recording():
        current.add_event(name, attributes)


def fail(failed: Span, error: BaseException) -> None:
    """Give a span the type of an error as its status. Messages stay out, since they may quote what a caller wrote."""
    kind = type(error).__name__
    failed.set_attribute("error.type", kind)
    failed.set_status(Status(StatusCode.ERROR, kind))


def answered(status_code: int, opened: Span | None = None) -> None:
    """Give a span, by default the current one, the HTTP status of its request's answer.

    As OpenTelemetry's conventions for servers have it, a status that is the caller's fault is no error of the span.
    """
    answering = opened or trace.get_current_span()
    if answering.is_recording():
        answering.set_attribute(STATUS_CODE, status_code)
        if status_code >= FIRST_FAILURE:
            answering.set_status(Status(StatusCode.ERROR, str(status_code)))


@contextmanager
def request_span(method: str, path: str, headers: MutableHeaders) -> Iterator[Span]:
    """Give a request its span: within the caller's trace where `headers` have a traceparent, else the first of a trace.

    `headers` get this span's traceparent in place of the caller's, so that Serve's spans lie within it. That the caller
    does not record its own part of the trace changes nothing here.
    """
    context = _TRACE_CONTEXT.extract(headers)
    parent = trace.get_current_span(context).get_span_context()
    if parent.is_valid:
        flags = TraceFlags(parent.trace_flags | TraceFlags.SAMPLED)
        sampled = SpanContext(parent.trace_id, parent.span_id, True, flags, parent.trace_state)
        context = trace.set_span_in_context(NonRecordingSpan(sampled), context)
    attributes = {KIND: Kind.HTTP, "http.request.method": method, "url.path": path}
    opened = trace.get_tracer(__name__).start_span(method, context, SpanKind.SERVER, attributes)
    _TRACE_CONTEXT.inject(headers, trace.set_span_in_context(opened))
    with _ended(opened):
        yield opened


def now_ns() -> int:
    """Return the time as spans have it: nanoseconds of Unix time."""
    return time.time_ns()
