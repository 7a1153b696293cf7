"""Helpers of the tests of spans: a provider for this process alone, and what is asked of its spans."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Span


class Recorder:
    """Keeps the spans that this process ends while it is set up."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @contextmanager
    def root(self, name: str = "root") -> Iterator[Span]:
        """Stand for Serve, whose span is there before any of this project's."""
        with self.provider.get_tracer("tests").start_as_current_span(name) as span:
            yield span

    @property
    def spans(self) -> list[ReadableSpan]:
        """Return the spans that have ended, in that order."""
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> ReadableSpan:
        """Return the only span of this name."""
        (span,) = [span for span in self.spans if span.name == name]
        return span


def set_up(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Set tracing up until the end of the test. OpenTelemetry lets a process do this only once, so no test does."""
    recorder = Recorder()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", recorder.provider)
    return recorder


def parent_of(span: ReadableSpan) -> int | None:
    """Return the id of the span that a span lies within, or None in the first of a trace."""
    return span.parent.span_id if span.parent else None


def id_of(span: ReadableSpan) -> int:
    """Return the id of a span."""
    assert span.context is not None
    return int(span.context.span_id)


def trace_of(span: ReadableSpan) -> int:
    """Return the id of a span's trace."""
    assert span.context is not None
    return int(span.context.trace_id)
