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

# A pace that refuses an edit is doubted if the last call lies further back than this.
STALE_S = 5.0


class CallQueue(Generic[T]):
    """The edits in progress, and the pace of the calls that they share.

    clock: gives the time in seconds that deadlines are measured by. pace: learns from every call how long calls take.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float], pace: Pace | None = None) -> None:
        self.clock = clock
        self.pace = pace or Pace()
        self.scheduler: Scheduler[T] = Scheduler(limits, self.pace.step_time_s)
        self._busy_until = -math.inf  # The time at which the running call should be done.
        self._began = 0.0  # The time at which the last call began.
        self._learned = -math.inf  # The time at which the pace last learned from a call.

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
        now = max(ticket.arrived, self._busy_until)
        try:
            self.scheduler.add(ticket, now)
        except DeadlineExceeded:
            if len(self) or now - self._learned < STALE_S:
                raise
            # No call will correct the pace if everything is refused.
            self.pace.forget()
            self.scheduler.add(ticket, now)

    def begin_call(self) -> tuple[list[T], list[tuple[T, DeadlineExceeded]]]:
        """Return the edits of the next call, and those that can no longer meet their deadlines, with the reasons.

        There are no edits for the next call if none is ready. Those that are refused have left.
        """
        now = self.clock()
        refused = self.scheduler.refuse(now)
        batch = self.scheduler.schedule()
        self._began = now
        if batch:
            self._busy_until = now + self.pace.step_time_s(running_rows(batch))
        return batch, refused

    def end_call(self, batch: Sequence[T], failed: bool = False) -> None:
        """Take note that the call of `batch` is over, and all that had to be done before the next one can begin.

        The time since `begin_call` is what the pace learns, because edits wait for all of it: also for a thread to wake
        up, for the results to be handed out, and for the processor where other processes use it. failed: whether the
        call failed, which teaches the pace nothing.
        """
        self._busy_until = -math.inf
        if not failed:
            self._learned = self.clock()
            self.pace.record(running_rows(batch), self._learned - self._began)
