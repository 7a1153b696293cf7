"""The latencies of a load as pictures. Only here is matplotlib needed, which a server has no use for."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from serve.bench.report import Run

MARKS = {"done": (".", "C0"), "refused": ("x", "C1"), "failed": ("+", "C3")}
SIZE = (12.0, 3.6)  # inches, of a run


def plot(runs: Sequence[Run]) -> Figure:
    """For each run a line: how long each edit took, by when it was to arrive, and how many took at most how long."""
    figure = Figure(figsize=(SIZE[0], SIZE[1] * len(runs)), layout="constrained")
    for run, (by_arrival, distribution) in zip(runs, figure.subplots(len(runs), 2, squeeze=False), strict=True):
        _draw_arrivals(by_arrival, run)
        _draw_distribution(distribution, run)
        for axes in (by_arrival, distribution):
            axes.set(xlim=(0, None), ylim=(0, None))
            axes.legend(fontsize="small")
    return figure


def _draw_arrivals(axes: Axes, run: Run) -> None:
    axes.set(title=f"edits at {run.name}", xlabel="intended arrival, s", ylabel="from there to the end, s")
    for kind, (marker, colour) in MARKS.items():
        some = [outcome for outcome in run.outcomes if outcome.kind == kind]
        if some:
            at_s = [outcome.planned.at_s for outcome in some]
            latencies = [outcome.latency_s for outcome in some]
            axes.plot(at_s, latencies, marker, color=colour, label=f"{len(some)} {kind}")
    axes.axhline(run.summary.objective_s, color="grey", linestyle=":", label="objective")


def _draw_distribution(axes: Axes, run: Run) -> None:
    axes.set(title="of those that were done, by steps", xlabel="from intended arrival to the end, s", ylabel="share")
    done = [outcome for outcome in run.outcomes if outcome.kind == "done"]
    for steps in sorted({outcome.planned.steps for outcome in done}):
        axes.ecdf([each.latency_s for each in done if each.planned.steps == steps], label=f"{steps} steps")
    axes.axvline(run.summary.objective_s, color="grey", linestyle=":", label="objective")
