"""Decides which edits share the next step. Owns the queue; the engine calls it.

This is bookkeeping alone: there are no tensors, no model and no clock. One rule makes the order: an edit is due at its
deadline, or `patience_s` after its arrival where that is sooner. The edit that is due first runs in every step, and
others of its size join as far as there are rows. Nothing starves: whatever arrives after an edit was due is due later
than that edit, and whatever arrived before is a finite amount of work.

Because the rule is deterministic, `add` can simulate the steps to come, at the pace that calls have had, and refuse an
edit whose deadline could not be kept. What is let in has time to spare, which is there to be used up: an edit is given
up only once it could not be denoised in time even alone. An edit may take more rows in some steps than in others.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Generic, TypeVar

from fashion_rag.denoising.rows import Rows, sum_rows
from fashion_rag.errors import DeadlineExceeded, InvalidRequest, Overloaded


@dataclass(frozen=True)
class Limits:
    """How many edits are accepted, and how long one may be passed over.

    max_rows: the most rows in one step. max_waiting: the most edits that may wait, see `Scheduler.num_waiting`; further
    edits are refused. patience_s: this long after its arrival, an edit goes before all edits that arrive from then on,
    whatever their deadlines are. margin_s: the least time that is kept free before each deadline, when an edit is let
    in, for the stages after denoising. slack: the share of the expected time by which steps may take longer than that;
    it is kept free, too.

    Raises ValueError, naming the field, for a value outside its range.
    """

    max_rows: int = 8
    max_waiting: int = 16
    patience_s: float = 60.0
    margin_s: float = 0.0
    slack: float = 0.0

    def __post_init__(self) -> None:
        if self.max_rows < 2:
            raise ValueError(f"max_rows: got {self.max_rows}; must be at least 2, the rows of a guided edit")
        if self.max_waiting < 1:
            raise ValueError(f"max_waiting: got {self.max_waiting}; must be at least 1")
        for name in ("patience_s", "margin_s", "slack"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}; must not be negative")


@dataclass(kw_only=True, eq=False)
class Ticket:
    """What the scheduler knows of an edit. All times are seconds on one clock.

    rows: the rows of each of its steps. after_s: how long the stages after denoising may take. ready: whether it can
    run; an edit that is not ready counts as load all the same. num_begun: how many steps have been begun, including one
    that is running; the scheduler counts it up.
    """

    id: str
    size: tuple[int, int]
    rows: Sequence[Rows]
    arrived: float
    deadline: float = math.inf
    after_s: float = 0.0
    ready: bool = False
    num_begun: int = 0

    @property
    def num_steps(self) -> int:
        """Return the number of steps in all."""
        return len(self.rows)

    @property
    def num_left(self) -> int:
        """Return the number of steps that are still to be begun."""
        return self.num_steps - self.num_begun

    @property
    def num_rows(self) -> int:
        """Return the rows of the next step, or of the last."""
        return self.rows[min(self.num_begun, self.num_steps - 1)].total

    def until_change(self, begun: int) -> int:
        """Return after how many steps the edit takes different rows or is done, when `begun` have been begun."""
        for step in range(begun, self.num_steps):
            if self.rows[step] != self.rows[begun]:
                return step - begun
        return self.num_steps - begun


def running_rows(batch: Iterable[Ticket]) -> Rows:
    """Return the rows of the step that these edits have begun."""
    return sum_rows(ticket.rows[ticket.num_begun - 1] for ticket in batch)


T = TypeVar("T", bound=Ticket)

# Two simulations of the same steps may add up their times in another order.
ROUNDING_S = 1e-6


class Scheduler(Generic[T]):
    """The edits in progress, from `add` to `remove`, in the order of their arrival.

    limits: may be replaced at any time. step_time_s: returns how long a step of the given rows is expected to take.
    """

    def __init__(self, limits: Limits, step_time_s: Callable[[Rows], float]) -> None:
        self.limits = limits
        self.step_time_s = step_time_s
        self._tickets: dict[str, T] = {}

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[T]:
        return iter(self._tickets.values())

    @property
    def num_rows(self) -> int:
        """Return the rows of all edits here, waiting or running."""
        return sum(ticket.num_rows for ticket in self)

    @property
    def num_waiting(self) -> int:
        """Return the number of edits beyond the first `max_rows` rows in the order of arrival, ready or not."""
        return sum(rows > self.limits.max_rows for rows in accumulate(ticket.num_rows for ticket in self))

    def get(self, edit_id: str) -> T | None:
        """Return the edit of this id, or None if it is not here (any more)."""
        return self._tickets.get(edit_id)

    def add(self, ticket: T, now: float) -> None:
        """Put `ticket` into the queue.

        now: the time at which the next call can begin. Raises InvalidRequest if an edit of the same id is here;
        DeadlineExceeded if the edit would be late even alone; Overloaded if too many edits wait, or if accepting this
        one would make it, or an edit that can still be in time, late. `retry_after_s` is then the time until the first
        edit here will be done, or the time by which an edit would be late.
        """
        if ticket.id in self._tickets:
            raise InvalidRequest("request_id", ticket.id, "must not be that of an edit in progress")
        limits = self.limits
        if error := _too_late(ticket, now, self._margin_s(ticket), limits.slack, self.step_time_s):
            raise error
        if (num_waiting := self.num_waiting) >= limits.max_waiting:
            retry_after_s = min(self._finished(self, now).values()) - now
            raise Overloaded(f"{num_waiting} edits are waiting, as many as may", max(1.0, retry_after_s))
        if made_late_s := self._made_late_s(ticket, now):
            message = f"with this edit, {len(made_late_s)} of {len(self) + 1} would miss their deadlines"
            raise Overloaded(message, max(1.0, *made_late_s))
        self._tickets[ticket.id] = ticket

    def remove(self, edit_id: str) -> None:
        """Forget an edit. Nothing happens for an edit that is not here (any more)."""
        self._tickets.pop(edit_id, None)

    def refuse(self, now: float) -> list[tuple[T, DeadlineExceeded]]:
        """Remove the edits that could not be denoised by their deadlines even alone; return them and their errors.

        This holds whether they are ready or not. The margin is no part of it: to give up an edit that has used up a
        little of its margin would throw away nearly all of its steps just before it is done.
        """
        step_time_s = cache(self.step_time_s)
        late = [(ticket, error) for ticket in self if (error := _too_late(ticket, now, 0.0, 0.0, step_time_s))]
        for ticket, _ in late:
            self.remove(ticket.id)
        return late

    def schedule(self) -> list[T]:
        """Return the edits of the next step, and count it as begun.

        They are all of one size and take at most `max_rows` rows. The list is empty only if no edit is ready.
        """
        ready = sorted((ticket for ticket in self if ticket.ready), key=self._due)
        batch = self._next({ticket: ticket.num_begun for ticket in ready})
        for ticket in batch:
            ticket.num_begun += 1
        return batch

    def _due(self, ticket: T) -> float:
        # Sorting is stable, so edits that are due together stay in the order of arrival.
        return min(ticket.deadline, ticket.arrived + self.limits.patience_s)

    def _next(self, begun: Mapping[T, int]) -> list[T]:
        """Return the edits that share the next step.

        begun: the number of steps that each edit has begun, in the order in which the edits are due.
        """
        batch: list[T] = []
        room = self.limits.max_rows
        for ticket, step in begun.items():
            num_rows = ticket.rows[step].total
            if num_rows <= room and (not batch or ticket.size == batch[0].size):
                batch.append(ticket)
                room -= num_rows
        return batch

    def _finished(self, tickets: Iterable[T], now: float) -> dict[T, float]:
        """Return when each edit will be done if no other arrives and all edits are ready at `now`."""
        due = sorted(tickets, key=self._due)
        begun = {ticket: ticket.num_begun for ticket in due if ticket.num_left}
        # The last step of these edits is running.
        finished = {ticket: now for ticket in due if not ticket.num_left}
        step_time_s = cache(self.step_time_s)
        while begun:
            batch = self._next(begun)
            # The same edits share every step until one of them is done or takes a different number of rows.
            num_steps = min(ticket.until_change(begun[ticket]) for ticket in batch)
            now += num_steps * step_time_s(sum_rows(ticket.rows[begun[ticket]] for ticket in batch))
            for ticket in batch:
                begun[ticket] += num_steps
                if begun[ticket] == ticket.num_steps:
                    del begun[ticket]
                    finished[ticket] = now
        return finished

    def _made_late_s(self, newcomer: T, now: float) -> list[float]:
        """Return the seconds by which edits would be late, the newcomer among them, if it were let in.

        An edit counts from when it has no time to spare, because it may be late then. One that is here already counts
        only if the newcomer delays it and it is not lost anyway.
        """
        finished = self._finished([*self, newcomer], now)
        late_s = {}
        for ticket, end in finished.items():
            seconds = now + (end - now) * (1 + self.limits.slack) + self._margin_s(ticket) - ticket.deadline
            if seconds > 0:
                late_s[ticket] = seconds
        if others := late_s.keys() - {newcomer}:
            before = self._finished(self, now)
            for ticket in others:
                is_delayed = finished[ticket] > before[ticket] + ROUNDING_S
                if before[ticket] > ticket.deadline or not is_delayed:
                    del late_s[ticket]
        return list(late_s.values())

    def _margin_s(self, ticket: T) -> float:
        return max(self.limits.margin_s, ticket.after_s)


def _too_late(
    ticket: Ticket, now: float, margin_s: float, slack: float, step_time_s: Callable[[Rows], float]
) -> DeadlineExceeded | None:
    """Return the error of an edit that could not be done even alone, with this margin and slack; None if it could."""
    left_s = ticket.deadline - margin_s - now
    if left_s == math.inf:
        return None
    steps = Counter(ticket.rows[ticket.num_begun :])
    todo_s = (1 + slack) * sum(num_steps * step_time_s(rows) for rows, num_steps in steps.items())
    if todo_s <= left_s:
        return None
    todo = f"{ticket.num_left} of {ticket.num_steps} steps are left, which take {todo_s:.3g} s"
    return DeadlineExceeded(f"{todo}, and there are {left_s:.3g} s for them before the deadline")
