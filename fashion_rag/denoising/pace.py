"""How long a step takes, learned from the steps before. The engine records times; the scheduler reads them."""

from __future__ import annotations

from collections import defaultdict, deque
from statistics import median

from fashion_rag.denoising.rows import Rows

# The expected time is the median of so many of the last steps with the same rows.
CALLS = 32


class Pace:
    """The times of the last steps, by their rows. This is a record and has no clock."""

    def __init__(self) -> None:
        self._seconds: defaultdict[Rows, deque[float]] = defaultdict(lambda: deque(maxlen=CALLS))

    def record(self, rows: Rows, seconds: float) -> None:
        """Record that a step of `rows` took `seconds`."""
        self._seconds[rows].append(seconds)

    def forget(self) -> None:
        """Forget all times.

        Otherwise a few slow steps could have every edit refused, and then no step would correct them.
        """
        self._seconds.clear()

    def row_time_s(self, rows: Rows) -> float:
        """Return how long `rows` take in the calls that are cheapest a row, as a rule full ones; 0 if none is known."""
        deep, shallow = self._deep(), self._shallow()
        return rows.deep * _least(deep) + rows.shallow * _least(shallow or deep)

    def step_time_s(self, rows: Rows) -> float:
        """Return how long a step of `rows` is expected to take; 0 while nothing is known.

        This is the median of the last steps with as many rows, or with more rows where those took less, because the
        times of a row count may be old. Beyond the largest known row count the time is taken to grow in proportion to
        the rows, which is the most that it can. A step of both kinds that was never seen takes as long as its two calls
        together; shallow rows that were never seen take as long as deep ones.
        """
        if rows.deep and rows.shallow:
            if seen := self._seconds.get(rows):
                return median(seen)
            return self.step_time_s(Rows(rows.deep)) + self.step_time_s(Rows(0, rows.shallow))
        return _expected(self._shallow() or self._deep() if rows.shallow else self._deep(), rows.total)

    def _deep(self) -> dict[int, deque[float]]:
        return {rows.deep: seconds for rows, seconds in self._seconds.items() if not rows.shallow}

    def _shallow(self) -> dict[int, deque[float]]:
        return {rows.shallow: seconds for rows, seconds in self._seconds.items() if not rows.deep}


def _least(seconds: dict[int, deque[float]]) -> float:
    """Return the least time of a row over all row counts, or 0 if there is none."""
    return min((median(times) / num_rows for num_rows, times in seconds.items()), default=0.0)


def _expected(seconds: dict[int, deque[float]], num_rows: int) -> float:
    if not seconds:
        return 0.0
    largest = max(seconds)
    if num_rows > largest:
        return median(seconds[largest]) * num_rows / largest
    return min(median(times) for seen, times in seconds.items() if seen >= num_rows)
