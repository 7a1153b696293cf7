"""Begins the trace of each request, or joins the caller's. Serve's HTTP proxies run `Traced`.

    curl -H "traceparent: 00-$(openssl rand -hex 16)-$(openssl rand -hex 8)-01" ...

The answer names the trace, and the span of the request in it, in `traceresponse`, in the form of a `traceparent`.
"""

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import tracing

TRACE_RESPONSE = "traceresponse"


class Traced:
    """Runs `inner` in a span for the whole request, attempts that a dead replica costs included, if tracing is on."""

    def __init__(self, inner: ASGIApp) -> None:
        self.inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not tracing.is_set_up():
            await self.inner(scope, receive, send)
            return
        scope = dict(scope)
        headers = MutableHeaders(scope=scope)
        with tracing.request_span(scope["method"], scope["path"], headers) as opened:
            trace_response = headers["traceparent"]
            is_complete = False

            async def send_on(message: Message) -> None:
                nonlocal is_complete
                if message["type"] == "http.response.start":
                    tracing.answered(message["status"], opened)
                    MutableHeaders(scope=message)[TRACE_RESPONSE] = trace_response
                await send(message)
                is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)

            await self.inner(scope, receive, send_on)
            if not is_complete:
                tracing.fail(opened, ClientDisconnect())
