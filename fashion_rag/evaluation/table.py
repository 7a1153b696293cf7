"""The table of an evaluation, as Markdown. `run` fills it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fashion_rag.evaluation.metrics import METRICS


@dataclass(frozen=True)
class TableRow:
    """The figures of a group of samples, with the settings that they were edited with.

    values: the figure of each metric; None where the group has nothing to measure.
    """

    order: str
    num_retrieved: int
    num_chunks: int
    category: str
    num_samples: int
    values: dict[str, float | None]


def markdown(rows: Sequence[TableRow], note: str = "") -> str:
    """Return the rows as a Markdown table, with the note below it."""
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    headings = ["order", "garments", "chunks", "category", "samples", *(METRICS.get(name, name) for name in names)]
    lines = [headings, ["---"] * len(headings)]
    for row in rows:
        settings = (row.order, row.num_retrieved, row.num_chunks, row.category, row.num_samples)
        lines.append([*map(str, settings), *(_figure(row.values.get(name)) for name in names)])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return table + (f"\n{note}\n" if note else "")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
