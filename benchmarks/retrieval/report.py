"""What `retrieval.py` found, as a table for a terminal and as a plot. It calls this; nothing is computed here."""

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
    """For each size, recall, p50 and p99 of every system by filter, and what it takes to build."""
    return [_table(result, size) for size in result["settings"]["sizes"]]


def _table(result: Record, size: int) -> Table:
    measured = [each for each in result["measured"] if each["num_vectors"] == size]
    left_out = [each["system"] for each in result["left_out"] if each["num_vectors"] == size]
    filters = list(measured[0]["filters"])
    table = Table(
        Column("system", no_wrap=True),
        *(Column(name, justify="right") for name in ("build\ns", "MB", *filters)),
        box=SIMPLE,
        padding=0,
        title=f"{size:,} vectors: recall at {result['settings']['k']}, p50/p99 in ms",
        caption=f"not built: {', '.join(left_out)}" if left_out else None,
    )
    for each in measured:
        cells = [_cell(each["filters"][name]) for name in filters]
        table.add_row(each["system"], f"{each['build_s']:.0f}", f"{each['memory_bytes'] / 1e6:.0f}", *cells)
    return table


def _cell(figures: Record) -> str:
    good = figures["recall"] >= GOAL_RECALL and figures["p99_ms"] <= GOAL_MS
    times = "/".join(f"{figures[name]:.{0 if figures[name] >= 10 else 1}f}" for name in ("p50_ms", "p99_ms"))
    return f"[{'green' if good else 'red'}]{figures['recall']:.3f}[/]\n{times}"


def plot(result: Record) -> Figure:
    """Recall by p99 for each size, a colour a system and a mark a filter; and p50 by size."""
    sizes, measured = result["settings"]["sizes"], result["measured"]
    systems, filters = list(dict.fromkeys(each["system"] for each in measured)), list(measured[0]["filters"])
    colours = {system: f"C{number}" for number, system in enumerate(systems)}
    figure = Figure(figsize=(4 * (len(sizes) + 1), 4.5), layout="constrained")
    *panels, last = figure.subplots(1, len(sizes) + 1)
    for axes, size in zip(panels, sizes, strict=True):
        _draw_recall(axes, [each for each in measured if each["num_vectors"] == size], colours, filters)
        axes.set(title=f"{size:,} vectors")
    for system in systems:
        found = [each for each in measured if each["system"] == system]
        at = [each["num_vectors"] for each in found]
        last.plot(at, [each["filters"]["none"]["p50_ms"] for each in found], ".-", color=colours[system], label=system)
    last.set(title="no filter", xlabel="vectors", ylabel="p50, ms", xscale="log", yscale="log")
    last.legend(fontsize="small")
    marks = [
        Line2D([], [], color="grey", linestyle="none", marker=marker, label=name)
        for name, marker in zip(filters, MARKERS, strict=False)
    ]
    panels[0].legend(handles=marks, fontsize="small", loc="lower left", title="filter")
    return figure


def _draw_recall(axes: Axes, found: list[Record], colours: dict[str, str], filters: list[str]) -> None:
    for each in found:
        for name, marker in zip(filters, MARKERS, strict=False):
            figures = each["filters"][name]
            axes.plot(figures["p99_ms"], figures["recall"], marker, color=colours[each["system"]], alpha=0.8)
    axes.axhline(GOAL_RECALL, color="grey", linestyle=":")
    axes.axvline(GOAL_MS, color="grey", linestyle=":")
    axes.set(xlabel="p99 of a search, ms", ylabel="recall", xscale="log", ylim=(-0.05, 1.05))
