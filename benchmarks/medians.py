"""Medians of figures that were measured several times. The benchmarks call it."""

from collections.abc import Mapping, Sequence
from statistics import median


def medians(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each figure over records that all have the same figures."""
    figures = {}
    for name in records[0]:
        figures[name] = median(record[name] for record in records)
    return figures
