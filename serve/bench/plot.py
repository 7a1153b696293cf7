"""Pictures of latencies and of a traced edit. Only this module needs matplotlib, which a server has no use for."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from serve.bench.budget import KINDS, UNACCOUNTED, kind_of, unet_calls
from serve.bench.report import Run
from serve.bench.spans import TracedSpan
from serve.bench.waterfall import rows
from serve.tracing import Kind

MARKS = {"done": (".", "C0"), "refused": ("x", "C1"), "failed": ("+", "C3")}
KIND_COLOURS: dict[str, str] = {
    Kind.NETWORK: "C2",
    Kind.IMAGE: "C6",
    Kind.HANDOVER: "C1",
    Kind.WAIT: "C3",
    Kind.HTTP: "C0",
    UNACCOUNTED: "C7",
}
WATERFALL_SIZE = (12.0, 0.2)  # inches: the width of a waterfall, and the height of one of its spans
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


def plot_waterfall(root: TracedSpan, spans: Sequence[TracedSpan], title: str) -> Figure:
    """Draw the spans of an edit as bars from left to right, the inner below the outer, with its UNet calls."""
    shown = list(rows(root, spans))
    figure = Figure(figsize=(WATERFALL_SIZE[0], 1.5 + WATERFALL_SIZE[1] * len(shown)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(shown):
        span = row.span
        start_ms, length_ms = (span.started_ns - root.started_ns) / 1e6, (span.ended_ns - span.started_ns) / 1e6
        axes.barh(place, length_ms, left=start_ms, color=KIND_COLOURS[kind_of(span)])
        for call in unet_calls(span):
            call_ms = (call.ended_ns - call.started_ns) / 1e6
            left = (call.started_ns - root.started_ns) / 1e6
            axes.barh(place, call_ms, left=left, color=KIND_COLOURS[Kind.NETWORK], edgecolor="black", linewidth=0.5)
    for kind in KINDS:
        axes.barh(0, 0, color=KIND_COLOURS[kind], label=kind)
    axes.set_yticks(range(len(shown)), ["  " * row.depth + row.label for row in shown], fontsize="x-small", ha="left")
    axes.tick_params(axis="y", pad=260)
    axes.set(title=title, xlabel="ms since the client sent the edit", ylim=(len(shown), -1))
    axes.legend(fontsize="small", loc="lower left")
    return figure
