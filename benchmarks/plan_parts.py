"""What a simulated graph is made of: a clock, processors, batches and a denoiser. `plan_simulation.py` joins them.

The denoiser decides with the server's own Scheduler and Pace.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from itertools import count

from fashion_rag.denoising.pace import Pace
from fashion_rag.denoising.rows import Rows, sum_rows
from fashion_rag.denoising.scheduler import Limits, Scheduler, Ticket
from fashion_rag.errors import DeadlineExceeded, Overloaded
from serve.autoscaling import WorkMeter

Action = Callable[[], None]

P95_SIGMA = 1.645  # of a normal distribution


@dataclass(frozen=True)
class Spread:
    """Seconds of a stage for one edit alone: lognormal, or always the same where the two are equal."""

    median: float
    p95: float

    def __post_init__(self) -> None:
        if not 0 <= self.median <= self.p95 < math.inf:
            raise ValueError(f"median, p95: got {self.median}, {self.p95}; must be 0 <= median <= p95")

    def draw(self, rng: random.Random) -> float:
        """Seconds, at random."""
        if self.median == self.p95:
            return self.median
        return self.median * math.exp(rng.gauss(0, 1) * math.log(self.p95 / self.median) / P95_SIGMA)


class Clock:
    """Virtual seconds, and what is to happen when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = count()
        self._actions: list[tuple[float, int, Action]] = []

    def after(self, seconds: float, action: Action) -> None:
        """Do it then; what is due at the same time goes in the order of asking."""
        heappush(self._actions, (self.now + seconds, next(self._order), action))

    def every(self, seconds: float, action: Action) -> None:
        """Do it again and again."""

        def act() -> None:
            action()
            self.after(seconds, act)

        self.after(seconds, act)

    def next(self, until_s: float) -> bool:
        """Do what is due next; False if that is nothing, or later than `until_s`."""
        if not self._actions or self._actions[0][0] > until_s:
            return False
        self.now, _, action = heappop(self._actions)
        action()
        return True


class Processor:
    """Runs calls at full speed while there is a core for each, and else all at the same lower speed."""

    def __init__(self, clock: Clock, cores: float) -> None:
        self.clock, self.cores = clock, cores
        self._calls: list[tuple[float, int, Action]] = []
        self._order = count()
        # How far a call that had run from the beginning would be.
        self._progress_s, self._since, self._speed, self._plans = 0.0, 0.0, 1.0, 0

    def run(self, work_s: float, then: Action) -> None:
        """`then` is called when so many seconds of work are done."""
        self._advance()
        heappush(self._calls, (self._progress_s + work_s, next(self._order), then))
        self._plan()

    def _advance(self) -> None:
        self._progress_s += (self.clock.now - self._since) * self._speed
        self._since = self.clock.now

    def _plan(self) -> None:
        self._plans += 1
        if self._calls:
            self._speed = min(1.0, self.cores / len(self._calls))
            left_s = max(0.0, self._calls[0][0] - self._progress_s)
            self.clock.after(left_s / self._speed, partial(self._end, self._plans))

    def _end(self, plan: int) -> None:
        if plan == self._plans:  # else calls have come since
            self._advance()
            _, _, then = heappop(self._calls)
            self._plan()
            then()


class Batches:
    """A model, or a thread: one call at a time, for as many as wait, who add up."""

    def __init__(self, processor: Processor, max_batch: int, rng: random.Random) -> None:
        self.processor, self.max_batch, self.rng = processor, max_batch, rng
        self._waiting: deque[tuple[Spread, Action]] = deque()
        self._busy = False

    def ask(self, spread: Spread, then: Action) -> None:
        """`then` is called when the call is over that the asker has a part in."""
        self._waiting.append((spread, then))
        if not self._busy:
            self._start()

    def _start(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.max_batch))]
        self._busy = bool(batch)
        if batch:
            work_s = sum(spread.draw(self.rng) for spread, _ in batch)
            self.processor.run(work_s, partial(self._end, [then for _, then in batch]))

    def _end(self, batch: list[Action]) -> None:
        for then in batch:
            then()
        self._start()


@dataclass(kw_only=True, eq=False)
class Edit(Ticket):
    """then: what follows denoising, once somebody waits for it. left: whether the denoiser has ended it."""

    then: Action | None = None
    left: bool = False
    failed: bool = False

    def end(self, failed: bool) -> None:
        """The denoiser is done with it."""
        self.left, self.failed = True, failed
        if self.then:
            self.then()


class SteadyPace(Pace):
    """What a pace has learned once every row count has been seen, where calls of as many rows take equally long.

    call_s: as of `Denoiser`.
    """

    def __init__(self, call_s: Sequence[float]) -> None:
        super().__init__()
        every = [Rows(num_rows) for num_rows in range(1, len(call_s))]
        for rows in every:
            super().record(rows, call_s[rows.deep])
        self._known = [0.0, *map(super().step_time_s, every)]
        self._row_time_s = super().row_time_s(Rows(1))

    def record(self, rows: Rows, seconds: float) -> None:
        """Tells nothing new."""

    def forget(self) -> None:
        """It would be learned again."""

    def row_time_s(self, rows: Rows) -> float:
        return rows.deep * self._row_time_s

    def step_time_s(self, rows: Rows) -> float:
        return self._known[rows.deep]


class Denoiser:
    """What `Engine` and the denoiser's loop do, but for the tensors.

    call_s: seconds of a UNet call, by its rows. calls: where they are counted, by rows.
    """

    def __init__(
        self, processor: Processor, limits: Limits, call_s: Sequence[float], pace: Pace, calls: Counter[int]
    ) -> None:
        self.processor, self.call_s, self.pace, self.calls = processor, call_s, pace, calls
        self.scheduler: Scheduler[Edit] = Scheduler(limits, pace.step_time_s)
        self._busy_until, self._busy = -math.inf, False
        self.meter = WorkMeter(lambda: processor.clock.now)

    @property
    def num_ongoing(self) -> int:
        """By which a router chooses."""
        return len(self.scheduler)

    def add(self, edit: Edit) -> None:
        """Raises as `Engine.add`."""
        work_s = sum(map(self.pace.row_time_s, edit.rows))
        try:
            self.scheduler.add(edit, max(edit.arrived, self._busy_until))
        except DeadlineExceeded:
            if not len(self.scheduler):
                self.pace.forget()
            raise
        except Overloaded:
            self.meter.add(work_s)
            raise
        self.meter.add(work_s)

    def provide(self, edit: Edit, then: Action) -> None:
        """The stages before have finished; `then` is called when the edit is denoised, or refused after all."""
        edit.ready, edit.then = True, then
        if edit.left:
            then()
        elif not self._busy:
            self._step()

    def _step(self) -> None:
        now = self.processor.clock.now
        refused = self.scheduler.refuse(now)
        batch = self.scheduler.schedule()
        self._busy = bool(batch)
        if batch:
            rows = sum_rows(edit.rows[edit.num_begun - 1] for edit in batch)
            self.calls[rows.deep] += 1
            self._busy_until = now + self.pace.step_time_s(rows)
            self.processor.run(self.call_s[rows.deep], partial(self._end, batch, rows, now))
        elif refused:
            self.pace.forget()
        for edit, _ in refused:
            edit.end(failed=True)

    def _end(self, batch: list[Edit], rows: Rows, started: float) -> None:
        self._busy_until = -math.inf
        self.pace.record(rows, self.processor.clock.now - started)
        for edit in batch:
            if not edit.num_left and self.scheduler.get(edit.id) is edit:
                self.scheduler.remove(edit.id)
                edit.end(failed=False)
        self._step()
