"""The figures of one turn and of all rounds, whether they are as claimed, and their table and plot. `run.py` calls it.

A turn is a record of what one system did in one round.
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
CALLERS = 8  # that saturate a system, each with one edit at a time
LOAD = 0.8  # of what (b) does saturated
OVERLOAD = 5  # times what the system itself does saturated
DEADLINE = 3  # times a light edit

CLAIMED = ("one edit:\n(a) / (d)", "saturated:\n(d) / (a)", f"p95 at {LOAD:.0%}:\n(d) / (b)", "overloaded:\n(d) keeps")

NUM_RESAMPLES = 2000
INTERVAL = (2.5, 97.5)

Record = dict[str, Any]
# Returns values of a turn; in all turns of a round they belong to the same edits, in the same order.
ReadValues = Callable[[Record], Sequence[float]]


class Throughput(NamedTuple):
    """How many edits are done a second, and how many steps."""

    edits_per_s: float
    steps_per_s: float


class Interval(NamedTuple):
    """A median over rounds, and the interval that holds 95 % of its resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClaimRow:
    """A line of the table.

    cells: a value for each system. compared: which ratio or share `figure` is. goal: what `figure` is claimed to reach,
    or to stay below if `at_most`; None where nothing is claimed.
    """

    name: str
    cells: dict[str, float]
    compared: str = ""
    figure: Interval | None = None
    goal: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Return whether the figure is as claimed; None where nothing is claimed."""
        if self.figure is None or self.goal is None:
            return None
        return self.figure.value <= self.goal if self.at_most else self.figure.value >= self.goal

    def as_record(self) -> Record:
        """Return the row as plain values for JSON."""
        figure = self.figure._asdict() if self.figure else None
        return asdict(self) | {"figure": figure, "met": self.met}


def pace(outcomes: Iterable[EditOutcome], from_s: float, until_s: float, objective_s: float = math.inf) -> Throughput:
    """Return what was done a second between two times, counting edits done within `objective_s` of their arrival.

    An edit counts by the share of its time, from arrival to end, that lies between the two. Counting the edits that end
    there would favour short edits where several run at once, and would depend on when a batch happens to end.
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
    """Return the median of the rounds' medians, and its interval: rounds are resampled, and the values within each."""
    rng = np.random.default_rng(0)

    def resampled(sample: Sequence[Any]) -> list[Any]:
        return [sample[place] for place in rng.integers(len(sample), size=len(sample))]

    middles = []
    for _ in range(NUM_RESAMPLES):
        middles.append(median(median(resampled(of_round)) for of_round in resampled(values)))
    low, high = np.percentile(middles, INTERVAL).tolist()
    return Interval(median(map(median, values)), low, high)


def ratios(turns: Sequence[Record], over: str, under: str, figures: ReadValues) -> Interval:
    """Return the values of system `over`, each divided by that of system `under` in the same round and edit."""
    above, below = _turns_of(turns, over), _turns_of(turns, under)
    assert [turn["round"] for turn in above] == [turn["round"] for turn in below]
    quotients = []
    for turn, base_turn in zip(above, below, strict=True):
        pairs = zip(figures(turn), figures(base_turn), strict=True)
        quotients.append([value / base for value, base in pairs])
    return over_rounds(quotients)


def light(turn: Record) -> list[float]:
    """Return the seconds of each edit of a single caller."""
    return list(turn["light_s"])


def as_good(turn: Record) -> list[float]:
    """Return the same, made the cheaper way to as good a picture where the system has one."""
    if "as_good_s" in turn:
        return list(turn["as_good_s"])
    return light(turn)


def saturated(turn: Record) -> list[float]:
    """Return the edits a second of a saturated system."""
    return [turn["saturated"]["edits_per_s"]]


def steady(turn: Record, steps: Sequence[int] = STEPS) -> list[float]:
    """Return p95, in seconds, of the edits with these numbers of steps; it is not a number where none came."""
    edits = zip(turn["steady"]["steps"], turn["steady"]["latency_s"], strict=True)
    latencies = [latency_s for number, latency_s in edits if number in steps]
    return [float(np.percentile(latencies or [math.nan], 95))]


def short(turn: Record) -> list[float]:
    """Return the same of the edits with the fewest steps."""
    return steady(turn, STEPS[:1])


def kept(turn: Record, unit: str = "steps_per_s") -> list[float]:
    """Return what is done in time under overload, as a share of what is done saturated."""
    return [turn["overload"]["good"][unit] / turn["saturated"][unit]]


def kept_edits(turn: Record) -> list[float]:
    """Return the same share, counted in edits."""
    return kept(turn, "edits_per_s")


def rows(turns: Sequence[Record]) -> list[ClaimRow]:
    """Return the table's lines."""

    def cells(systems: str, figures: ReadValues) -> dict[str, float]:
        by_system = {}
        for name in systems:
            by_system[name] = median(median(figures(turn)) for turn in _turns_of(turns, name))
        return by_system

    at_load = f"at {LOAD:.0%} of (b)'s saturation"
    overload = f"done in time at {OVERLOAD} times its saturation, by its saturation"
    times = cells("abcd", light)
    paces = cells("abcd", saturated)
    goodput = over_rounds([kept(turn) for turn in _turns_of(turns, "d")])
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


def table(claims: Sequence[ClaimRow]) -> str:
    """Return the rows in Markdown."""
    head = ["", *(f"({name}) {what}" for name, what in SYSTEMS.items()), "compared", "95 % interval", "goal", ""]
    lines = [head, ["---"] * len(head), *map(_cells, claims)]
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


def plot(claims: Sequence[ClaimRow], turns: Sequence[Record]) -> Figure:
    """Draw what was claimed, with intervals and goals, and the latencies of (b) and (d) at the same arrivals."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_claims(left, [row for row in claims if row.goal is not None])
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
        edits: list[tuple[int, float]] = []
        for turn in _turns_of(turns, name):
            edits += zip(turn["steady"]["steps"], turn["steady"]["latency_s"], strict=True)
        label = f"({name}) {SYSTEMS[name]}"
        axes.ecdf([latency_s for _, latency_s in edits], color=f"C{colour}", label=label)
        short_latencies = [latency_s for steps, latency_s in edits if steps == STEPS[0]]
        axes.ecdf(short_latencies, color=f"C{colour}", linestyle="--", label=f"the same, {STEPS[0]} steps")
    axes.axhline(0.95, color="grey", linestyle=":")
    axes.set(
        title=f"at {LOAD:.0%} of (b)'s saturation, same arrivals",
        xlabel="from intended arrival to the end, s",
        ylabel="share of edits",
        xlim=(0, None),
    )
    axes.legend(fontsize="small", loc="lower right")


def _turns_of(turns: Sequence[Record], system: str) -> list[Record]:
    return [turn for turn in turns if turn["system"] == system]
