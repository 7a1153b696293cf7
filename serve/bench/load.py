"""Sends planned edits, each at its time, and tells how each ended. `measure` calls it.

Nobody waits here for an earlier answer before the next edit goes out, and latency counts from the moment at which an
edit was to arrive: when the server, or this client, stalls, those who would have come meanwhile have waited too.
"""

import asyncio
import json
import multiprocessing
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Literal

import httpx

from serve.bench.mix import Photos, Planned

PATH = "/v1/images/edits"
REFUSED = (429, 503, 504)
UNFINISHED, ANOTHER_FORM = "stream ended early", "reply in another form"

Kind = Literal["done", "refused", "failed"]


@dataclass(frozen=True)
class Reply:
    """What came back for an edit. status: None where nothing did. failure: why there is no picture; "" where there is.

    preview_at_s: when a stream's first preview was there, from the start. timings_ms: the server's, by stage.
    """

    status: int | None = None
    failure: str = ""
    retry_after: str | None = None
    preview_at_s: float | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EditOutcome:
    """How an edit ended. Seconds from the start, like the plan's `at_s`: when it was sent, and when it was over."""

    planned: Planned
    sent_s: float
    ended_s: float
    reply: Reply

    @property
    def kind(self) -> Kind:
        """done: there is a picture. refused: status 429, 503 or 504. failed: anything else.

        504 may also be an edit that was taken on and then missed its deadline; a stream, which had its status by then,
        has failed.
        """
        if self.reply.status in REFUSED:
            return "refused"
        return "failed" if self.reply.failure else "done"

    @property
    def latency_s(self) -> float:
        """From the intended arrival to the end."""
        return self.ended_s - self.planned.at_s

    @property
    def send_delay_s(self) -> float:
        """How much later than intended the client came to send it."""
        return self.sent_s - self.planned.at_s

    @property
    def first_preview_s(self) -> float | None:
        """From the intended arrival to the first preview; None without one."""
        return None if self.reply.preview_at_s is None else self.reply.preview_at_s - self.planned.at_s


Report = Callable[[EditOutcome], None]


def run(
    url: str,
    planned: Sequence[Planned],
    photos: Photos,
    *,
    keys: Sequence[str] = (),
    timeout_s: float = 300.0,
    report: Report | None = None,
) -> list[EditOutcome]:
    """How each of `planned` ended, in their order, once all have; sent by a process of its own.

    url: of the server, without /v1. keys: API keys, which the edits use in turn. timeout_s: after which the client
    gives an edit up, counted from when it was sent. report: called with each outcome as it comes.
    """
    # Not forked: this process may have threads, and all of a graph's memory.
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    arguments = (sending, url, planned, photos, keys, timeout_s)
    client = context.Process(target=_client, args=arguments, daemon=True)
    client.start()
    sending.close()
    outcomes = dict[int, EditOutcome]()
    try:
        while len(outcomes) < len(planned):
            number, outcome = receiving.recv()
            outcomes[number] = outcome
            if report is not None:
                report(outcome)
    except EOFError:
        raise RuntimeError(f"the client died after {len(outcomes)} of {len(planned)} edits") from None
    finally:
        client.terminate()
        client.join()
        receiving.close()
    return [outcomes[number] for number in range(len(planned))]


def _client(
    pipe: Connection, url: str, planned: Sequence[Planned], photos: Photos, keys: Sequence[str], timeout_s: float
) -> None:
    """The process that sends."""
    # Ctrl-C is for the process that started this one, and ends both.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    async def main() -> None:
        # As many connections as there are edits, or edits would wait here for each other.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
            await send(client, planned, photos, lambda *item: pipe.send(item), keys=keys, timeout_s=timeout_s)

    asyncio.run(main())


async def send(
    client: httpx.AsyncClient,
    planned: Sequence[Planned],
    photos: Photos,
    report: Callable[[int, EditOutcome], None],
    *,
    keys: Sequence[str] = (),
    timeout_s: float = 300.0,
) -> None:
    """Send each edit at its time, in a task of its own; `report` gets its place in `planned` and how it ended."""
    clock = asyncio.get_running_loop().time
    start = clock()

    async def one(number: int, edit: Planned) -> None:
        headers = {"authorization": f"Bearer {keys[number % len(keys)]}"} if keys else {}
        photo = photos[edit.category, edit.person]
        files = {"image": photo.image, "mask": photo.mask}
        data = edit.form() | {"keypoints": photo.keypoints}
        sent_s = clock() - start
        try:
            async with (
                asyncio.timeout(timeout_s),
                client.stream("POST", PATH, files=files, data=data, headers=headers) as response,
            ):
                ended_s, reply = await _read(response, edit.stream, lambda: clock() - start)
        except TimeoutError:
            ended_s, reply = clock() - start, Reply(failure="timeout")
        except httpx.HTTPError as error:
            ended_s, reply = clock() - start, Reply(failure=type(error).__name__)
        report(number, EditOutcome(edit, sent_s, ended_s, reply))

    async with asyncio.TaskGroup() as tasks:
        for number, edit in sorted(enumerate(planned), key=lambda item: item[1].at_s):
            await asyncio.sleep(start + edit.at_s - clock())
            tasks.create_task(one(number, edit))


async def _read(response: httpx.Response, stream: bool, now: Callable[[], float]) -> tuple[float, Reply]:
    """When the reply was complete, and what it says."""
    if stream and response.status_code == 200:
        return await _read_events(response, now)
    await response.aread()
    # Before anything is made of it, which the server does not answer for.
    ended_s = now()
    status, retry_after = response.status_code, response.headers.get("retry-after")
    try:
        body = response.json()
        if status == 200:
            return ended_s, _finished(body, body["data"][0])
        error = body["error"]
        failure = " ".join(filter(None, (str(status), error["type"], error["field"])))
    except (ValueError, LookupError, TypeError):
        failure = f"{status} {ANOTHER_FORM}"
    return ended_s, Reply(status, failure, retry_after)


async def _read_events(response: httpx.Response, now: Callable[[], float]) -> tuple[float, Reply]:
    """The same for a stream, which is complete with the finished picture or an error."""
    event, preview_at_s, last = "", None, None
    # To its end, although nothing comes after the last event: to leave before would look to the server like a hang-up.
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            event = value
        elif name == "data" and event == "image_edit.partial_image":
            preview_at_s = now() if preview_at_s is None else preview_at_s
        elif name == "data":
            last = now(), event, value
    if last is None:
        return now(), Reply(200, UNFINISHED, preview_at_s=preview_at_s)
    ended_s, event, value = last
    try:
        body = json.loads(value)
        if event == "image_edit.completed":
            return ended_s, _finished(body, body, preview_at_s)
        failure = f"{event} event {body['error']['type']}"
    except (ValueError, LookupError, TypeError):
        failure = ANOTHER_FORM
    return ended_s, Reply(200, failure, preview_at_s=preview_at_s)


def _finished(body: dict[str, Any], data: dict[str, Any], preview_at_s: float | None = None) -> Reply:
    """The reply with a picture; raises KeyError without one."""
    if not data["b64_json"]:
        raise KeyError("b64_json")
    return Reply(200, preview_at_s=preview_at_s, timings_ms=body["timings_ms"])
