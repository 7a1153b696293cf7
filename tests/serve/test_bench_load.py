"""Tests, in virtual time, that the client sends on time whatever the server does, and tells every end apart."""

import asyncio
import json
import selectors
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, cast

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from serve.bench.load import PATH, EditOutcome, send
from serve.bench.mix import Photo, Planned
from serve.http.forms import EditForm

PHOTO = Photo(b"photo", b"mask", "[]")
DONE = {"data": [{"b64_json": "AAAA", "seed": 1}], "timings_ms": {"denoise": 7.5}}
COMPLETED = {"b64_json": "AAAA", "timings_ms": {"denoise": 7.5}}

Server = Callable[[httpx.Request], Awaitable[httpx.Response]]


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock, `now`, jumps to the next event: waiting takes no time, and times are exact.

    Setting the clock forward by hand stands for a loop that does not run for so long.
    """

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now


class _Jumping(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self.loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.loop.now += timeout or 0.0
        return super().select(0 if timeout is not None else None)


def edits(*arrivals: float, **fields: Any) -> list[Planned]:
    return [Planned(at_s, "dresses", "red dress", **fields) for at_s in arrivals]


def outcomes(
    server: Server | httpx.AsyncBaseTransport, planned: Sequence[Planned], **options: Any
) -> list[EditOutcome]:
    """Send edits to a stand-in for a server; return how they end."""
    ended = dict[int, EditOutcome]()

    async def main() -> None:
        transport = server if isinstance(server, httpx.AsyncBaseTransport) else httpx.MockTransport(server)
        async with httpx.AsyncClient(base_url="http://server", transport=transport, timeout=None) as client:
            await send(client, planned, {("dresses", 0): PHOTO}, ended.__setitem__, **options)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    return [ended[number] for number in range(len(planned))]


def takes(seconds: float, status: int = 200, content: object = DONE, headers: dict[str, str] | None = None) -> Server:
    """Return a server that takes so long for every edit, however many it has."""

    async def answer(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(seconds)
        if isinstance(content, str):
            return httpx.Response(status, text=content, headers=headers)
        return httpx.Response(status, json=content, headers=headers)

    return answer


def streams(*parts: tuple[float, str], finished: Callable[[], None] = lambda: None) -> Server:
    """Return a server that streams each text after a pause; `finished` is called if the client stays to the end."""

    class Stream(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for pause, text in parts:
                await asyncio.sleep(pause)
                yield text.encode()
            finished()

    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Stream())

    return answer


def event(name: str, **data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def test_edits_go_out_on_time_however_slow_the_answers() -> None:
    # The server does one edit at a time, in 3 s; a client that waited for answers would send the third only after 6 s.
    turn = asyncio.Lock()

    async def one_at_a_time(request: httpx.Request) -> httpx.Response:
        async with turn:
            return await takes(3.0)(request)

    ended = outcomes(one_at_a_time, edits(0.5, 1.5, 2.5))
    assert [outcome.sent_s for outcome in ended] == pytest.approx([0.5, 1.5, 2.5])
    assert [outcome.ended_s for outcome in ended] == pytest.approx([3.5, 6.5, 9.5])
    assert [outcome.latency_s for outcome in ended] == pytest.approx([3.0, 5.0, 7.0])
    assert [outcome.send_delay_s for outcome in ended] == pytest.approx([0.0, 0.0, 0.0])


def test_latency_counts_from_the_intended_arrival_when_the_client_is_late() -> None:
    async def stall(request: httpx.Request) -> httpx.Response:
        loop = cast(VirtualLoop, asyncio.get_running_loop())
        if loop.now < 1:
            # For so long, the process gets no time on the processor.
            loop.now += 5.0
        return await takes(1.0)(request)

    ended = outcomes(stall, edits(0.0, 2.0, 4.0, 7.0))
    assert [outcome.send_delay_s for outcome in ended] == pytest.approx([0.0, 3.0, 1.0, 0.0])
    assert [outcome.latency_s for outcome in ended] == pytest.approx([6.0, 4.0, 2.0, 1.0])


def test_arrivals_need_no_order() -> None:
    ended = outcomes(takes(1.0), edits(3.0, 0.0))
    assert [(outcome.planned.at_s, outcome.sent_s) for outcome in ended] == [(3.0, 3.0), (0.0, 0.0)]


def test_the_server_gets_the_form_that_was_planned() -> None:
    got = []

    async def edit(request: Request) -> JSONResponse:
        async with request.form() as form:
            values = {name: value if isinstance(value, str) else await value.read() for name, value in form.items()}
        got.append((EditForm(**cast(Any, values)), request.headers.get("authorization")))
        return JSONResponse(DONE)

    transport = httpx.ASGITransport(Starlette(routes=[Route(PATH, edit, methods=["POST"])]))
    planned = edits(0.0, 1.0, steps=7, num_garments=3, seed=5) + edits(2.0, guidance_scale=1.0, deadline_s=9.0)
    assert {outcome.kind for outcome in outcomes(transport, planned, keys=("one", "two"))} == {"done"}
    (first, first_key), (_, second_key), (last, last_key) = got
    assert first == EditForm(
        image=PHOTO.image,
        mask=PHOTO.mask,
        keypoints=PHOTO.keypoints,
        prompt="red dress",
        category="dresses",
        steps=7,
        num_garments=3,
        seed=5,
    )
    assert (last.guidance_scale, last.deadline_s) == (1.0, 9.0)
    assert (first_key, second_key, last_key) == ("Bearer one", "Bearer two", "Bearer one")


def test_without_keys_nobody_is_named() -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        assert "authorization" not in request.headers
        return httpx.Response(200, json=DONE)

    assert outcomes(answer, edits(0.0))[0].kind == "done"


def error(kind: str, field: str | None = None) -> dict[str, Any]:
    return {"error": {"type": kind, "field": field, "message": "..."}}


@pytest.mark.parametrize(
    ("status", "content", "kind", "failure"),
    [
        (200, DONE, "done", ""),
        (200, {"data": []}, "failed", "200 reply in another form"),
        (200, DONE | {"data": [{"b64_json": ""}]}, "failed", "200 reply in another form"),
        (200, "no JSON", "failed", "200 reply in another form"),
        (400, error("InvalidRequest", "steps"), "failed", "400 InvalidRequest steps"),
        (401, error("Unauthorized"), "failed", "401 Unauthorized"),
        (500, "no JSON", "failed", "500 reply in another form"),
        (500, {"error": "text"}, "failed", "500 reply in another form"),
        (429, error("Overloaded"), "refused", "429 Overloaded"),
        (503, error("Overloaded"), "refused", "503 Overloaded"),
        (503, "a proxy's words", "refused", "503 reply in another form"),
        (504, error("DeadlineExceeded"), "refused", "504 DeadlineExceeded"),
    ],
)
def test_every_end_is_told_apart(status: int, content: object, kind: str, failure: str) -> None:
    # A stream that is refused has a status, too, instead of events.
    for stream in (False, True) if status != 200 else (False,):
        (ended,) = outcomes(takes(1.0, status, content), edits(0.0, stream=stream))
        assert (ended.kind, ended.reply.status, ended.reply.failure, ended.latency_s) == (kind, status, failure, 1.0)
        assert ended.reply.timings_ms == ({"denoise": 7.5} if kind == "done" else {})


def test_when_to_come_back_is_noted() -> None:
    server = takes(0.5, 503, error("Overloaded"), {"retry-after": "5"})
    (with_header,) = outcomes(server, edits(0.0))
    (without,) = outcomes(takes(0.5, 503, error("Overloaded")), edits(0.0))
    assert (with_header.reply.retry_after, without.reply.retry_after) == ("5", None)


def test_an_edit_that_takes_too_long_is_given_up() -> None:
    ended = outcomes(takes(100.0), edits(0.0, 1.0), timeout_s=20.0)
    assert [(outcome.kind, outcome.reply.failure, outcome.latency_s) for outcome in ended] == [
        ("failed", "timeout", 20.0)
    ] * 2


def test_a_connection_that_fails_is_an_end_too() -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(2.0)
        raise httpx.ConnectError("nobody there")

    (ended,) = outcomes(answer, edits(0.0))
    assert (ended.kind, ended.reply.status, ended.reply.failure) == ("failed", None, "ConnectError")
    assert ended.latency_s == 2.0


def test_a_stream_is_timed_to_its_first_preview_and_to_its_picture() -> None:
    preview = event("image_edit.partial_image", b64_json="AAAA")
    # The last part closes the stream long after the picture has come.
    server = streams((1.0, preview[:20]), (1.0, preview[20:]), (2.0, preview), (3.0, completed()), (9.0, ""))
    (ended,) = outcomes(server, edits(10.0, stream=True, partial_images=2))
    assert (ended.kind, ended.first_preview_s, ended.latency_s) == ("done", 2.0, 7.0)
    assert ended.reply.timings_ms == {"denoise": 7.5}


def test_a_client_stays_until_the_server_ends_the_stream() -> None:
    ended = list[bool]()
    outcomes(streams((1.0, completed()), (1.0, ""), finished=lambda: ended.append(True)), edits(0.0, stream=True))
    assert ended == [True]


def completed() -> str:
    return event("image_edit.completed", **COMPLETED)


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("", "stream ended early"),
        (event("image_edit.partial_image", b64_json="AAAA"), "stream ended early"),
        (event("error", **error("DeadlineExceeded")), "error event DeadlineExceeded"),
        (event("image_edit.completed", b64_json=""), "reply in another form"),
        ("event: image_edit.completed\ndata: no JSON\n\n", "reply in another form"),
    ],
)
def test_a_stream_without_a_picture_has_failed(text: str, failure: str) -> None:
    (ended,) = outcomes(streams((4.0, text)), edits(0.0, stream=True))
    assert (ended.kind, ended.reply.status, ended.reply.failure) == ("failed", 200, failure)
    assert ended.latency_s == 4.0
