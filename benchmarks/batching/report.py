"""The result of `run.py` as tables for a terminal and as a plot. Nothing is computed here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.table import Column, Table

NO_GAIN = 0.95  # A ratio from here on counts as no gain.
# A method that answers fewer than this share of the edits that come cannot keep up: its queue grows for as long as
# edits come, and its latencies only tell how long that was. Only a long run shows it.
KEEPS_UP = 0.9
LONG_RUNS = ("simulated", "assumed")
LINES = ("-", "--", "-.", ":")  # They differ because the times of some methods are the same.

Record = dict[str, Any]


def overview(result: Record, figure: str, title: str) -> Table:
    """Return a table of one figure of every comparison, and of that of shared steps divided by the others'."""
    _, first = _levels(result)[0]
    names, baselines = list(first["methods"]), list(first["shared_divided_by"])
    ratio_names = [f"/{name}" for name in baselines]
    table = Table(
        *(Column(name, no_wrap=True) for name in ("", "edits", "load")),
        *(Column(name, justify="right") for name in (*names, *ratio_names)),
        box=SIMPLE,
        padding=0,
        title=title,
        caption=f"/whole: shared divided by whole; red: no gain; behind: cannot keep up\n{_steps(result)}",
    )
    for kind, level in _levels(result):
        behind = _behind(kind, level)
        cells = ["behind" if name in behind else f"{level['methods'][name][figure]:.2f}" for name in names]
        for name in baselines:
            ratio = level["shared_divided_by"][name][figure]["median"]
            colour = "green" if ratio < NO_GAIN else "red"
            cells.append("" if name in behind else f"[{colour}]{ratio:.2f}[/]")
        growth = f" x{level['growth']:g}" if "growth" in level else ""
        table.add_row(kind + growth, level["workload"], f"{level['load']:g}", *cells)
    return table


def details(level: Record) -> Table:
    """Return a table of all figures of one comparison, the methods side by side."""
    table = Table(
        "",
        *(Column(name, justify="right") for name in level["methods"]),
        box=SIMPLE,
        padding=(0, 1, 0, 0),
        title=f"real run: {level['num_repeats']} times {level['num_edits']} {level['workload']} edits, "
        f"load {level['load']:g}",
        caption="own: in multiples of the edit's time alone",
    )
    for figure in level["methods"]["shared"]:
        table.add_row(figure.replace("_", " "), *(f"{figures[figure]:.2f}" for figures in level["methods"].values()))
    return table


def plot(result: Record) -> Figure:
    """Draw p95 by load for each workload, and how the ratio of p95 depends on what a full step costs."""
    settings = result["settings"]
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    figure.suptitle(f"Shared steps and whole requests, at most {settings['max_rows']} rows in a UNet call")
    *panels, last = figure.subplots(1, len(settings["workloads"]) + 1)
    for axes, (workload, steps) in zip(panels, settings["workloads"].items(), strict=True):
        axes.set(
            title=f"{workload} edits: {', '.join(map(str, steps))} steps",
            xlabel="load (1: batches that are always full)",
            ylabel="p95 from arrival to answer, s",
        )
        for kind, marker in (("simulated", "."), ("measured", "D"), ("replayed", "x")):
            _draw_p95(axes, kind, [level for level in result[kind] if level["workload"] == workload], marker)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small", loc="lower right")
    _draw_ratios(last, result)
    return figure


def _draw_p95(axes: Axes, kind: str, levels: Sequence[Record], marker: str) -> None:
    if not levels:
        return
    for number, name in enumerate(levels[0]["methods"]):
        p95 = [math.nan if name in _behind(kind, level) else level["methods"][name]["p95_s"] for level in levels]
        style: dict[str, Any] = {"color": f"C{number}", "marker": marker, "markerfacecolor": "none"}
        if kind == "simulated":
            style |= {"linestyle": LINES[number], "label": f"{name}, simulated"}
        else:
            style |= {"linestyle": "none"}
        axes.plot([level["load"] for level in levels], p95, **style)
    if kind != "simulated":
        axes.plot([], [], color="grey", marker=marker, markerfacecolor="none", linestyle="none", label=kind)


def _draw_ratios(axes: Axes, result: Record) -> None:
    levels = result["assumed"]
    axes.set(
        title=f"{levels[0]['workload']} edits, load {levels[0]['load']:g}, made-up step times",
        xlabel="time of a full step / time of one edit's step",
        ylabel="p95 of shared / p95 of the other",
    )
    for number, name in enumerate(levels[0]["shared_divided_by"], start=1):
        ratios = [
            math.nan if name in _behind("assumed", level) else level["shared_divided_by"][name]["p95_s"]["median"]
            for level in levels
        ]
        axes.plot([level["growth"] for level in levels], ratios, ".-", color=f"C{number}", label=f"shared / {name}")
    seconds = list(result["step_s"].values())
    axes.axvline(seconds[-1] / seconds[0], color="grey", linestyle=":", label="measured step times")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small", loc="lower right", title="a line begins where the other keeps up")


def _levels(result: Record) -> list[tuple[str, Record]]:
    return [(kind, level) for kind in ("measured", "replayed", "simulated", "assumed") for level in result[kind]]


def _steps(result: Record) -> str:
    """Return a line with the times of a step, and those after the real run where there was one."""
    before, after = _milliseconds(result["step_s"]), _milliseconds(result["step_s_after"])
    line = f"steps with {', '.join(map(str, result['step_s']))} rows take, in ms: {before}"
    return f"{line}; after the real run: {after}" if after else line


def _milliseconds(step_s: Record) -> str:
    return ", ".join(f"{1000 * seconds:.0f}" for seconds in step_s.values())


def _behind(kind: str, level: Record) -> list[str]:
    """Return the methods that cannot keep up."""
    if kind not in LONG_RUNS:
        return []
    enough = KEEPS_UP * level["arrivals_per_s"]
    return [name for name, figures in level["methods"].items() if figures["answers_per_s"] < enough]
