"""The results of `run.py` as tables for a terminal and as a plot. Nothing is computed here but errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.table import Column, Table

CLOSE = 0.15  # A prediction within this share of the measured figure counts as right.
COMPARED = ("p50_s", "p95_s", "p99_s", "throughput")

Record = dict[str, Any]


def error(run: Record, figure: str) -> float:
    """Return by what share of the measured figure the predicted one differs."""
    return float(run["predicted"][figure] / run["measured"][figure] - 1)


def validation_table(runs: Sequence[Record]) -> Table:
    """Return a table of measured and predicted figures, and of the errors."""
    table = Table(
        "file",
        *(Column(name, justify="right") for name in ("rate", "edits", *COMPARED, "refused")),
        box=SIMPLE,
        title="measured > predicted, and the error",
        caption=f"green: within {CLOSE:.0%}; *: a load that the model was made without",
    )
    for run in runs:
        cells = []
        for figure in COMPARED:
            off = error(run, figure)
            colour = "green" if abs(off) <= CLOSE else "red"
            cells.append(f"{run['measured'][figure]:.3g} > {run['predicted'][figure]:.3g} [{colour}]{off:+.0%}[/]")
        refused = f"{run['measured']['refused']:g} > {run['predicted']['refused']:g}"
        table.add_row(
            run["file"], f"{run['rate']:g}{'*' if run['held_out'] else ''}", str(run["edits"]), *cells, refused
        )
    return table


def origin(result: Record) -> str:
    """Return the name of the device, and whether its figures were measured."""
    device = result["device"]
    return f"{device['name']}: {'measured' if device['measured'] else 'published figures, not measured'}"


def capacity_table(result: Record) -> Table:
    """Return a table with a line for each rate and objective, and the day below."""
    settings, played = result["settings"], result.get("day")
    steps, guided = ", ".join(map(str, settings["mix"]["steps"])), settings["mix"]["guided"]
    caption = f"{steps} steps, {guided:.0%} guided; ${settings['gpu_dollars_hour']:g} a GPU-hour"
    if played:
        hours = ", ".join(f"{number:,.0f} {name}" for name, number in played["gpu_hours"].items())
        caption += f"\na day of up to {played['highest_rate']:g} edits/s, target_load "
        caption += f"{played['scaling']['target_load']:.2f}: GPU-hours {hours}; "
        caption += f"p95 within {played['objective_s']:g} s in {played['kept']:.0%} of half hours; "
        caption += f"{played['refused']:.2%} refused"
    names = ("edits/s", "p95 at most, s", "replicas", "$ per 1000", "p50, s", "p95, s", "rows a call")
    columns = [Column(name, justify="right") for name in names]
    table = Table(*columns, box=SIMPLE, title=f"Simulated; {origin(result)}", caption=caption)
    for fleet in result["capacity"]:
        cells = ["out of reach"]
        if fleet["replicas"] is not None:
            figures = [f"{fleet[name]:.2f}" for name in ("dollars_per_1000", "p50_s", "p95_s", "rows_per_call")]
            cells = [f"{fleet['replicas']:,}", *figures]
        table.add_row(f"{fleet['rate']:g}", f"{fleet['objective_s']:g}", *cells)
    return table


def plot(result: Record) -> Figure:
    """Draw cost against objective, with a line for each rate, and replicas over the day, where one was played."""
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    figure.suptitle(f"Simulated fleets; {origin(result)}")
    left, right = figure.subplots(1, 2)
    _draw_costs(left, result)
    if "day" in result:
        _draw_day(right, result["day"])
    return figure


def _draw_costs(axes: Axes, result: Record) -> None:
    fleets = [fleet for fleet in result["capacity"] if fleet["replicas"] is not None]
    for rate in sorted({fleet["rate"] for fleet in fleets}):
        line = [fleet for fleet in fleets if fleet["rate"] == rate]
        axes.plot(
            [fleet["objective_s"] for fleet in line],
            [fleet["dollars_per_1000"] for fleet in line],
            ".-",
            label=f"{rate:g} edits/s: {line[-1]['replicas']:,} to {line[0]['replicas']:,} GPUs",
        )
    axes.set(
        title=f"least cost, at ${result['settings']['gpu_dollars_hour']:g} a GPU-hour",
        xlabel="objective: p95 from arrival to answer, s",
        ylabel="$ per 1000 edits",
    )
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")


def _draw_day(axes: Axes, day: Record) -> None:
    hours = [at_s / 3600 for at_s, _ in day["replicas"]]
    replicas = [num for _, num in day["replicas"]]
    axes.step([*hours, 24], [*replicas, replicas[-1]], where="post", label="replicas (left)")
    axes.set(
        title=f"a day of {day['edits']:,} edits, replicas by the work that arrives",
        xlabel="hour",
        ylabel="replicas, those on the way up included",
    )
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", fontsize="small")
    right = axes.twinx()
    windows = [window["at_s"] / 3600 for window in day["windows"]]
    right.plot(windows, [window["rate"] for window in day["windows"]], "--", color="grey", label="edits/s (right)")
    right.set_ylim(bottom=0)
    right.set_ylabel("edits/s")
    right.legend(loc="upper right", fontsize="small")
