"""Calls of stages that are made again when the replica that has them dies. Every caller of a stage uses them.

Ray Serve sends a call to another replica only until a replica has accepted it. If that replica dies, the caller gets an
error and has to call again. That is safe here, because what a stage answers depends on its arguments alone.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, RayServeException, ReplicaUnavailableError

from fashion_rag.errors import DeadlineExceeded, Overloaded
from serve import metrics, tracing
from serve.tracing import Kind

MAX_DEATHS = 4
# How long to wait after the first death of a replica, until the handle has heard of it. It is doubled each time.
FIRST_PAUSE_S = 0.1
# How long to wait between two calls of a replica that is full.
ROOM_PAUSE_S = 0.5
RESTART_S = 5.0

REPLICA_DIED = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, ReplicaUnavailableError)
END = object()

# Makes a call through a handle. Its type is Any, because the types of handles do not tell a call from a stream.
MakeCall = Callable[[], Any]


def unwrapped(error: BaseException) -> BaseException:
    """Return the error as it was raised in the replica, however many replicas have passed it on."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    return error


async def answer(stage: str, make_call: MakeCall, deadline_unix_s: float) -> Any:
    """Return the answer to a call, which is made again if its replica dies, and cancelled if this coroutine is.

    stage: the name for messages and metrics. Raises what the stage raised, DeadlineExceeded at the deadline, and
    Overloaded once too many replicas have died.
    """
    num_deaths = 0
    with tracing.span(f"call {stage}", Kind.HANDOVER):
        while True:
            response = make_call()
            try:
                return await _within(deadline_unix_s, stage, response)
            except (RayError, RayServeException) as error:
                num_deaths += 1
                await _wait_to_call_again(stage, error, num_deaths)
            except BaseException:
                response.cancel()
                raise


async def stream(stage: str, make_call: MakeCall, deadline_unix_s: float) -> AsyncGenerator[Any, None]:
    """Yield the items of a call that streams; from the first one again if its replica dies.

    A replica's first item says that it has taken the call on. Closing the generator cancels the call. Raises as
    `answer` does, with one exception: if a replica dies that had taken the call on, and the next one is full, the call
    is made until there is room.
    """
    num_deaths, was_admitted = 0, False
    with tracing.span(f"call {stage}", Kind.HANDOVER, current=False) as calling:
        while True:
            with tracing.within(calling):
                response = make_call()
            try:
                while (item := await _within(deadline_unix_s, stage, anext(response, END))) is not END:
                    was_admitted = True
                    yield item
                return
            except (RayError, RayServeException) as error:
                if was_admitted and isinstance(unwrapped(error), Overloaded):
                    await _within(deadline_unix_s, stage, asyncio.sleep(ROOM_PAUSE_S))
                else:
                    num_deaths += 1
                    await _wait_to_call_again(stage, error, num_deaths)
            except BaseException:
                response.cancel()
                raise


async def _within(deadline_unix_s: float, stage: str, response: Awaitable[Any]) -> Any:
    """Return what the response brings. Raises DeadlineExceeded if the deadline comes first."""
    try:
        async with asyncio.timeout(deadline_unix_s - time.time()):
            return await response
    except TimeoutError as error:
        raise DeadlineExceeded(f"the deadline came while the stage {stage!r} was at work") from error


async def _wait_to_call_again(stage: str, error: Exception, num_deaths: int) -> None:
    """Return when it is time to call again after this error.

    Raises the error, as one of this project where there is one, if to call again is of no use.
    """
    cause = unwrapped(error)
    if isinstance(cause, BackPressureError):
        raise Overloaded(f"the stage {stage!r} has too many calls waiting", RESTART_S) from error
    if not isinstance(cause, REPLICA_DIED):
        raise cause
    if num_deaths == MAX_DEATHS:
        raise Overloaded(f"the stage {stage!r} is restarting", RESTART_S) from error
    metrics.retries().inc(tags={"stage": stage})
    tracing.event("call again", stage=stage)
    await asyncio.sleep(FIRST_PAUSE_S * 2 ** (num_deaths - 1))
