"""What `against.py` found: figures of one turn, of all rounds, and whether they are what was claimed; table and plot.

A turn is a record: what one system did in one round. `against.py` makes them and calls this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from serve.bench.load import EditOutcome

SYSTEMS = {"a": "diffusers, eager", "b": "Ray Serve, batched", "c": "ours, PyTorch", "d": "ours, ONNX Runtime"}
STEPS = (10, 20, 50)
# Of callers who wait; of (b)'s saturation; of one's own saturation; of a light edit.
CALLERS, LOAD, OVERLOAD, DEADLINE = 8, 0.8, 5, 3

CLAIMED = ("one edit:\n(a) / (d)", "saturated:\n(d) / (a)", f"p95 at {LOAD:.0%}:\n(d) / (b)", "overloaded:\n(d) keeps")

NUM_RESAMPLES = 2000
INTERVAL = (2.5, 97.5)

Record = dict[str, Any]
# Values of a turn; those of another turn of the same round are of the same edits, in the same order.
ReadValues = Callable[[Record], Sequence[float]]


class Throughput(NamedTuple):
    """Edits done a second, and their steps."""

    edits_per_s: float
    steps_per_s: float


class Interval(NamedTuple):
    """A median over rounds, and where 95 % of resamples have it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClaimRow:
    """A line of the table. cells: by system. compared: what `figure` is. goal: of it; None where nothing is claimed."""

    name: str
    cells: dict[str, float]
    compared: str = ""
    figure: Interval | None = None
    goal: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the figure is as claimed; None where nothing is."""
        if self.figure is None or self.goal is None:
            return None
        return self.figure.value <= self.goal if self.at_most else self.figure.value >= self.goal

    def as_record(self) -> Record:
        """The row as plain values for JSON."""
        figure = self.figure._asdict() if self.figure else None
        return asdict(self) | {"figure": figure, "met": self.met}


def pace(outcomes: Iterable[EditOutcome], from_s: float, until_s: float, objective_s: float = math.inf) -> Throughput:
    """What was done between two times, of that which was done within `objective_s` of its arrival.

    An edit counts for as much of its time, from its arrival to its end, as lies between the two. To count what ends
    there would favour short edits where several run at once, and hang on when a batch happens to end.
    """
    edits = steps = 0.0
    for outcome in outcomes:
        if outcome.kind == "done" and outcome.latency_s <= objective_s:
            seconds = min(until_s, outcome.ended_s) - max(from_s, outcome.planned.at_s)
            share = max(0.0, seconds) / outcome.latency_s
            edits += share
            steps += share * outcome.planned.steps
    return Throughput(edits / (until_s - from_s), steps / (until_s - from_s))


def over_rounds(values: Sequence[Sequence[float]]) -> Interval:
    """The median of the rounds' medians, and its interval: rounds drawn again, and in each round its values."""
    rng = np.random.default_rng(0)

    def resampled(some: Sequence[Any]) -> list[Any]:
        return [some[place] for place in rng.integers(len(some), size=len(some))]

    middles = [median(median(resampled(each)) for each in resampled(values)) for _ in range(NUM_RESAMPLES)]
    low, high = np.percentile(middles, INTERVAL).tolist()
    return Interval(median(map(median, values)), low, high)


def ratios(turns: Sequence[Record], over: str, under: str, figures: ReadValues) -> Interval:
    """Of two systems, each value by the other's of the same round and edit."""
    above, below = _of(turns, over), _of(turns, under)
    assert [turn["round"] for turn in above] == [turn["round"] for turn in below]
    paired = [zip(figures(one), figures(other), strict=True) for one, other in zip(above, below, strict=True)]
    return over_rounds([[value / base for value, base in pairs] for pairs in paired])


def light(turn: Record) -> list[float]:
    """Seconds of each edit of a single caller."""
    return list(turn["light_s"])


def as_good(turn: Record) -> list[float]:
    """The same, of a system that has a cheaper way to as good a picture, that way."""
    return list(turn.get("as_good_s", turn["light_s"]))


def saturated(turn: Record) -> list[float]:
    """Edits a second."""
    return [turn["saturated"]["edits_per_s"]]


def steady(turn: Record, steps: Sequence[int] = STEPS) -> list[float]:
    """p95 in seconds, of the edits of these numbers of steps; not a number where none came."""
    edits = zip(turn["steady"]["steps"], turn["steady"]["latency_s"], strict=True)
    latencies = [latency_s for number, latency_s in edits if number in steps]
    return [float(np.percentile(latencies or [math.nan], 95))]


def short(turn: Record) -> list[float]:
    """The same of the edits with the fewest steps."""
    return steady(turn, STEPS[:1])


def kept(turn: Record, unit: str = "steps_per_s") -> list[float]:
    """What is done in time under overload, as a share of what is done saturated."""
    return [turn["overload"]["good"][unit] / turn["saturated"][unit]]


def kept_edits(turn: Record) -> list[float]:
    """The same in edits."""
    return kept(turn, "edits_per_s")


def rows(turns: Sequence[Record]) -> list[ClaimRow]:
    """The table's lines."""

    def cells(systems: str, figures: ReadValues) -> dict[str, float]:
        return {name: median(median(figures(turn)) for turn in _of(turns, name)) for name in systems}

    at_load = f"at {LOAD:.0%} of (b)'s saturation"
    overload = f"done in time at {OVERLOAD} times its saturation, by its saturation"
    times = cells("abcd", light)
    paces = cells("abcd", saturated)
    goodput = over_rounds([kept(turn) for turn in _of(turns, "d")])
    return [
        ClaimRow("start to first picture, s", cells("abcd", lambda turn: [turn["cold_start_s"]])),
        ClaimRow("one edit of 20 steps, s", times, "(a) / (d)", ratios(turns, "a", "d", light), 3.0),
        ClaimRow("one as good, s", cells("d", as_good), "(a) / (d)", ratios(turns, "a", "d", as_good)),
        ClaimRow("one edit of 20 steps", {}, "(a) / (c)", ratios(turns, "a", "c", light)),
        ClaimRow("saturated, edits/s", paces, "(d) / (a)", ratios(turns, "d", "a", saturated), 4.0),
        ClaimRow("the same", {}, "(c) / (a)", ratios(turns, "c", "a", saturated)),
        ClaimRow("the same", {}, "(d) / (b)", ratios(turns, "d", "b", saturated)),
        ClaimRow(f"p95 {at_load}, s", cells("bd", steady), "(d) / (b)", ratios(turns, "d", "b", steady), 0.5, True),
        ClaimRow("the same, of 10 steps, s", cells("bd", short), "(d) / (b)", ratios(turns, "d", "b", short)),
        ClaimRow(f"{overload}, in steps", cells("ad", kept), "(d)", goodput, 0.9),
        ClaimRow("the same, in edits", cells("ad", kept_edits)),
    ]


def table(found: Sequence[ClaimRow]) -> str:
    """The rows in Markdown."""
    head = ["", *(f"({name}) {what}" for name, what in SYSTEMS.items()), "compared", "95 % interval", "goal", ""]
    lines = [head, ["---"] * len(head), *map(_cells, found)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: ClaimRow) -> list[str]:
    numbers = [f"{row.cells[name]:.2f}" if name in row.cells else "" for name in SYSTEMS]
    compared = interval = goal = ""
    if row.figure:
        compared = f"{row.compared} = {row.figure.value:.2f}"
        interval = f"{row.figure.low:.2f} to {row.figure.high:.2f}"
    if row.goal is not None:
        goal = f"at {'most' if row.at_most else 'least'} {row.goal:g}"
    return [row.name, *numbers, compared, interval, goal, {True: "met", False: "missed", None: ""}[row.met]]


def plot(found: Sequence[ClaimRow], turns: Sequence[Record]) -> Figure:
    """What was claimed, with intervals and goals; and the latencies of (b) and (d) at the same arrivals."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_claims(left, [row for row in found if row.goal is not None])
    _draw_latencies(right, turns)
    return figure


def _draw_claims(axes: Axes, claimed: Sequence[ClaimRow]) -> None:
    for place, row in enumerate(claimed):
        assert row.figure is not None and row.goal is not None
        value, low, high = row.figure
        axes.bar(place, value, color="C2" if row.met else "C3")
        axes.errorbar(place, value, [[value - low], [high - value]], color="black", capsize=4)
        axes.hlines(row.goal, place - 0.45, place + 0.45, color="black", linestyle=":")
        axes.annotate(f"{value:.2f}", (place, high), (0, 3), textcoords="offset points", ha="center", fontsize="small")
    axes.set_xticks(range(len(claimed)), CLAIMED, fontsize="small")
    axes.set(title="green: as claimed; dotted: goal", ylim=(0, None))


def _draw_latencies(axes: Axes, turns: Sequence[Record]) -> None:
    for colour, name in enumerate("bd"):
        edits = [
            edit
            for turn in _of(turns, name)
            for edit in zip(turn["steady"]["steps"], turn["steady"]["latency_s"], strict=True)
        ]
        label = f"({name}) {SYSTEMS[name]}"
        axes.ecdf([latency_s for _, latency_s in edits], color=f"C{colour}", label=label)
        some = [latency_s for steps, latency_s in edits if steps == STEPS[0]]
        axes.ecdf(some, color=f"C{colour}", linestyle="--", label=f"the same, {STEPS[0]} steps")
    axes.axhline(0.95, color="grey", linestyle=":")
    axes.set(
        title=f"at {LOAD:.0%} of (b)'s saturation, same arrivals",
        xlabel="from intended arrival to the end, s",
        ylabel="share of edits",
        xlim=(0, None),
    )
    axes.legend(fontsize="small", loc="lower right")


def _of(turns: Sequence[Record], system: str) -> list[Record]:
    return [turn for turn in turns if turn["system"] == system]
