"""Calls from one replica to another that outlive the death of the one called. Every caller of a stage uses them.

Ray Serve sends a call to another replica only until one has accepted it. From then on a death is an error, and asking
again is the caller's part. It is safe here: what a stage answers depends on its arguments alone.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, RayServeException, ReplicaUnavailableError

from fashion_rag.errors import DeadlineExceeded, Overloaded
from serve import metrics

MAX_DEATHS = 4
# After the first death, and doubled each time: a handle needs a moment to hear of it.
FIRST_PAUSE_S = 0.1
# Between two questions whether a full replica has room again.
ROOM_PAUSE_S = 0.5
RESTART_S = 5.0

DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, ReplicaUnavailableError)
END = object()

# Makes a call through a handle, whose types do not tell a call from a stream.
Ask = Callable[[], Any]


def unwrapped(error: BaseException) -> BaseException:
    """Return the error as it was raised in the replica, however many replicas have passed it on."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    return error


async def answer(stage: str, ask: Ask, deadline: float) -> Any:
    """Return the answer to the call that `ask` makes, which is made again if its replica dies.

    deadline: Unix time in seconds. Raises what the stage raised; DeadlineExceeded; Overloaded once too many replicas
    have died. Where it is left without an answer, the call is cancelled.
    """
    num_deaths = 0
    while True:
        response = ask()
        try:
            return await _within(deadline, stage, response)
        except (RayError, RayServeException) as error:
            num_deaths += 1
            await _bury(stage, error, num_deaths)
        except BaseException:
            response.cancel()
            raise


async def stream(stage: str, ask: Ask, deadline: float) -> AsyncGenerator[Any, None]:
    """Yield the items of the stream that `ask` opens; from the first one again if its replica dies.

    Closing the generator cancels the call. Raises as `answer` does, but for one thing: where a replica has died that
    had begun, and the next is full, that one is asked until it has room.
    """
    num_deaths, begun = 0, False
    while True:
        response = ask()
        try:
            while (item := await _within(deadline, stage, anext(response, END))) is not END:
                begun = True
                yield item
            return
        except (RayError, RayServeException) as error:
            if begun and isinstance(unwrapped(error), Overloaded):
                await _within(deadline, stage, asyncio.sleep(ROOM_PAUSE_S))
            else:
                num_deaths += 1
                await _bury(stage, error, num_deaths)
        except BaseException:
            response.cancel()
            raise


async def _within(deadline: float, stage: str, answered: Awaitable[Any]) -> Any:
    try:
        async with asyncio.timeout(deadline - time.time()):
            return await answered
    except TimeoutError as error:
        raise DeadlineExceeded(f"the deadline came while the stage {stage!r} was at work") from error


async def _bury(stage: str, error: Exception, num_deaths: int) -> None:
    """Return when it is time to ask again; raises the error, in this project's words, where that is of no use."""
    cause = unwrapped(error)
    if isinstance(cause, BackPressureError):
        raise Overloaded(f"the stage {stage!r} has too many calls waiting", RESTART_S) from error
    if not isinstance(cause, DEATHS):
        raise cause
    if num_deaths == MAX_DEATHS:
        raise Overloaded(f"the stage {stage!r} is restarting", RESTART_S) from error
    metrics.retries().inc(tags={"stage": stage})
    await asyncio.sleep(FIRST_PAUSE_S * 2 ** (num_deaths - 1))
