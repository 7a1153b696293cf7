"""Reads a server's own metrics of a load: rows per UNet call, and times. `measure` calls it."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import httpx

# Replicas report their metrics every ten seconds.
SETTLE_S = 12.0
TIMEOUT_S = 10.0
PREFIX = "ray_fashion_rag_"

# The values of series by their names, without the prefix, and labels: at one moment, or by how much they grew.
Series = Mapping[tuple[str, str], float]
# How many observations of a histogram fell into each bucket, by its upper bound.
Buckets = Mapping[float, float]


@dataclass(frozen=True)
class ServerFigures:
    """The figures that the replicas counted and timed, over all edits that they had meanwhile, whoever sent them.

    rows_per_call: mean over UNet calls, if nobody else sent edits; None where it is not known. calls_by_rows: share of
    the UNet calls, by the most rows that they can have had. step_ms, queue_ms, stages_ms: percentiles in milliseconds,
    interpolated within the buckets of histograms, of a UNet call, of the time until an edit's first step was done, and
    of each stage.
    """

    num_calls: int
    rows_per_call: float | None
    calls_by_rows: dict[str, float]
    step_ms: dict[str, float]
    queue_ms: dict[str, float]
    stages_ms: dict[str, dict[str, float]]


def scrape(urls: Sequence[str]) -> Series:
    """Return the series of this project at the metrics endpoints of all nodes. Raises httpx.HTTPError."""
    return parse("\n".join(httpx.get(url, timeout=TIMEOUT_S).raise_for_status().text for url in urls))


def parse(text: str) -> Series:
    """Return the series of this project in a text of Prometheus' format."""
    lines = re.findall(rf"^{PREFIX}(\w+){{(.*)}} (\S+)$", text, re.MULTILINE)
    return {(name, labels): float(value) for name, labels, value in lines}


def server_figures(before: Series, after: Series, num_rows: int | None) -> ServerFigures:
    """Return what happened between two moments.

    num_rows: the rows of all calls that this load has led to; None if they are not known.
    """
    # A replica that was started meanwhile has counted from zero.
    grown = {series: value - before.get(series, 0.0) for series, value in after.items()}
    rows = _histograms(grown, "rows_per_step").get("", {})
    num_calls = sum(rows.values())
    stages = _histograms(grown, "stage_seconds")
    return ServerFigures(
        num_calls=round(num_calls),
        rows_per_call=num_rows / num_calls if num_rows and num_calls else None,
        calls_by_rows={f"{bound:g}": number / num_calls for bound, number in rows.items() if number},
        step_ms=_percentiles_ms(_histograms(grown, "step_seconds").get("", {})),
        queue_ms=_percentiles_ms(_histograms(grown, "queue_seconds").get("", {})),
        stages_ms={stage: _percentiles_ms(buckets) for stage, buckets in sorted(stages.items())},
    )


def _histograms(grown: Series, name: str) -> dict[str, Buckets]:
    """Return the buckets of a histogram, lowest first, over all replicas.

    They are by the label `stage`, or "" where there is none.
    """
    cumulative: dict[str, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    for (series, labels), value in grown.items():
        if series == f"{name}_bucket":
            tags = dict(re.findall(r'(\w+)="(.*?)"', labels))
            cumulative[tags.get("stage", "")][float(tags["le"])] += value
    histograms: dict[str, Buckets] = {}
    for stage, up_to in cumulative.items():
        bounds = [(0.0, 0.0), *sorted(up_to.items())]
        histograms[stage] = {bound: value - below for (_, below), (bound, value) in pairwise(bounds)}
    return histograms


def _percentiles_ms(buckets: Buckets) -> dict[str, float]:
    if not sum(buckets.values()):
        return {}
    return {f"p{percent}": 1000 * _quantile(buckets, percent / 100) for percent in (50, 95)}


def _quantile(buckets: Buckets, share: float) -> float:
    """Return a quantile as Prometheus' histogram_quantile does.

    Observations are taken to be spread evenly within a bucket; in the last, which is open, it is the lower bound.
    """
    wanted, below, lower = share * sum(buckets.values()), 0.0, 0.0
    for bound, number in buckets.items():
        if number and below + number >= wanted:
            return lower if bound == math.inf else lower + (bound - lower) * (wanted - below) / number
        below, lower = below + number, bound
    return lower
