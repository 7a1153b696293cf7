"""Sends planned edits, each at its time, and reports how each ended. `measure` calls it.

The next edit goes out without waiting for earlier answers, and latency counts from the moment at which an edit was to
arrive: if the server, or this client, stalls, the edits that would have come meanwhile have waited, too.
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
    """The reply to an edit.

    status: None where nothing came back. failure: why there is no picture; "" where there is one. preview_at_s: seconds
    from the start at which a stream's first preview was there. timings_ms: the server's own timings, by stage.
    """

    status: int | None = None
    failure: str = ""
    retry_after: str | None = None
    preview_at_s: float | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EditOutcome:
    """An edit and how it ended.

    sent_s, ended_s: when it was sent and when it was over, in seconds from the start like the plan's `at_s`.
    """

    planned: Planned
    sent_s: float
    ended_s: float
    reply: Reply

    @property
    def kind(self) -> Kind:
        """Return "done" if there is a picture, "refused" for status 429, 503 or 504, and "failed" otherwise.

        504 may also stand for an edit that was taken on and then missed its deadline; a stream, which had its status by
        then, has failed.
        """
        if self.reply.status in REFUSED:
            return "refused"
        return "failed" if self.reply.failure else "done"

    @property
    def latency_s(self) -> float:
        """Return the seconds from the intended arrival to the end."""
        return self.ended_s - self.planned.at_s

    @property
    def send_delay_s(self) -> float:
        """Return how many seconds later than intended the client sent the edit."""
        return self.sent_s - self.planned.at_s

    @property
    def first_preview_s(self) -> float | None:
        """Return the seconds from the intended arrival to the first preview; None without one."""
        if self.reply.preview_at_s is None:
            return None
        return self.reply.preview_at_s - self.planned.at_s


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
    """Send edits from a process of its own; return how each of `planned` ended, in their order, once all have.

    url: that of the server, without /v1. keys: API keys, which the edits use in turn. timeout_s: seconds after sending
    an edit at which the client gives it up. report: called with each outcome as it comes.
    """
    # The process is not forked, because this one may have threads, and all of a graph's memory.
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
    """Send the edits, and put number and outcome of each into `pipe`. This is the process that sends."""
    # Ctrl-C is handled by the process that started this one, which ends both.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    async def main() -> None:
        # There may be as many connections as edits; otherwise edits would wait here for each other.
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
    """Send each edit at its time, in a task of its own; `report` gets its place in `planned` and its outcome."""
    clock = asyncio.get_running_loop().time
    start = clock()

    async def send_edit(number: int, edit: Planned) -> None:
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
            tasks.create_task(send_edit(number, edit))


async def _read(response: httpx.Response, stream: bool, now: Callable[[], float]) -> tuple[float, Reply]:
    """Return when the reply was complete, and the reply."""
    if stream and response.status_code == 200:
        return await _read_events(response, now)
    await response.aread()
    # The time is taken before the reply is parsed, which is not the server's work.
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
    """Return the same for a stream, which is complete with the finished picture or an error."""
    event, preview_at_s, last = "", None, None
    # The stream is read to its end, although nothing comes after the last event: to leave earlier would look to the
    # server as if the caller had hung up.
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
    """Return the reply with a picture. Raises KeyError if there is no picture."""
    if not data["b64_json"]:
        raise KeyError("b64_json")
    return Reply(200, preview_at_s=preview_at_s, timings_ms=body["timings_ms"])
