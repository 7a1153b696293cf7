"""Who shares the next step: bookkeeping without tensors, a model or a clock. Owns the queue; the engine calls it.

One rule makes the order: an edit is due at its deadline, or `patience_s` after its arrival where that is sooner, and
the edit that is due first runs in every step, with others of its size as far as there are rows. So nothing starves:
what arrives after an edit is due is due later than it, and what arrived before is finite work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

from fashion_rag.errors import InvalidRequest, Overloaded


@dataclass(frozen=True)
class Limits:
    """How much is taken on, and how long it may be passed over.

    max_rows: of one UNet call. max_waiting: edits for which the next call has no room; more are refused. patience_s:
    an edit this long after its arrival goes before all that arrive from then on, whatever their deadlines.

    Raises ValueError, naming the field, for anything outside its range.
    """

    max_rows: int = 8
    max_waiting: int = 16
    patience_s: float = 60.0

    def __post_init__(self) -> None:
        if self.max_rows < 2:
            raise ValueError(f"max_rows: got {self.max_rows}; must be at least 2, the rows of a guided edit")
        if self.max_waiting < 1:
            raise ValueError(f"max_waiting: got {self.max_waiting}; must be at least 1")
        if not self.patience_s >= 0:
            raise ValueError(f"patience_s: got {self.patience_s}; must not be negative")


@dataclass(kw_only=True, eq=False)
class Ticket:
    """What the scheduler knows of an edit. Times are seconds on one clock; the engine counts `num_done` up."""

    id: str
    size: tuple[int, int]
    num_rows: int
    num_steps: int
    arrived: float
    deadline: float = math.inf
    num_done: int = 0

    @property
    def num_left(self) -> int:
        """Steps that are still to be done."""
        return self.num_steps - self.num_done


T = TypeVar("T", bound=Ticket)


class Scheduler(Generic[T]):
    """The edits in progress, from `add` to `remove`. `limits` may be replaced between two steps."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._tickets: dict[str, T] = {}  # in the order of arrival

    def __len__(self) -> int:
        return len(self._tickets)

    def add(self, ticket: T, step_time_s: float) -> None:
        """Queue `ticket`. Raises Overloaded if too many wait, InvalidRequest if an edit of the same id is here.

        The caller is told to come back when, at `step_time_s` a step, the first of the running edits will be done.
        """
        if ticket.id in self._tickets:
            raise InvalidRequest("request_id", ticket.id, "must not be that of an edit in progress")
        batch = self.schedule()
        num_waiting = len(self) - len(batch)
        if num_waiting >= self.limits.max_waiting:
            retry_after_s = min(running.num_left for running in batch) * step_time_s
            raise Overloaded(f"{num_waiting} edits are waiting, as many as may", max(1.0, retry_after_s))
        self._tickets[ticket.id] = ticket

    def remove(self, edit_id: str) -> None:
        """Forget an edit; one that is not here (any more) is left alone."""
        self._tickets.pop(edit_id, None)

    def refuse(self, now: float, step_time_s: float) -> list[T]:
        """The edits that would miss their deadlines if each step took `step_time_s`; they are removed."""
        late = [ticket for ticket in self._tickets.values() if now + ticket.num_left * step_time_s > ticket.deadline]
        for ticket in late:
            self.remove(ticket.id)
        return late

    def schedule(self) -> list[T]:
        """The edits of the next step, all of one size, at most `max_rows` rows; empty only if there is no edit."""
        batch: list[T] = []
        room = self.limits.max_rows
        # The sort is stable, so edits that are due together stay in the order of arrival.
        for ticket in sorted(self._tickets.values(), key=self._due):
            if ticket.num_rows <= room and (not batch or ticket.size == batch[0].size):
                batch.append(ticket)
                room -= ticket.num_rows
        return batch

    def _due(self, ticket: T) -> float:
        return min(ticket.deadline, ticket.arrived + self.limits.patience_s)
