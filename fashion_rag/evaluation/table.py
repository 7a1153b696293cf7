"""The table of an evaluation, as Markdown. `run` fills it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fashion_rag.evaluation.metrics import METRICS


@dataclass(frozen=True)
class Row:
    """The figures of a group of samples. values: by metric; None where the group has nothing to measure."""

    order: str
    num_retrieved: int
    num_chunks: int
    category: str
    num_samples: int
    values: dict[str, float | None]


def markdown(rows: Sequence[Row], note: str = "") -> str:
    """Return the rows as a Markdown table, with the note below it."""
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    heads = ["order", "garments", "chunks", "category", "samples", *(METRICS.get(name, name) for name in names)]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        figures = (row.values.get(name) for name in names)
        shown = ("-" if value is None else f"{value:.3f}" for value in figures)
        settings = (row.order, row.num_retrieved, row.num_chunks, row.category, row.num_samples)
        lines.append([*map(str, settings), *shown])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return table + (f"\n{note}\n" if note else "")
