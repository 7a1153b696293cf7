"""The result of `run.py` as tables for a terminal and as a plot. Nothing is computed here."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.table import Column, Table

COLUMNS = 3  # panels beside each other in the plot

Record = dict[str, Any]


def module_table(result: Record) -> Table:
    """Return a table of the milliseconds of a call of each network, and how many times faster than eager it is."""
    names = list(result["runners"])
    table = Table(
        "",
        Column("rows", justify="right"),
        *(Column(name, justify="right", no_wrap=True) for name in names),
        box=SIMPLE,
        padding=(0, 1, 0, 0),
        title="ms of a call, and times faster than eager",
        caption=_notes(result),
    )
    for module in result["modules"]:
        for level in module["rows"]:
            cells = [_cell(level["runners"].get(name), name) for name in names]
            table.add_row(module["module"], str(level["rows"]), *cells, end_section=level is module["rows"][-1])
    return table


def edit_table(result: Record) -> Table:
    """Return a table of the whole edit with each runner, and the milliseconds of its stages."""
    shared = result["limit_flops_per_s"] is not None
    stages = list(result["edits"][0]["runners"]["eager"]["stages_s"])
    figures = ("edits", "s", "edits/s", "faster", "off by", *(["share"] if shared else []))
    table = Table(
        Column("", no_wrap=True),
        *(Column(name, justify="right", no_wrap=True) for name in (*figures, *stages)),
        box=SIMPLE,
        padding=0,
        title=f"edits of {result['edits'][0]['num_steps']} steps, made at once; stages in ms",
        caption="off by: the largest difference of a picture from eager's, in 255ths",
    )
    for level in result["edits"]:
        for name, record in level["runners"].items():
            table.add_row(
                name,
                str(level["batch"]),
                f"{record['s']['median']:.3f}",
                f"{record['edits_per_s']:.2f}",
                f"{record['times_faster']['median']:.2f}x",
                str(record["max_difference_255"]),
                *([f"{record['share']:.0%}"] if shared else []),
                *(f"{1000 * record['stages_s'][stage]:.0f}" for stage in stages),
            )
    return table


def plot(result: Record) -> Figure:
    """Draw how many times faster each network is, by rows, and the seconds of the whole edit, by stages."""
    levels = result["edits"]
    num_panels = len(result["modules"]) + len(levels)
    num_lines = math.ceil(num_panels / COLUMNS)
    figure = Figure(figsize=(4.4 * COLUMNS, 3.6 * num_lines), layout="constrained")
    settings = result["settings"]
    where = result["from"]["gpu"] if settings["device"] == "cuda" else f"{settings['num_threads']} CPU thread(s)"
    figure.suptitle(f"Networks of {settings['model']}, {where}: medians and quartiles of the rounds")
    panels = figure.subplots(num_lines, COLUMNS, squeeze=False).flatten()
    colours = {name: f"C{number}" for number, name in enumerate(result["runners"])}
    for axes, module in zip(panels, result["modules"], strict=False):
        _draw_module(axes, module, colours)
    for axes, level in zip(panels[len(result["modules"]) :], levels, strict=False):
        _draw_edit(axes, level)
    for axes in panels[num_panels:]:
        axes.remove()
    return figure


def _draw_module(axes: Axes, module: Record, colours: dict[str, str]) -> None:
    for name, colour in colours.items():
        levels = [level for level in module["rows"] if name in level["runners"]]
        if not levels:
            continue
        ratios = [level["runners"][name]["times_faster"] for level in levels]
        middle = [ratio["median"] for ratio in ratios]
        below = [ratio["median"] - ratio["p25"] for ratio in ratios]
        above = [ratio["p75"] - ratio["median"] for ratio in ratios]
        rows = [level["rows"] for level in levels]
        axes.errorbar(rows, middle, yerr=[below, above], fmt=".-", color=colour, capsize=2, label=name)
    every = [level["rows"] for level in module["rows"]]
    axes.set(title=module["module"], xlabel="rows", ylabel="times faster than eager", xscale="log")
    axes.set_xticks(every, [str(rows) for rows in every])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")


def _draw_edit(axes: Axes, level: Record) -> None:
    names = list(level["runners"])
    left = [0.0] * len(names)
    for stage in level["runners"][names[0]]["stages_s"]:
        widths = [level["runners"][name]["stages_s"][stage] for name in names]
        axes.barh(names, widths, left=left, label=stage)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for name, end in zip(names, left, strict=True):
        axes.annotate(f" {level['runners'][name]['times_faster']['median']:.2f}x", (end, name), va="center")
    axes.set(title=f"{level['batch']} edit(s) at once, {level['num_steps']} steps", xlabel="s")
    axes.set_xlim(right=1.6 * max(left))
    axes.invert_yaxis()
    axes.legend(fontsize="small", loc="lower right")


def _cell(record: Record | None, name: str) -> str:
    if record is None:
        return ""
    text = f"{1000 * record['s']['median']:.2f}"
    if name != "eager":
        text += f" {record['times_faster']['median']:.2f}x"
    return text if record["share"] is None else f"{text} {record['share']:.0%}"


def _notes(result: Record) -> str:
    """Return lines on the runners that ran and those left out, and how far off the networks were."""
    lines = []
    for name, software in result["runners"].items():
        lines.append(f"{name}: {software}; off by at most {_worst(result, name):.0e}")
    lines += [f"{name}: left out, {why}" for name, why in result["left_out"].items()]
    return "\n".join([*lines, "off by: the largest error, in standard deviations of the output"])


def _worst(result: Record, name: str) -> float:
    return max(module["max_rel_error"].get(name, 0.0) for module in result["modules"])
