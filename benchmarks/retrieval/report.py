"""The result of `run.py` as tables for a terminal and as a plot. Nothing is computed here."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.box import SIMPLE
from rich.table import Column, Table

GOAL_RECALL, GOAL_MS = 0.98, 10
MARKERS = "os^Dv*"

Record = dict[str, Any]


def tables(result: Record) -> list[Table]:
    """Return a table for each size: recall, p50 and p99 of every system by filter, and the cost of building it."""
    return [_table(result, size) for size in result["settings"]["sizes"]]


def _table(result: Record, size: int) -> Table:
    measured = [record for record in result["measured"] if record["num_vectors"] == size]
    left_out = [record["system"] for record in result["left_out"] if record["num_vectors"] == size]
    filters = list(measured[0]["filters"])
    table = Table(
        Column("system", no_wrap=True),
        *(Column(name, justify="right") for name in ("build\ns", "MB", *filters)),
        box=SIMPLE,
        padding=0,
        title=f"{size:,} vectors: recall at {result['settings']['k']}, p50/p99 in ms",
        caption=f"not built: {', '.join(left_out)}" if left_out else None,
    )
    for record in measured:
        cells = [_cell(record["filters"][name]) for name in filters]
        table.add_row(record["system"], f"{record['build_s']:.0f}", f"{record['memory_bytes'] / 1e6:.0f}", *cells)
    return table


def _cell(figures: Record) -> str:
    good = figures["recall"] >= GOAL_RECALL and figures["p99_ms"] <= GOAL_MS
    colour = "green" if good else "red"
    p50, p99 = _short(figures["p50_ms"]), _short(figures["p99_ms"])
    return f"[{colour}]{figures['recall']:.3f}[/]\n{p50}/{p99}"


def _short(milliseconds: float) -> str:
    digits = 0 if milliseconds >= 10 else 1
    return f"{milliseconds:.{digits}f}"


def plot(result: Record) -> Figure:
    """Draw recall by p99 for each size, with a colour for each system and a mark for each filter, and p50 by size."""
    sizes, measured = result["settings"]["sizes"], result["measured"]
    systems = list(dict.fromkeys(record["system"] for record in measured))
    filters = list(measured[0]["filters"])
    colours = {system: f"C{number}" for number, system in enumerate(systems)}
    figure = Figure(figsize=(4 * (len(sizes) + 1), 4.5), layout="constrained")
    *panels, last = figure.subplots(1, len(sizes) + 1)
    for axes, size in zip(panels, sizes, strict=True):
        _draw_recall(axes, [record for record in measured if record["num_vectors"] == size], colours, filters)
        axes.set(title=f"{size:,} vectors")
    for system in systems:
        records = [record for record in measured if record["system"] == system]
        num_vectors = [record["num_vectors"] for record in records]
        p50_ms = [record["filters"]["none"]["p50_ms"] for record in records]
        last.plot(num_vectors, p50_ms, ".-", color=colours[system], label=system)
    last.set(title="no filter", xlabel="vectors", ylabel="p50, ms", xscale="log", yscale="log")
    last.legend(fontsize="small")
    marks = [
        Line2D([], [], color="grey", linestyle="none", marker=marker, label=name)
        for name, marker in zip(filters, MARKERS, strict=False)
    ]
    panels[0].legend(handles=marks, fontsize="small", loc="lower left", title="filter")
    return figure


def _draw_recall(axes: Axes, records: list[Record], colours: dict[str, str], filters: list[str]) -> None:
    for record in records:
        for name, marker in zip(filters, MARKERS, strict=False):
            figures = record["filters"][name]
            axes.plot(figures["p99_ms"], figures["recall"], marker, color=colours[record["system"]], alpha=0.8)
    axes.axhline(GOAL_RECALL, color="grey", linestyle=":")
    axes.axvline(GOAL_MS, color="grey", linestyle=":")
    axes.set(xlabel="p99 of a search, ms", ylabel="recall", xscale="log", ylim=(-0.05, 1.05))
