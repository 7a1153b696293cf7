"""Tests calls of stages that die, fail or hang: a replica that dies costs another call, but no answer."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError

from fashion_rag.errors import DeadlineExceeded, InvalidRequest, Overloaded
from serve import calls

HANG = object()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(calls, "ROOM_PAUSE_S", 0.0)


class Response:
    """Stands for what a handle returns, with outcomes in order. Exceptions are raised, and HANG never ends."""

    def __init__(self, outcomes: list[Any]) -> None:
        self.outcomes = iter(outcomes)
        self.cancelled = False

    def __await__(self) -> Any:
        return self._next().__await__()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return await self._next()

    async def _next(self) -> Any:
        try:
            outcome = next(self.outcomes)
        except StopIteration:
            raise StopAsyncIteration from None
        if outcome is HANG:
            await asyncio.Event().wait()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def cancel(self) -> None:
        self.cancelled = True


def raised(cause: Exception) -> RayTaskError:
    """Return an error as the caller sees it when two replicas have passed it on."""
    return RayTaskError("method", "traceback", RayTaskError("method", "traceback", cause))


def asks(*attempts: list[Any]) -> tuple[Callable[[], Any], list[Response]]:
    """Return a function that makes a call, whose outcomes are the next of `attempts`, and the responses it returned."""
    given: list[Response] = []
    left: Iterator[list[Any]] = iter(attempts)

    def ask() -> Response:
        given.append(Response(next(left)))
        return given[-1]

    return ask, given


def answer(ask: Callable[[], Any], within_s: float = 60.0) -> Any:
    return asyncio.run(calls.answer("stage", ask, time.time() + within_s))


def stream(ask: Callable[[], Any], within_s: float = 60.0) -> list[Any]:
    async def collect() -> list[Any]:
        return [item async for item in calls.stream("stage", ask, time.time() + within_s)]

    return asyncio.run(collect())


@pytest.mark.parametrize("death", [ActorDiedError(), raised(ActorDiedError())])
def test_a_death_is_followed_by_another_attempt(death: Exception) -> None:
    ask, given = asks([death], [death], ["answer"])
    assert answer(ask) == "answer"
    assert len(given) == 3
    ask, _ = asks([1, 2, death], [1, 2, 3])
    assert stream(ask) == [1, 2, 1, 2, 3]


@pytest.mark.parametrize("run", [answer, stream])
def test_deaths_without_end_are_an_overload(run: Callable[..., Any]) -> None:
    ask, given = asks(*[[ActorDiedError()]] * calls.MAX_DEATHS)
    with pytest.raises(Overloaded, match="restarting") as refused:
        run(ask)
    assert refused.value.retry_after_s == calls.RESTART_S
    assert len(given) == calls.MAX_DEATHS


@pytest.mark.parametrize("run", [answer, stream])
def test_what_a_stage_raises_is_raised_once_and_as_it_was(run: Callable[..., Any]) -> None:
    error = InvalidRequest("field", "value", "rule")
    ask, given = asks([raised(error)])
    with pytest.raises(InvalidRequest) as refused:
        run(ask)
    assert refused.value is error
    assert len(given) == 1


@pytest.mark.parametrize("run", [answer, stream])
def test_a_full_queue_of_serves_is_an_overload(run: Callable[..., Any]) -> None:
    ask, _ = asks([BackPressureError(num_queued_requests=1, max_queued_requests=1)])
    with pytest.raises(Overloaded):
        run(ask)


@pytest.mark.parametrize("run", [answer, stream])
def test_the_deadline_cancels_the_call(run: Callable[..., Any]) -> None:
    ask, given = asks([HANG])
    with pytest.raises(DeadlineExceeded, match="'stage'"):
        run(ask, 0.05)
    assert given[0].cancelled


def test_a_full_replica_refuses_who_is_new_and_not_who_had_been_taken_on() -> None:
    full = raised(Overloaded("full", 1.0))
    ask, _ = asks([full])
    with pytest.raises(Overloaded, match="full"):
        stream(ask)
    ask, _ = asks(["taken on", ActorDiedError()], [full], [full], ["taken on", "done"])
    assert stream(ask) == ["taken on", "taken on", "done"]


def test_who_leaves_cancels_the_call() -> None:
    async def leave_stream() -> Response:
        ask, given = asks([1, HANG])
        items = calls.stream("stage", ask, time.time() + 60)
        assert await anext(items) == 1
        await items.aclose()
        return given[0]

    async def leave_answer() -> Response:
        ask, given = asks([HANG])
        call = asyncio.create_task(calls.answer("stage", ask, time.time() + 60))
        await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return given[0]

    assert asyncio.run(leave_stream()).cancelled
    assert asyncio.run(leave_answer()).cancelled
