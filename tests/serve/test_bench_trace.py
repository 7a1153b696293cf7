"""Tests how the spans of edits are collected, and how the time of an edit is divided among them."""

import io
import itertools
import threading
import time
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Status, StatusCode
from rich.console import Console

from serve import tracing
from serve.bench import spans as bench_spans
from serve.bench.budget import KINDS, UNACCOUNTED, Share, by_kind, kind_of, mean_shares, shares
from serve.bench.plot import plot_waterfall
from serve.bench.spans import Collector, SpanEvent, TracedSpan, collector
from serve.bench.traced import TracedEdit, typical
from serve.bench.waterfall import BAR_WIDTH, COLOURS, _bar, budget_table, rows, waterfall
from serve.tracing import KIND, STEP, Kind

MS = 1_000_000
EPOCH = 1_700_000_000_000 * MS


def span(id: str, parent: str, start_ms: float, end_ms: float, kind: str | None = None, **more: Any) -> TracedSpan:
    """Return a span whose name is its id unless another is given."""
    named = {"name": id} | more
    attributes = {} if kind is None else {KIND: kind}
    started_ns, ended_ns = EPOCH + round(start_ms * MS), EPOCH + round(end_ms * MS)
    return TracedSpan(id, parent, started_ns=started_ns, ended_ns=ended_ns, attributes=attributes, **named)


ROOT = span("client", "", 0, 100, Kind.HTTP)


def in_ms(spans: list[TracedSpan]) -> dict[tuple[str, str], float]:
    found = shares(ROOT, spans)
    assert sum(share.ms for share in found) == pytest.approx(100)
    assert len(found) == len({(share.kind, share.name) for share in found})
    return {(share.kind, share.name): share.ms for share in found}


def test_time_counts_for_the_innermost_span() -> None:
    spans = [
        span("call encode", "client", 10, 60, Kind.HANDOVER),
        span("replica", "call encode", 15, 55, name="replica_handle_request VAE encode"),
        span("wait", "replica", 20, 25, Kind.WAIT),
        span("batch", "replica", 25, 50, Kind.NETWORK),
    ]
    assert in_ms(spans) == {
        (Kind.NETWORK, "batch"): 25,
        (Kind.WAIT, "wait"): 5,
        (Kind.HANDOVER, "call encode"): 10,
        (UNACCOUNTED, "replica_handle_request VAE encode"): 10,
        (Kind.HTTP, "client"): 50,
    }


def test_of_spans_side_by_side_the_first_kind_counts() -> None:
    kinds = [Kind.HTTP, Kind.WAIT, Kind.HANDOVER, Kind.IMAGE, Kind.NETWORK]
    spans = [span(kind, "client", 0, 100 - 20 * place, kind) for place, kind in enumerate(kinds)]
    assert in_ms(spans) == {(kind, kind): 20 for kind in kinds}
    assert tuple(reversed(kinds)) == KINDS[:-1]


def test_a_span_that_outlives_the_one_around_it_still_lies_within_those_outside() -> None:
    """Serve ends the span of a call's way to the replica while the replica's span within it has just begun."""
    spans = [
        span("call", "client", 0, 100, Kind.HANDOVER),
        span("route", "call", 0, 10, name="route_to_replica VAE encode"),
        span("replica", "route", 8, 90, name="replica_handle_request VAE encode"),
    ]
    assert in_ms(spans) == {
        (Kind.HANDOVER, "route_to_replica VAE encode"): 8,
        (Kind.HANDOVER, "call"): 10,
        (UNACCOUNTED, "replica_handle_request VAE encode"): 82,
    }


def test_steps_are_time_of_the_network_within_the_wait_for_them() -> None:
    events = [SpanEvent(STEP, EPOCH + at * MS, {"seconds": 0.02, "step": 1}) for at in (30, 60, 95)]
    events.insert(1, SpanEvent("other", EPOCH, {}))
    assert in_ms([span("denoise", "client", 0, 100, Kind.WAIT, events=events)]) == {
        (Kind.NETWORK, "UNet call"): 60,
        (Kind.WAIT, "denoise"): 40,
    }


def test_what_lies_before_and_after_the_root_is_left_out() -> None:
    spans = [span("early", "client", -50, 20, Kind.IMAGE), span("late", "client", 90, 400, Kind.WAIT)]
    found = in_ms([*spans, span("outside", "client", 200, 300, Kind.NETWORK)])
    assert found == {(Kind.IMAGE, "early"): 20, (Kind.WAIT, "late"): 10, (Kind.HTTP, "client"): 70}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("proxy_http_request Ingress POST /v1/images/edits", Kind.HTTP),
        ("route_to_replica Ingress __call__", Kind.HTTP),
        ("replica_handle_request Ingress __call__", Kind.HTTP),
        ("route_to_replica VAE encode", Kind.HANDOVER),
        ("replica_handle_request VAE encode", UNACCOUNTED),
    ],
)
def test_serves_own_spans_have_a_kind_by_their_names(name: str, kind: str) -> None:
    assert kind_of(span("id", "", 0, 1, name=name)) == kind


def test_means_of_several_edits_still_add_up() -> None:
    first = [Share(Kind.NETWORK, "batch", 30.0), Share(Kind.HTTP, "client", 10.0)]
    second = [Share(Kind.NETWORK, "batch", 10.0), Share(Kind.NETWORK, "UNet call", 50.0)]
    means = mean_shares([first, second])
    assert means == [
        Share(Kind.NETWORK, "UNet call", 25.0),
        Share(Kind.NETWORK, "batch", 20.0),
        Share(Kind.HTTP, "client", 5.0),
    ]
    assert by_kind(means) == dict.fromkeys(KINDS, 0.0) | {Kind.NETWORK: 45.0, Kind.HTTP: 5.0}


def test_the_typical_edit_is_that_of_the_median_time() -> None:
    edits = [TracedEdit(str(ms), span("client", "", 0, ms), (), ()) for ms in (5, 90, 30, 20)]
    assert typical(edits).ms == 20


SHOWN = [
    span("second", "client", 50, 100, Kind.IMAGE),
    span("first", "client", 0, 25, Kind.WAIT, events=[SpanEvent(STEP, EPOCH, {"seconds": 0.0})], error="ValueError"),
    span("within", "first", 10, 10.001, Kind.NETWORK),
]


def printed(thing: object) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(thing)
    return console.export_text()


def test_a_waterfall_has_the_spans_in_order_with_their_times() -> None:
    assert [(row.label, row.depth) for row in rows(ROOT, SHOWN)] == [
        ("client", 0),
        ("first (1 steps): ValueError", 1),
        ("within", 2),
        ("second", 1),
    ]
    lines = printed(waterfall(ROOT, SHOWN)).splitlines()[1:]
    bars = [line.count("█") for line in lines]
    assert bars == [BAR_WIDTH, BAR_WIDTH // 4, 1, BAR_WIDTH // 2]
    assert COLOURS[Kind.NETWORK] in str(_bar(ROOT, SHOWN[1]).spans)
    assert lines[3].split() == ["second", "█" * (BAR_WIDTH // 2), "50.0", "50.0", "image"]


def test_a_budget_has_every_kind_its_share_and_its_parts() -> None:
    text = printed(budget_table(shares(ROOT, SHOWN), "title"))
    words = {line.split()[1]: line.split() for line in text.splitlines() if line.startswith("│")}
    assert set(words) == {*KINDS, "all"}
    assert words["image"][2:] == ["│", "50.0", "│", "50.0%", "│", "second", "50.0", "│"]
    assert words["all"][2:6] == ["│", "100.0", "│", "100.0%"]


def test_a_waterfall_can_be_drawn() -> None:
    axes = plot_waterfall(ROOT, SHOWN, "title").axes[0]
    assert [label.get_text().strip() for label in axes.get_yticklabels()] == [row.label for row in rows(ROOT, SHOWN)]


@pytest.fixture
def collecting(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(bench_spans, "SETTLE_S", 0.05)
    with collector() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", running.url)
        yield running


def test_what_processes_export_is_collected_as_it_was(collecting: Collector) -> None:
    provider = TracerProvider()
    (processor,) = tracing.span_processors()
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("tests")
    with tracer.start_as_current_span("outer", attributes={"text": "é", "whole": 7, "part": 0.5, "yes": True}) as outer:
        outer.add_event("step", {"seconds": 0.25}, timestamp=EPOCH)
        outer.set_status(Status(StatusCode.ERROR, "ValueError"))
        tracer.start_span("inner", start_time=EPOCH).end(EPOCH + MS)
    assert provider.force_flush()
    provider.shutdown()
    context = outer.get_span_context()
    (sent,) = collecting.spans.keys()
    assert sent == f"{context.trace_id:032x}"
    inner, collected = collecting.spans[sent]
    assert (inner.name, inner.parent_id, inner.id != collected.id) == ("inner", collected.id, True)
    assert (inner.started_ns, inner.ended_ns, inner.error) == (EPOCH, EPOCH + MS, "")
    assert (collected.id, collected.parent_id) == (f"{context.span_id:016x}", "")
    assert collected.attributes == {"text": "é", "whole": 7, "part": 0.5, "yes": True}
    assert collected.events == [SpanEvent("step", EPOCH, {"seconds": 0.25})]
    assert collected.error == "ValueError"
    assert collected.ended_ns - collected.started_ns < time.time_ns() - collected.started_ns


def test_a_trace_is_whole_once_all_parents_are_here(collecting: Collector) -> None:
    arriving = [span("c", "b", 0, 1), span("b", "a", 0, 2), span("a", "client", 0, 3)]
    come = itertools.count()

    def arrive() -> None:
        for late in arriving:
            time.sleep(0.1)
            collecting.spans["trace"].append(late)
            collecting.last_came["trace"] = time.monotonic()
            next(come)

    thread = threading.Thread(target=arrive)
    thread.start()
    assert collecting.trace("trace", "client") == arriving
    assert next(come) == len(arriving)
    thread.join()


@pytest.mark.parametrize("missing", [0, 1])
def test_a_trace_that_stays_in_pieces_is_an_error(collecting: Collector, missing: int) -> None:
    whole = [span("a", "client", 0, 3), span("b", "a", 0, 2)]
    collecting.spans["trace"] = [kept for place, kept in enumerate([*whole, span("c", "b", 0, 1)]) if place != missing]
    collecting.last_came["trace"] = 0.0
    with pytest.raises(RuntimeError, match="did not all come"):
        collecting.trace("trace", "client", timeout_s=0.3)
