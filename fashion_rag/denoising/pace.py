"""How long a step takes, learned from the steps before. The engine records; the scheduler asks."""

from __future__ import annotations

from collections import defaultdict, deque
from statistics import median

from fashion_rag.denoising.rows import Rows

CALLS = 32  # how many of the last steps of the same rows the expected time is the median of


class Pace:
    """The times of the last steps, by their rows. A pure record: it has no clock."""

    def __init__(self) -> None:
        self._seconds: defaultdict[Rows, deque[float]] = defaultdict(lambda: deque(maxlen=CALLS))

    def record(self, rows: Rows, seconds: float) -> None:
        """Take note of a step of `rows` that took `seconds`."""
        self._seconds[rows].append(seconds)

    def forget(self) -> None:
        """Know nothing again: for when a few slow steps have everything refused, and no step would correct them."""
        self._seconds.clear()

    def row_time_s(self, rows: Rows) -> float:
        """How long rows take in the calls that serve their kind best, full ones as a rule; 0 while nothing is known."""
        deep, shallow = self._deep(), self._shallow()
        return rows.deep * _least(deep) + rows.shallow * _least(shallow or deep)

    def step_time_s(self, rows: Rows) -> float:
        """How long a step of `rows` is expected to take; 0 while nothing is known.

        The median of the last steps of as many rows, or of more where those took less: figures of a row count may be
        old. Beyond the largest the time is taken to grow with the rows, which is the most that it can. A step of both
        kinds that was never seen takes what its two calls take; shallow rows never seen take as long as deep ones.
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
    """Of a row."""
    return min((median(times) / num_rows for num_rows, times in seconds.items()), default=0.0)


def _expected(seconds: dict[int, deque[float]], num_rows: int) -> float:
    if not seconds:
        return 0.0
    largest = max(seconds)
    if num_rows > largest:
        return median(seconds[largest]) * num_rows / largest
    return min(median(times) for seen, times in seconds.items() if seen >= num_rows)
