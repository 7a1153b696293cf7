"""Tests that each photo is read once, and that requests which share a reading do not disturb each other."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from fashion_rag.errors import InvalidRequest
from fashion_rag.person.reading import PhotoReading
from fashion_rag.request import EditRequest, Window
from serve import metrics
from serve.batching import Outcome
from serve.readings import Readings
from tests.profiles import display_p3
from tests.serve.pictures import photo

LABEL_MAP_BYTES = 512 * 384


class Counted:
    """Stands for a counter of Ray's: it counts outcomes."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []

    def inc(self, tags: dict[str, str]) -> None:
        self.outcomes.append(tags["outcome"])


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counter = Counted()
    monkeypatch.setattr(metrics, "photo_lookups", lambda: counter)
    return counter


def request(brightness: int = 0, **changes: Any) -> EditRequest:
    return EditRequest(**{"image": photo() // 2 + np.uint8(brightness), "prompt": "a red shirt"} | changes)


class Reader:
    """Reads photos when it is `let_go`. It keeps the requests whose photos it was given."""

    def __init__(self) -> None:
        self.asked: list[EditRequest] = []
        self.let_go = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, asked: EditRequest) -> Outcome[PhotoReading]:
        self.asked.append(asked)
        await self.let_go.wait()
        if self.error is not None:
            return Outcome(self.error, 0, 0, num_items=1)
        label_map = np.full((512, 384), asked.image[0, 0, 0])
        return Outcome(PhotoReading(Window(0, 0, 80, 60), label_map, None, 1), 0, 0, num_items=1)


def run(steps: Callable[[Reader, Readings], Awaitable[None]], max_bytes: int = 3 * LABEL_MAP_BYTES) -> None:
    async def with_readings() -> None:
        reader = Reader()
        readings = Readings(reader)
        readings.kept.max_bytes = max_bytes
        await steps(reader, readings)

    asyncio.run(with_readings())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_a_photo_is_read_once_whatever_is_asked_of_it(lookups: Counted) -> None:
    async def steps(reader: Reader, readings: Readings) -> None:
        reader.let_go.set()
        first = await readings.of(request(prompt="a red shirt", category="upper_body", seed=1))
        again = await readings.of(request(prompt="blue trousers", category="lower_body", seed=2))
        assert again is first
        assert len(reader.asked) == 1

    run(steps)
    assert lookups.outcomes == ["miss", "hit"]


def test_requests_at_the_same_time_share_a_reading(lookups: Counted) -> None:
    async def steps(reader: Reader, readings: Readings) -> None:
        tasks = [asyncio.create_task(readings.of(request())) for _ in range(4)]
        other = asyncio.create_task(readings.of(request(brightness=9)))
        await until(lambda: len(lookups.outcomes) == 5)
        reader.let_go.set()
        shared = await asyncio.gather(*tasks)
        assert all(reading is shared[0] for reading in shared)
        assert (await other).label_map[0, 0] == shared[0].label_map[0, 0] + 9
        assert len(reader.asked) == 2

    run(steps)
    assert sorted(lookups.outcomes) == ["joined", "joined", "joined", "miss", "miss"]


def test_photos_and_their_profiles_are_told_apart(lookups: Counted) -> None:
    async def steps(reader: Reader, readings: Readings) -> None:
        reader.let_go.set()
        turned = np.ascontiguousarray(request().image.reshape(60, 80, 3))
        for changes in ({}, {"icc_profile": display_p3()}, {"image": turned}, {"brightness": 1}):
            await readings.of(request(**changes))
        assert len(reader.asked) == 4

    run(steps, max_bytes=10 * LABEL_MAP_BYTES)


def test_a_caller_who_leaves_takes_the_reading_from_nobody(lookups: Counted) -> None:
    async def steps(reader: Reader, readings: Readings) -> None:
        first, second = (asyncio.create_task(readings.of(request())) for _ in range(2))
        await until(lambda: lookups.outcomes == ["miss", "joined"])
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled() and not second.done()
        reader.let_go.set()
        assert (await second).num_persons == 1
        assert len(reader.asked) == 1

    run(steps)


def test_a_reading_that_fails_is_not_kept(lookups: Counted) -> None:
    async def steps(reader: Reader, readings: Readings) -> None:
        reader.error = InvalidRequest("image", "a photo", "cannot be read")
        reader.let_go.set()
        for _ in range(2):
            with pytest.raises(InvalidRequest, match="cannot be read"):
                await readings.of(request())
        reader.error = None
        assert (await readings.of(request())).num_persons == 1
        assert len(reader.asked) == 3

    run(steps)


def test_the_bound_is_in_bytes_and_the_photo_used_longest_ago_goes_first(lookups: Counted) -> None:
    async def steps(reader: Reader, readings: Readings) -> None:
        reader.let_go.set()
        for brightness in (0, 1, 2, 0, 3):
            await readings.of(request(brightness=brightness))
        assert readings.kept.num_bytes == 3 * LABEL_MAP_BYTES
        assert len(reader.asked) == 4
        await readings.of(request(brightness=0))
        assert len(reader.asked) == 4
        await readings.of(request(brightness=1))
        assert len(reader.asked) == 5

    run(steps)
