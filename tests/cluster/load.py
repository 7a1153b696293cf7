"""Edits that keep coming while something happens to the cluster, and what became of each."""

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from tests.serve.client import decoded, form
from tests.waiting import wait_for

# As OpenAI's client does by default, where a connection fails or the server says so.
MAX_RETRIES = 2
RETRY_PAUSE_S = 1.0
TIMEOUT_S = 300.0


@dataclass
class Load:
    """A few callers, each of whom asks for the next edit when it has got the last and paused.

    edits: what they ask for, in turn; wanted: the picture of each. Every attempt goes to the next of `urls`, as a
    service spreads connections.
    """

    urls: list[str]
    edits: Sequence[dict[str, Any]]
    wanted: Sequence[NDArray[np.uint8]]
    headers: dict[str, str]
    num_callers: int = 0
    num_done: int = 0
    failed: list[str] = field(default_factory=list)
    # Why requests were sent once more.
    again: Counter[str] = field(default_factory=Counter)
    largest_difference: int = 0
    _turns: Iterator[int] = field(default_factory=itertools.count)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def running(self, num_callers: int, pause_s: float = 0.0) -> Iterator["Load"]:
        """Add so many callers for as long as the block runs; then wait for what they have asked for."""
        over = threading.Event()
        with ThreadPoolExecutor(num_callers) as callers:
            calls = [callers.submit(self._call, over, pause_s) for _ in range(num_callers)]
            self.num_callers += num_callers
            try:
                yield self
            finally:
                self.num_callers -= num_callers
                over.set()
        for call in calls:
            call.result()

    def wait_for(self, number: int) -> None:
        """Return once so many more edits have been answered."""
        wanted = self.num_done + number
        wait_for(
            lambda: self.num_done >= wanted,
            lambda: f"{self.num_done} of {wanted} edits answered; {self.failed}, {self.again}",
        )

    def _call(self, over: threading.Event, pause_s: float) -> None:
        while not over.wait(pause_s * random.uniform(0.5, 1.5)):
            turn = next(self._turns)
            number = turn % len(self.edits)
            reply = self._ask(turn, self.edits[number])
            with self._lock:
                self.num_done += 1
                if isinstance(reply, str):
                    self.failed.append(reply)
                else:
                    shown = decoded(reply.json()["data"][0]["b64_json"])
                    difference = int(np.abs(shown.astype(int) - self.wanted[number]).max())
                    self.largest_difference = max(self.largest_difference, difference)

    def _ask(self, turn: int, edit: dict[str, Any]) -> httpx.Response | str:
        """Return the reply, or why there is none."""
        why = ""
        for attempt in range(MAX_RETRIES + 1):
            if attempt:
                with self._lock:
                    self.again[why] += 1
                time.sleep(RETRY_PAUSE_S)
            url = f"{self.urls[(turn + attempt) % len(self.urls)]}/v1/images/edits"
            try:
                reply = httpx.post(url, headers=self.headers, timeout=TIMEOUT_S, **form(**edit))
            except httpx.TransportError as error:
                why = type(error).__name__
                continue
            if reply.is_success:
                return reply
            why = f"{reply.status_code} {reply.text[:200]}"
        return why
