"""What `plan.py` found, as tables for a terminal and as a plot. It calls this; nothing is computed here but errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.table import Column, Table

# Within which a prediction counts as right.
CLOSE = 0.15
COMPARED = ("p50_s", "p95_s", "p99_s", "throughput")

Record = dict[str, Any]


def error(run: Record, figure: str) -> float:
    """By how much of the measured figure the predicted one differs."""
    return float(run["predicted"][figure] / run["measured"][figure] - 1)


def validation_table(runs: Sequence[Record]) -> Table:
    """Measured and predicted figures, and the error where there is one to tell."""
    table = Table(
        "file",
        *(Column(name, justify="right") for name in ("rate", "edits", *COMPARED, "refused")),
        box=SIMPLE,
        title="measured > predicted, and the error",
        caption=f"green: within {CLOSE:.0%}",
    )
    for run in runs:
        cells = []
        for figure in COMPARED:
            off = error(run, figure)
            colour = "green" if abs(off) <= CLOSE else "red"
            cells.append(f"{run['measured'][figure]:.3g} > {run['predicted'][figure]:.3g} [{colour}]{off:+.0%}[/]")
        refused = f"{run['measured']['refused']:g} > {run['predicted']['refused']:g}"
        table.add_row(run["file"], f"{run['rate']:g}", str(run["edits"]), *cells, refused)
    return table


def origin(result: Record) -> str:
    """Of which device, and what the figures are worth."""
    device = result["device"]
    return f"{device['name']}: {'measured' if device['measured'] else 'published figures, not measured'}"


def capacity_table(result: Record) -> Table:
    """A line for each rate and objective, and the day below."""
    settings, played = result["settings"], result.get("day")
    steps, guided = ", ".join(map(str, settings["mix"]["steps"])), settings["mix"]["guided"]
    caption = f"{steps} steps, {guided:.0%} guided; ${settings['gpu_dollars_hour']:g} a GPU-hour"
    if played:
        hours = ", ".join(f"{each:,.0f} {name}" for name, each in played["gpu_hours"].items())
        caption += f"\na day of up to {played['highest_rate']:g} edits/s, target_load "
        caption += f"{played['scaling']['target_load']:.2f}: GPU-hours {hours}; "
        caption += f"p95 within {played['objective_s']:g} s in {played['kept']:.0%} of half hours; "
        caption += f"{played['refused']:.2%} refused"
    names = ("edits/s", "p95 at most, s", "replicas", "$ per 1000", "p50, s", "p95, s", "rows a call")
    columns = [Column(name, justify="right") for name in names]
    table = Table(*columns, box=SIMPLE, title=f"Simulated; {origin(result)}", caption=caption)
    for each in result["capacity"]:
        cells = ["out of reach"]
        if each["replicas"] is not None:
            figures = [f"{each[name]:.2f}" for name in ("dollars_per_1000", "p50_s", "p95_s", "rows_per_call")]
            cells = [f"{each['replicas']:,}", *figures]
        table.add_row(f"{each['rate']:g}", f"{each['objective_s']:g}", *cells)
    return table


def plot(result: Record) -> Figure:
    """Cost against objective, a line a rate; and replicas over the day, where one was played."""
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    figure.suptitle(f"Simulated fleets; {origin(result)}")
    left, right = figure.subplots(1, 2)
    _draw_costs(left, result)
    if "day" in result:
        _draw_day(right, result["day"])
    return figure


def _draw_costs(axes: Axes, result: Record) -> None:
    found = [each for each in result["capacity"] if each["replicas"] is not None]
    for rate in sorted({each["rate"] for each in found}):
        line = [each for each in found if each["rate"] == rate]
        axes.plot(
            [each["objective_s"] for each in line],
            [each["dollars_per_1000"] for each in line],
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
    other = axes.twinx()
    windows = [each["at_s"] / 3600 for each in day["windows"]]
    other.plot(windows, [each["rate"] for each in day["windows"]], "--", color="grey", label="edits/s (right)")
    other.set_ylim(bottom=0)
    other.set_ylabel("edits/s")
    other.legend(loc="upper right", fontsize="small")
