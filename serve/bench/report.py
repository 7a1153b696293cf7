"""The figures of a load, and their table."""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.bench.load import EditOutcome
from serve.bench.scrape import ServerFigures

NUM_RESAMPLES = 1000
INTERVAL = (2.5, 97.5)
# A share of the median latency. A client that sends later than this measures itself.
MAX_SEND_DELAY = 0.05


@dataclass(frozen=True)
class Latency:
    """The latencies of the edits that were done, in seconds; an interval holds 95 % of a percentile's resamples."""

    p50: float
    p50_interval: tuple[float, float]
    p90: float
    p95: float
    p95_interval: tuple[float, float]
    p99: float
    mean: float


@dataclass(frozen=True)
class Refusals:
    """The edits that were refused with one status.

    p99_s: seconds from the intended arrival. retry_after_share: the share that was told when to retry.
    """

    number: int
    p99_s: float
    retry_after_share: float


@dataclass(frozen=True)
class Summary:
    """The figures of one load. All times count from the intended arrival of an edit.

    The window begins with the clock, and ends `window_s` later, when edits no longer arrive. throughput_per_s: edits
    done before the window ends, divided by its length; edits done later do not count. goodput_per_s: the same for edits
    done within the objective. good_share: the share of all edits that arrived and were done within the objective, also
    after the window. refusals: by status. failures: by kind, most frequent first. send_delay_p99_s: how late this
    client was. late: whether the latencies are in part the client's own, because it was that late. stages_ms: median
    and p95 of the replies' timings. Figures are None or empty where there was nothing to measure.
    """

    window_s: float
    objective_s: float
    num_arrived: int
    num_done: int
    num_refused: int
    num_failed: int
    throughput_per_s: float
    goodput_per_s: float
    good_share: float
    latency_s: Latency | None
    first_preview_s: dict[str, float] | None
    refusals: dict[str, Refusals]
    failures: dict[str, int]
    send_delay_p99_s: float
    late: bool
    stages_ms: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Run:
    """A load and its figures. rate: edits a second that were to arrive on average; None for a trace."""

    rate: float | None
    outcomes: Sequence[EditOutcome]
    summary: Summary
    server: ServerFigures | None

    @property
    def name(self) -> str:
        """Return the run's name, for the head of a column."""
        return "trace" if self.rate is None else f"{self.rate:g}/s"

    def as_record(self) -> dict[str, Any]:
        """Return the figures as plain values for JSON, and those of each edit as columns, in the order of the plan.

        rows: those of the UNet, in all steps together.
        """
        server = dataclasses.asdict(self.server) if self.server else None
        edits = {
            "at_s": [round(outcome.planned.at_s, 4) for outcome in self.outcomes],
            "steps": [outcome.planned.steps for outcome in self.outcomes],
            "rows": [outcome.planned.num_rows for outcome in self.outcomes],
            "kind": [outcome.kind for outcome in self.outcomes],
            "latency_s": [round(outcome.latency_s, 4) for outcome in self.outcomes],
        }
        return {"rate": self.rate, "summary": dataclasses.asdict(self.summary), "server": server, "edits": edits}


def summarise(outcomes: Sequence[EditOutcome], objective_s: float, window_s: float | None = None) -> Summary:
    """Return the figures of one or more outcomes. window_s: None for until the last edit was over."""
    window_s = window_s or max(outcome.ended_s for outcome in outcomes)
    kinds = Counter(outcome.kind for outcome in outcomes)
    done = [outcome for outcome in outcomes if outcome.kind == "done"]
    good = [outcome for outcome in done if outcome.latency_s <= objective_s]
    failures = Counter(outcome.reply.failure for outcome in outcomes if outcome.kind == "failed")
    previews = [outcome.first_preview_s for outcome in done if outcome.first_preview_s is not None]
    send_delay_p99_s = _percentile([outcome.send_delay_s for outcome in outcomes], 99)
    by_arrival = sorted(done, key=lambda outcome: outcome.planned.at_s)
    latency = _latency([outcome.latency_s for outcome in by_arrival])
    return Summary(
        window_s=window_s,
        objective_s=objective_s,
        num_arrived=len(outcomes),
        num_done=kinds["done"],
        num_refused=kinds["refused"],
        num_failed=kinds["failed"],
        throughput_per_s=sum(outcome.ended_s <= window_s for outcome in done) / window_s,
        goodput_per_s=sum(outcome.ended_s <= window_s for outcome in good) / window_s,
        good_share=len(good) / len(outcomes),
        latency_s=latency,
        first_preview_s=_percentiles(previews) if previews else None,
        refusals=_refusals([outcome for outcome in outcomes if outcome.kind == "refused"]),
        failures=dict(failures.most_common()),
        send_delay_p99_s=send_delay_p99_s,
        late=latency is not None and send_delay_p99_s > MAX_SEND_DELAY * latency.p50,
        stages_ms=_stages(done),
    )


def markdown(runs: Sequence[Run]) -> str:
    """Return all runs as a table in Markdown, with a column for each."""
    columns = [_cells(run) for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    lines = [["", *(run.name for run in runs)], ["---"] * (1 + len(runs))]
    lines += [[name, *(column.get(name, "") for column in columns)] for name in names]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(run: Run) -> dict[str, str]:
    """Return the cells of a run's column, by the name of their line."""
    summary, latency, server = run.summary, run.summary.latency_s, run.server
    cells = {
        "arrived": str(summary.num_arrived),
        "done": str(summary.num_done),
        "refused": str(summary.num_refused),
        "failed": str(summary.num_failed),
        "done a second, within the window": f"{summary.throughput_per_s:.2f} ({summary.window_s:.0f} s)",
        f"the same, within {summary.objective_s:g} s": f"{summary.goodput_per_s:.2f}",
        f"of all, done within {summary.objective_s:g} s": f"{summary.good_share:.1%}",
    }
    if latency:
        cells |= {"p50 (95 % interval), s": _with_interval(latency.p50, latency.p50_interval)}
        cells |= {"p90, s": f"{latency.p90:.2f}"}
        cells |= {"p95 (95 % interval), s": _with_interval(latency.p95, latency.p95_interval)}
        cells |= {"p99, s": f"{latency.p99:.2f}", "mean, s": f"{latency.mean:.2f}"}
    if summary.first_preview_s:
        cells["first preview, p50 and p95, s"] = _pair(summary.first_preview_s, 2)
    for status, refused in summary.refusals.items():
        retry_after = f"Retry-After with {refused.retry_after_share:.0%}"
        cells[f"refused with {status}"] = f"{refused.number}, p99 after {refused.p99_s:.2f} s, {retry_after}"
    cells |= {f"failed: {failure}": str(number) for failure, number in summary.failures.items()}
    cells |= {f"{stage}, p50 and p95, ms": _pair(times, 0) for stage, times in summary.stages_ms.items()}
    if server and server.rows_per_call is not None:
        cells["rows of a UNet call, mean"] = f"{server.rows_per_call:.2f}"
    if server and server.step_ms:
        cells["a UNet call, p50 and p95, ms"] = _pair(server.step_ms, 0)
    cells["sent late, p99, ms"] = f"{1000 * summary.send_delay_p99_s:.1f}"
    return cells


def _with_interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"


def _pair(percentiles: Mapping[str, float], digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in percentiles.values())


def _latency(latencies: Sequence[float]) -> Latency | None:
    """Return the figures of latencies in the order of arrival; None if there are none."""
    if not latencies:
        return None
    p50, p90, p95, p99 = (_percentile(latencies, percent) for percent in (50, 90, 95, 99))
    p50_interval, p95_interval = intervals(latencies, (50, 95))
    return Latency(p50, p50_interval, p90, p95, p95_interval, p99, float(np.mean(latencies)))


def intervals(values: Sequence[float], percents: Sequence[int]) -> list[tuple[float, float]]:
    """Return the interval of each percentile, by the circular block bootstrap (Politis and Romano 1992).

    It resamples blocks of neighbours, because edits that queue behind one another are slow together: drawn one by one,
    they would pass for more evidence than they are. The resamples are always the same.
    """
    rng = np.random.default_rng(0)
    array, length = np.asarray(values), math.isqrt(len(values))
    resampled = []
    for _ in range(NUM_RESAMPLES):
        starts = rng.integers(len(array), size=math.ceil(len(array) / length))
        places = (starts[:, None] + np.arange(length)).ravel()[: len(array)] % len(array)
        resampled.append(np.percentile(array[places], percents))
    low, high = np.percentile(resampled, INTERVAL, axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _refusals(refused: Iterable[EditOutcome]) -> dict[str, Refusals]:
    by_status: dict[str, list[EditOutcome]] = defaultdict(list)
    for outcome in refused:
        by_status[str(outcome.reply.status)].append(outcome)
    refusals: dict[str, Refusals] = {}
    for status, outcomes in sorted(by_status.items()):
        refusals[status] = Refusals(
            number=len(outcomes),
            p99_s=_percentile([outcome.latency_s for outcome in outcomes], 99),
            retry_after_share=sum(outcome.reply.retry_after is not None for outcome in outcomes) / len(outcomes),
        )
    return refusals


def _stages(done: Iterable[EditOutcome]) -> dict[str, dict[str, float]]:
    times: dict[str, list[float]] = defaultdict(list)
    for outcome in done:
        for stage, milliseconds in outcome.reply.timings_ms.items():
            times[stage].append(milliseconds)
    return {stage: _percentiles(values) for stage, values in times.items()}


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{percent}": _percentile(values, percent) for percent in (50, 95)}


def _percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent))
