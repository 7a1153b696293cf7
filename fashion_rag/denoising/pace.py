"""How long a UNet call takes, learned from the calls before. The engine records; the scheduler asks."""

from __future__ import annotations

from collections import defaultdict, deque
from statistics import median

CALLS = 32  # how many of the last calls of a row count the expected time is the median of


class Pace:
    """The times of the last calls, by their number of rows. A pure record: it has no clock."""

    def __init__(self) -> None:
        self._seconds: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=CALLS))

    def record(self, num_rows: int, seconds: float) -> None:
        """Take note of a call of `num_rows` rows that took `seconds`."""
        self._seconds[num_rows].append(seconds)

    def forget(self) -> None:
        """Know nothing again: for when a few slow calls have everything refused, and no call would correct them."""
        self._seconds.clear()

    def row_time_s(self) -> float:
        """How long a row takes in the calls that serve rows best, full ones as a rule; 0 while nothing is known."""
        return min((median(seconds) / num_rows for num_rows, seconds in self._seconds.items()), default=0.0)

    def step_time_s(self, num_rows: int) -> float:
        """How long a call of `num_rows` rows is expected to take; 0 while nothing is known.

        The median of the last calls of as many rows, or of more where those took less: figures of a row count may be
        old. Beyond the largest the time is taken to grow with the rows, which is the most that it can.
        """
        if not self._seconds:
            return 0.0
        largest = max(self._seconds)
        if num_rows > largest:
            return median(self._seconds[largest]) * num_rows / largest
        return min(median(seconds) for seen, seconds in self._seconds.items() if seen >= num_rows)
