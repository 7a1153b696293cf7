"""How long a step takes, learned from the steps before. The call queue records times; the scheduler reads them.

The scheduler adds up the times of many steps, so what it needs is their mean. It is more than their median, because
times are skewed: a step may take twice as long as usual, but never half as long.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from statistics import fmean, median

from fashion_rag.denoising.rows import Rows

# The expected time is the mean of so many of the last steps with the same rows.
CALLS = 32
# A step counts with at most so many medians, so that one step that stalled does not have every edit refused.
MAX_MEDIANS = 4


class Pace:
    """The times of the last steps, by their rows. This is a record and has no clock."""

    def __init__(self) -> None:
        self._seconds: defaultdict[Rows, deque[float]] = defaultdict(lambda: deque(maxlen=CALLS))
        self._least_s: dict[Rows, float] = {}

    def record(self, rows: Rows, seconds: float) -> None:
        """Record that a step of `rows` took `seconds`."""
        self._seconds[rows].append(seconds)
        self._least_s[rows] = min(seconds, self._least_s.get(rows, seconds))

    def forget(self) -> None:
        """Forget all times but the least of each row count.

        Otherwise a few slow steps could have every edit refused, and then no step would correct them. The least times
        still refuse what this device never could do.
        """
        self._seconds.clear()
        for rows, seconds in self._least_s.items():
            self._seconds[rows].append(seconds)

    def row_time_s(self, rows: Rows) -> float:
        """Return how long `rows` take in the calls that are cheapest a row, as a rule full ones; 0 if none is known."""
        deep, shallow = self._deep(), self._shallow()
        return rows.deep * _least(deep) + rows.shallow * _least(shallow or deep)

    def step_time_s(self, rows: Rows) -> float:
        """Return how long a step of `rows` is expected to take; 0 while nothing is known.

        This is the mean of the last steps with as many rows, or with more rows where those took less, because the times
        of a row count may be old. Beyond the largest known row count the time is taken to grow in proportion to
        the rows, which is the most that it can. A step of both kinds that was never seen takes as long as its two calls
        together; shallow rows that were never seen take as long as deep ones.
        """
        if rows.deep and rows.shallow:
            if seen := self._seconds.get(rows):
                return _mean(seen)
            return self.step_time_s(Rows(rows.deep)) + self.step_time_s(Rows(0, rows.shallow))
        return _expected(self._shallow() or self._deep() if rows.shallow else self._deep(), rows.total)

    def _deep(self) -> dict[int, deque[float]]:
        return {rows.deep: seconds for rows, seconds in self._seconds.items() if not rows.shallow}

    def _shallow(self) -> dict[int, deque[float]]:
        return {rows.shallow: seconds for rows, seconds in self._seconds.items() if not rows.deep}


def _mean(times: Sequence[float]) -> float:
    """Return the mean of some times, each counted with at most MAX_MEDIANS times their median."""
    most = MAX_MEDIANS * median(times)
    return fmean(min(seconds, most) for seconds in times)


def _least(seconds: dict[int, deque[float]]) -> float:
    """Return the least time of a row over all row counts, or 0 if there is none."""
    return min((_mean(times) / num_rows for num_rows, times in seconds.items()), default=0.0)


def _expected(seconds: dict[int, deque[float]], num_rows: int) -> float:
    if not seconds:
        return 0.0
    largest = max(seconds)
    if num_rows > largest:
        return _mean(seconds[largest]) * num_rows / largest
    return min(_mean(times) for seen, times in seconds.items() if seen >= num_rows)
