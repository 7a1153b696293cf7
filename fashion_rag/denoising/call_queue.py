"""Which edits share the next UNet call, and how long calls take: the engine's bookkeeping, without tensors.

The engine drives it around real calls, and the simulations in `benchmarks` on clocks of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from fashion_rag.denoising.pace import Pace
from fashion_rag.denoising.rows import Rows
from fashion_rag.denoising.scheduler import Limits, Scheduler, Ticket, running_rows
from fashion_rag.errors import DeadlineExceeded

T = TypeVar("T", bound=Ticket)


class CallQueue(Generic[T]):
    """The edits in progress, and the pace of the calls that they share.

    clock: gives the time in seconds that deadlines are measured by. pace: learns from every call how long calls take.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float], pace: Pace | None = None) -> None:
        self.clock = clock
        self.pace = pace or Pace()
        self.scheduler: Scheduler[T] = Scheduler(limits, self.pace.step_time_s)
        self._busy_until = -math.inf  # The time at which the running call should be done.

    def __len__(self) -> int:
        """Return the number of edits that have been added and have not left."""
        return len(self.scheduler)

    def holds(self, ticket: T) -> bool:
        """Return whether `ticket` is still here. Its id may be in use again after it has left."""
        return self.scheduler.get(ticket.id) is ticket

    def work_s(self, steps: Iterable[Rows]) -> float:
        """Return the seconds of full UNet calls that these steps take: their cost where calls are always full."""
        return sum(self.pace.row_time_s(rows) for rows in steps)

    def add(self, ticket: T) -> None:
        """Let `ticket` take part as soon as it is ready. Raises as `Scheduler.add`."""
        try:
            self.scheduler.add(ticket, max(ticket.arrived, self._busy_until))
        except DeadlineExceeded:
            # No call will correct the pace if everything is refused.
            if not len(self):
                self.pace.forget()
            raise

    def begin_call(self) -> tuple[list[T], list[tuple[T, DeadlineExceeded]]]:
        """Return the edits of the next call, and those that can no longer meet their deadlines, with the reasons.

        There are no edits for the next call if none is ready. Those that are refused have left.
        """
        now = self.clock()
        refused = self.scheduler.refuse(now)
        batch = self.scheduler.schedule()
        if batch:
            self._busy_until = now + self.pace.step_time_s(running_rows(batch))
        elif refused:
            self.pace.forget()
        return batch, refused

    def end_call(self, batch: Sequence[T], seconds: float | None) -> None:
        """Take note that the call of `batch` is over. seconds: how long it took; None if it failed."""
        self._busy_until = -math.inf
        if seconds is not None:
            self.pace.record(running_rows(batch), seconds)
