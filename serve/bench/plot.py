"""Pictures of the latencies of a load. Only this module needs matplotlib, which a server has no use for."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from serve.bench.report import Run

MARKS = {"done": (".", "C0"), "refused": ("x", "C1"), "failed": ("+", "C3")}
SIZE = (12.0, 3.6)  # inches of a run's two panels, width and height


def plot(runs: Sequence[Run]) -> Figure:
    """Draw two panels for each run: latencies by intended arrival, and the distribution of latencies."""
    figure = Figure(figsize=(SIZE[0], SIZE[1] * len(runs)), layout="constrained")
    panels = figure.subplots(len(runs), 2, squeeze=False)
    for run, (by_arrival, distribution) in zip(runs, panels, strict=True):
        _draw_arrivals(by_arrival, run)
        _draw_distribution(distribution, run)
        for axes in (by_arrival, distribution):
            axes.set(xlim=(0, None), ylim=(0, None))
            axes.legend(fontsize="small")
    return figure


def _draw_arrivals(axes: Axes, run: Run) -> None:
    axes.set(title=f"edits at {run.name}", xlabel="intended arrival, s", ylabel="from there to the end, s")
    for kind, (marker, colour) in MARKS.items():
        outcomes = [outcome for outcome in run.outcomes if outcome.kind == kind]
        if outcomes:
            at_s = [outcome.planned.at_s for outcome in outcomes]
            latencies = [outcome.latency_s for outcome in outcomes]
            axes.plot(at_s, latencies, marker, color=colour, label=f"{len(outcomes)} {kind}")
    axes.axhline(run.summary.objective_s, color="grey", linestyle=":", label="objective")


def _draw_distribution(axes: Axes, run: Run) -> None:
    axes.set(title="of those that were done, by steps", xlabel="from intended arrival to the end, s", ylabel="share")
    done = [outcome for outcome in run.outcomes if outcome.kind == "done"]
    for steps in sorted({outcome.planned.steps for outcome in done}):
        latencies = [outcome.latency_s for outcome in done if outcome.planned.steps == steps]
        axes.ecdf(latencies, label=f"{steps} steps")
    axes.axvline(run.summary.objective_s, color="grey", linestyle=":", label="objective")
