"""Tests the spans of stages and calls in this process: their parents, their errors, and that off means none."""

import ast
import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, StatusCode
from ray.exceptions import ActorDiedError
from ray.serve._private.tracing_utils import _load_span_processors

from fashion_rag.errors import InvalidRequest
from serve import calls, tracing
from serve.batching import Outcome, in_batch, run_batch
from serve.http.replies import encode_picture
from serve.tracing import KIND, Kind
from tests.serve.test_calls import HANG, Response, asks
from tests.serve.tracing_tools import Recorder, id_of, parent_of, set_up, trace_of
from tests.test_imports import TREES

# A collector that hangs does so for no longer, so that work that waits for it fails a test instead of stopping it.
PATIENCE_S = 60.0


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setattr(calls, "FIRST_PAUSE_S", 0.0)
    return set_up(monkeypatch)


def double(numbers: Sequence[int]) -> list[int]:
    if any(number < 0 for number in numbers):
        raise InvalidRequest("number", min(numbers), "must be 0 or more")
    return [2 * number for number in numbers]


class Batches:
    """Stands for a method that `ray.serve.batch` decorates: it waits until `size` items are there."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.waiting: list[tuple[int, asyncio.Future[Outcome[int]]]] = []

    async def __call__(self, item: int) -> Outcome[int]:
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((item, future))
        if len(self.waiting) == self.size:
            outcomes = await run_batch(double, [item for item, _ in self.waiting])
            for (_, waiting), outcome in zip(self.waiting, outcomes, strict=True):
                waiting.set_result(outcome)
        return await future


async def work() -> None:
    """Do what this project makes spans of: a batch, calls, a picture, events, a status, a request."""
    await in_batch("double", Batches(1), 2)
    ask, _ = asks([ActorDiedError()], ["answer"])
    await calls.answer("stage", ask, time.time() + 60)
    ask, _ = asks([1, 2])
    assert [item async for item in calls.stream("stage", ask, time.time() + 60)] == [1, 2]
    encode_picture(np.zeros((2, 2, 3), np.uint8), "png", 100)
    tracing.event("event")
    tracing.answered(500)


def test_no_span_is_made_while_tracing_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "FIRST_PAUSE_S", 0.0)
    made: list[str] = []
    for kind in (ReadableSpan, NonRecordingSpan):
        monkeypatch.setattr(kind, "__init__", lambda self, *args, **options: made.append(type(self).__name__))
    asyncio.run(work())
    assert made == []
    with tracing.span("span", Kind.WAIT) as span:
        assert span is INVALID_SPAN


def test_the_same_work_makes_spans_while_tracing_is_on(recorder: Recorder) -> None:
    with recorder.root():
        asyncio.run(work())
    names = [span.name for span in recorder.spans]
    calls_made = ["call stage", "call stage"]
    assert names == ["wait for a batch of double", "batch of double", *calls_made, "encode png", "root"]
    kinds = [span.attributes.get(KIND) for span in recorder.spans[:-1] if span.attributes]
    assert kinds == [Kind.WAIT, Kind.NETWORK, Kind.HANDOVER, Kind.HANDOVER, Kind.IMAGE]
    root = recorder.named("root")
    assert {parent_of(span) for span in recorder.spans[:-1]} == {id_of(root)}
    assert [event.name for event in root.events] == ["event"]
    assert (root.status.status_code, root.attributes) == (StatusCode.ERROR, {tracing.STATUS_CODE: 500})
    # The replica that died costs no span of its own, but is seen.
    assert [event.name for event in recorder.spans[2].events] == ["call again"]


def test_what_is_done_after_the_span_around_it_has_ended_is_still_in_its_trace(recorder: Recorder) -> None:
    """A route ends while its stream is still being sent."""

    async def work_on() -> None:
        with recorder.root():
            later = asyncio.create_task(calls.answer("stage", asks(["answer"])[0], time.time() + 60))
        await later

    asyncio.run(work_on())
    assert [span.name for span in recorder.spans] == ["root", "call stage"]
    assert parent_of(recorder.named("call stage")) == id_of(recorder.named("root"))


def test_outside_of_a_recorded_span_nothing_is_recorded(recorder: Recorder) -> None:
    asyncio.run(work())
    assert recorder.spans == []


def test_only_one_module_makes_spans() -> None:
    makers = []
    for name, tree in TREES.items():
        called = {
            node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and hasattr(node.func, "attr")
        }
        if called & {"start_span", "start_as_current_span", "get_tracer"}:
            makers.append(name)
    assert makers == ["serve.tracing"]


@pytest.mark.parametrize("current", [True, False])
def test_spans_within_a_block_have_its_span_as_parent_unless_it_is_not_current(
    recorder: Recorder, current: bool
) -> None:
    with recorder.root():
        with tracing.span("outer", Kind.WAIT, current=current) as outer:
            with tracing.span("first", Kind.IMAGE):
                pass
            with tracing.within(outer), tracing.span("second", Kind.IMAGE):
                pass
        with tracing.span("after", Kind.IMAGE):
            pass
    expected = {"first": "outer" if current else "root", "second": "outer", "after": "root", "outer": "root"}
    parents = {name: parent_of(recorder.named(name)) for name in expected}
    assert parents == {name: id_of(recorder.named(parent)) for name, parent in expected.items()}


@pytest.mark.parametrize("current", [True, False])
@pytest.mark.parametrize(
    "error", [InvalidRequest("prompt", "secret words", "must be nice"), asyncio.CancelledError(), GeneratorExit()]
)
def test_an_error_or_cancellation_ends_a_span_with_its_type_alone(
    recorder: Recorder, error: BaseException, current: bool
) -> None:
    with recorder.root(), pytest.raises(type(error)), tracing.span("span", Kind.WAIT, current=current):
        raise error
    span = recorder.named("span")
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, type(error).__name__)
    assert span.attributes is not None and span.attributes["error.type"] == type(error).__name__
    assert "secret" not in span.to_json()


@pytest.mark.parametrize("make_call", [calls.answer, calls.stream])
def test_a_call_that_is_cancelled_ends_its_span(recorder: Recorder, make_call: Callable[..., Any]) -> None:
    response = Response([HANG])

    async def call() -> None:
        made = make_call("stage", lambda: response, time.time() + 60)
        if isinstance(made, AsyncGenerator):
            await anext(made)
        else:
            await made

    async def cancelled() -> None:
        with recorder.root():
            task = asyncio.create_task(call())
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(cancelled())
    assert response.cancelled
    assert recorder.named("call stage").status.description == "CancelledError"


def test_what_a_call_streams_may_be_read_in_another_context(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """An async generator runs in the context of whoever asks for its next item."""

    async def read() -> None:
        with recorder.root():
            ask, _ = asks([1, 2])
            items = calls.stream("stage", ask, time.time() + 60)
            first = await asyncio.create_task(anext(items))  # type: ignore[arg-type]
            with tracing.span("between", Kind.WAIT):
                pass
            assert (first, [item async for item in items]) == (1, [2])

    asyncio.run(read())
    assert parent_of(recorder.named("between")) == id_of(recorder.named("root"))
    # OpenTelemetry logs an error where a context is left by another than the one that entered it.
    assert caplog.records == []


def test_calls_are_made_within_the_span_of_the_call(recorder: Recorder) -> None:
    """Serve makes its own span when a handle is called, and passes on what is current then."""
    current: list[int] = []

    def ask() -> Response:
        current.append(trace.get_current_span().get_span_context().span_id)
        return Response(["answer"])

    async def make_calls() -> None:
        with recorder.root():
            await calls.answer("stage", ask, time.time() + 60)
            assert [item async for item in calls.stream("stage", ask, time.time() + 60)] == ["answer"]

    asyncio.run(make_calls())
    assert current == [id_of(span) for span in recorder.spans if span.name == "call stage"]


def test_edits_of_one_batch_have_spans_of_their_own(recorder: Recorder) -> None:
    async def edit(batches: Batches, number: int) -> int:
        with recorder.root(f"edit {number}"):
            return await in_batch("double", batches, number)

    async def edits() -> list[int]:
        batches = Batches(3)
        return await asyncio.gather(*(edit(batches, number) for number in range(3)))

    assert asyncio.run(edits()) == [0, 2, 4]
    for number in range(3):
        root = recorder.named(f"edit {number}")
        wait, batch = (span for span in recorder.spans if parent_of(span) == id_of(root))
        assert (wait.name, batch.name) == ("wait for a batch of double", "batch of double")
        assert {trace_of(wait), trace_of(batch)} == {trace_of(root)}
        assert batch.attributes is not None and batch.attributes["num_items"] == 3
        assert wait.end_time == batch.start_time
    assert len(recorder.spans) == 9


def test_an_item_that_fails_marks_its_own_batch_alone(recorder: Recorder) -> None:
    async def edit(batches: Batches, number: int) -> int:
        with recorder.root(f"edit {number}"):
            return await in_batch("double", batches, number)

    async def edits() -> list[int | BaseException]:
        batches = Batches(2)
        return await asyncio.gather(edit(batches, 1), edit(batches, -1), return_exceptions=True)

    good, bad = asyncio.run(edits())
    assert good == 2 and isinstance(bad, InvalidRequest)
    failed = {parent_of(span): span.status.description for span in recorder.spans if span.name == "batch of double"}
    assert failed == {id_of(recorder.named("edit 1")): None, id_of(recorder.named("edit -1")): "InvalidRequest"}


def test_who_joins_a_batch_under_way_has_not_waited_for_what_was_before(recorder: Recorder) -> None:
    async def join() -> None:
        async def under_way(item: int) -> Outcome[int]:
            return Outcome(item, started_ns=1, ended_ns=2 * time.time_ns(), num_items=1)

        with recorder.root():
            await in_batch("read", under_way, 7)

    asyncio.run(join())
    wait, batch = recorder.named("wait for a batch of read"), recorder.named("batch of read")
    root = recorder.named("root")
    assert root.start_time is not None and batch.start_time is not None
    assert wait.start_time == wait.end_time == batch.start_time >= root.start_time


@pytest.mark.parametrize(("status", "is_error"), [(200, False), (400, False), (429, False), (499, True), (503, True)])
def test_a_status_that_is_the_callers_fault_is_no_error(recorder: Recorder, status: int, is_error: bool) -> None:
    with recorder.root():
        tracing.answered(status)
    root = recorder.named("root")
    assert root.attributes == {tracing.STATUS_CODE: status}
    assert (root.status.status_code == StatusCode.ERROR) == is_error


def test_serve_can_load_what_sets_tracing_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    path, ratio, _ = tracing.ENVIRONMENT.values()
    monkeypatch.delenv(tracing.RATIO, raising=False)
    for processor in _load_span_processors(path, "unused"):
        processor.shutdown()
    assert "traces will be in pieces" in caplog.text
    caplog.clear()
    monkeypatch.setenv(tracing.RATIO, ratio)
    for processor in _load_span_processors(path, "unused"):
        processor.shutdown()
    assert caplog.text == ""


def test_a_collector_that_hangs_holds_up_no_work(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, let_go, were_let_go = threading.Event(), threading.Event(), []

    def export(self: OTLPSpanExporter, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        hangs.set()
        were_let_go.append(let_go.wait(PATIENCE_S))
        return SpanExportResult.FAILURE

    monkeypatch.setattr(OTLPSpanExporter, "export", export)
    for name, value in (("SCHEDULE_DELAY", "1"), ("MAX_QUEUE_SIZE", "8"), ("MAX_EXPORT_BATCH_SIZE", "4")):
        monkeypatch.setenv(f"OTEL_BSP_{name}", value)
    (processor,) = tracing.span_processors()
    recorder.provider.add_span_processor(processor)
    with recorder.root():
        pass
    assert hangs.wait(PATIENCE_S)
    # These are more spans than there is room for.
    for _ in range(3):
        with recorder.root():
            asyncio.run(work())
    let_go.set()
    processor.shutdown()
    assert len(recorder.spans) == 19
    assert set(were_let_go) == {True}


def test_tracing_is_set_up_once_there_is_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    assert not tracing.is_set_up()
    set_up(monkeypatch)
    assert tracing.is_set_up()
