"""Tests that a request begins a trace, or joins its caller's, and is answered with it."""

import asyncio
import re
from collections.abc import Callable

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serve import tracing
from serve.proxy.traced import TRACE_RESPONSE, Traced
from tests.serve.tracing_tools import Recorder, id_of, parent_of, set_up, trace_of

TRACE_ID, CALLER_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return set_up(monkeypatch)


def ask(app: ASGIApp, **headers: str) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.get("/v1/garments/red-dress?limit=3", headers=headers)

    return asyncio.run(send())


def answering(status: int) -> Callable[[Scope, Receive, Send], object]:
    """Return an app that answers with this status, and with the headers that say what it was asked."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = Request(scope).headers
        told = {name: asked.get(name, "none") for name in ("traceparent", "tracestate")}
        await PlainTextResponse("text", status, {f"asked-{name}": value for name, value in told.items()})(
            scope, receive, send
        )

    return app


def traceparent(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"00-{trace_of(span):032x}-{id_of(span):016x}-{span.context.trace_flags:02x}"


@pytest.mark.parametrize("flags", ["01", "00"])
def test_a_request_joins_the_trace_of_its_caller(recorder: Recorder, flags: str) -> None:
    """The graph records its part whether or not the caller records its own."""
    sent = {"traceparent": f"00-{TRACE_ID}-{CALLER_ID}-{flags}", "tracestate": "shop=7"}
    reply = ask(Traced(answering(200)), **sent)
    (span,) = recorder.spans
    assert (trace_of(span), parent_of(span)) == (int(TRACE_ID, 16), int(CALLER_ID, 16))
    assert reply.headers["asked-traceparent"] == reply.headers[TRACE_RESPONSE] == traceparent(span)
    assert reply.headers["asked-tracestate"] == "shop=7"


@pytest.mark.parametrize("sent", [{}, {"traceparent": "00-nonsense"}, {"traceparent": f"00-{'0' * 32}-{CALLER_ID}-01"}])
def test_a_request_without_a_valid_trace_begins_one(recorder: Recorder, sent: dict[str, str]) -> None:
    reply = ask(Traced(answering(200)), **sent)
    (span,) = recorder.spans
    assert parent_of(span) is None
    # The last two digits say that the trace is recorded and, as 02, that its id is random.
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-0[13]", reply.headers[TRACE_RESPONSE])
    assert reply.headers["asked-traceparent"] == reply.headers[TRACE_RESPONSE] == traceparent(span)


@pytest.mark.parametrize(("status", "is_error"), [(200, False), (404, False), (503, True)])
def test_the_span_says_what_was_asked_and_answered(recorder: Recorder, status: int, is_error: bool) -> None:
    ask(Traced(answering(status)))
    (span,) = recorder.spans
    assert (span.name, span.kind) == ("GET", SpanKind.SERVER)
    assert span.attributes == {
        tracing.KIND: "http",
        "http.request.method": "GET",
        # Without the query, in which callers write what they like.
        "url.path": "/v1/garments/red-dress",
        tracing.STATUS_CODE: status,
    }
    assert (span.status.status_code == StatusCode.ERROR) == is_error


async def cut_off(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"part", "more_body": True})


async def failing(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError("no such thing")


async def cancelled(scope: Scope, receive: Receive, send: Send) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("app", "error"), [(cut_off, "ClientDisconnect"), (failing, "ValueError"), (cancelled, "CancelledError")]
)
def test_a_request_without_a_whole_answer_ends_its_span_with_an_error(
    recorder: Recorder, app: ASGIApp, error: str
) -> None:
    async def nothing(message: object) -> None:
        pass

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def run() -> None:
        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        await asyncio.gather(Traced(app)(scope, receive, nothing), return_exceptions=True)

    asyncio.run(run())
    (span,) = recorder.spans
    assert span.status.description == error


def test_while_tracing_is_off_a_request_passes_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    sent = f"00-{TRACE_ID}-{CALLER_ID}-01"
    reply = ask(Traced(answering(200)), traceparent=sent)
    assert reply.headers["asked-traceparent"] == sent
    assert TRACE_RESPONSE not in reply.headers
