"""The parts of a simulated graph: a clock, processors, batches and a denoiser. `simulation.py` joins them.

The denoiser decides with the engine's own CallQueue.
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

from fashion_rag.denoising.call_queue import CallQueue
from fashion_rag.denoising.pace import Pace
from fashion_rag.denoising.rows import Rows
from fashion_rag.denoising.scheduler import Limits, Ticket, running_rows
from fashion_rag.errors import Overloaded
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

    @classmethod
    def around(cls, mean: float, ratio: float) -> Spread:
        """Return the spread with this mean whose p95 is `ratio` times its median."""
        median = mean / math.exp((math.log(ratio) / P95_SIGMA) ** 2 / 2)
        return cls(median, ratio * median)

    def draw(self, rng: random.Random) -> float:
        """Return the seconds of one edit, at random."""
        if self.median == self.p95:
            return self.median
        return self.median * math.exp(rng.gauss(0, 1) * math.log(self.p95 / self.median) / P95_SIGMA)


class Clock:
    """A clock of virtual seconds, and the actions that are to happen at a time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = count()
        self._actions: list[tuple[float, int, Action]] = []

    def after(self, seconds: float, action: Action) -> None:
        """Call `action` so many seconds from now; actions due at the same time go in the order of these calls."""
        heappush(self._actions, (self.now + seconds, next(self._order), action))

    def every(self, seconds: float, action: Action) -> None:
        """Call `action` every so many seconds from now on."""

        def act() -> None:
            action()
            self.after(seconds, act)

        self.after(seconds, act)

    def next(self, until_s: float) -> bool:
        """Call the action that is due next; return False if there is none, or if it is due later than `until_s`."""
        if not self._actions or self._actions[0][0] > until_s:
            return False
        self.now, _, action = heappop(self._actions)
        action()
        return True


class Processor:
    """A processor that runs a call alone at full speed, and several all at the same speed, which may be lower.

    contention: how many times as long a call takes beside others, even where each has a core.
    """

    def __init__(self, clock: Clock, cores: float, contention: float = 1.0) -> None:
        self.clock, self.cores, self.contention = clock, cores, contention
        self._calls: list[tuple[float, int, Action]] = []
        self._order = count()
        # The work that a call would have done if it had run from the beginning.
        self._progress_s = 0.0
        self._since = 0.0
        self._speed = 1.0
        self._num_plans = 0

    def run(self, work_s: float, then: Action) -> None:
        """Do so many seconds of work, and then call `then`."""
        self._advance()
        heappush(self._calls, (self._progress_s + work_s, next(self._order), then))
        self._plan()

    def _advance(self) -> None:
        self._progress_s += (self.clock.now - self._since) * self._speed
        self._since = self.clock.now

    def _plan(self) -> None:
        self._num_plans += 1
        if self._calls:
            self._speed = min(1.0, self.cores / len(self._calls))
            if len(self._calls) > 1:
                self._speed /= self.contention
            left_s = max(0.0, self._calls[0][0] - self._progress_s)
            self.clock.after(left_s / self._speed, partial(self._end, self._num_plans))

    def _end(self, plan: int) -> None:
        # If calls have come since, they have made another plan.
        if plan == self._num_plans:
            self._advance()
            _, _, then = heappop(self._calls)
            self._plan()
            then()


class Batches:
    """A model or a thread: it runs one call at a time, for all who wait, and their times add up."""

    def __init__(self, processor: Processor, max_batch: int, rng: random.Random) -> None:
        self.processor, self.max_batch, self.rng = processor, max_batch, rng
        self._waiting: deque[tuple[Spread, Action]] = deque()
        self._busy = False

    def ask(self, spread: Spread, then: Action) -> None:
        """Take part in one of the next calls, and call `then` when it is over."""
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
class SimulatedEdit(Ticket):
    """An edit in a denoiser.

    then: what follows denoising, once somebody waits for it. left: whether it has left the denoiser. failed: whether
    it left without a result.
    """

    then: Action | None = None
    left: bool = False
    failed: bool = False

    def end(self, failed: bool) -> None:
        """Take note that the edit has left the denoiser, and go on with what follows."""
        self.left, self.failed = True, failed
        if self.then:
            self.then()


class SteadyPace(Pace):
    """The pace of a device on which calls of equally many rows take equally long, once all row counts have been seen.

    It stays as it is. call_s: seconds of a UNet call, by its rows.
    """

    def __init__(self, call_s: Sequence[float]) -> None:
        super().__init__()
        counts = [Rows(num_rows) for num_rows in range(1, len(call_s))]
        for rows in counts:
            super().record(rows, call_s[rows.deep])
        self._step_time_s = [0.0, *map(super().step_time_s, counts)]
        self._row_time_s = super().row_time_s(Rows(1))

    def record(self, rows: Rows, seconds: float) -> None:
        """Do nothing, because the time is known."""

    def forget(self) -> None:
        """Do nothing, because the same times would be learned again."""

    def row_time_s(self, rows: Rows) -> float:
        return rows.deep * self._row_time_s

    def step_time_s(self, rows: Rows) -> float:
        return self._step_time_s[rows.deep]


class SimulatedDenoiser:
    """A replica of the UNet: the engine's bookkeeping, on a simulated processor.

    draw_call_s: returns the seconds of a UNet call of so many rows. calls: counts the calls, by their rows.
    """

    def __init__(
        self,
        processor: Processor,
        limits: Limits,
        draw_call_s: Callable[[int], float],
        pace: Pace,
        calls: Counter[int],
    ) -> None:
        self.processor = processor
        self.draw_call_s = draw_call_s
        self.calls = calls
        self.queue: CallQueue[SimulatedEdit] = CallQueue(limits, lambda: processor.clock.now, pace)
        self.meter = WorkMeter(self.queue.clock)
        self._busy = False

    @property
    def num_ongoing(self) -> int:
        """Return the number of edits here, by which a router chooses."""
        return len(self.queue)

    def add(self, edit: SimulatedEdit) -> None:
        """Take on `edit`. Raises as `CallQueue.add`."""
        work_s = self.queue.work_s(edit.rows)
        try:
            self.queue.add(edit)
        except Overloaded:
            # It is work all the same: another replica might have had room.
            self.meter.add(work_s)
            raise
        self.meter.add(work_s)

    def provide(self, edit: SimulatedEdit, then: Action) -> None:
        """Let `edit` run, since the stages before have finished; call `then` when it is denoised, or refused."""
        edit.ready, edit.then = True, then
        if edit.left:
            then()
        elif not self._busy:
            self._step()

    def _step(self) -> None:
        batch, refused = self.queue.begin_call()
        self._busy = bool(batch)
        if batch:
            num_rows = running_rows(batch).deep
            self.calls[num_rows] += 1
            self.processor.run(self.draw_call_s(num_rows), partial(self._end_call, batch))
        for edit, _ in refused:
            edit.end(failed=True)

    def _end_call(self, batch: list[SimulatedEdit]) -> None:
        self.queue.end_call(batch)
        for edit in batch:
            if not edit.num_left and self.queue.holds(edit):
                self.queue.scheduler.remove(edit.id)
                edit.end(failed=False)
        self._step()
