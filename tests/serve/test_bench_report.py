"""Tests the figures of a load on outcomes whose figures are known, and that table and plot show the figures."""

import json
from typing import Any

import numpy as np
import pytest

from serve.bench.load import EditOutcome, Reply
from serve.bench.mix import Planned
from serve.bench.plot import plot
from serve.bench.report import Run, markdown, summarise
from serve.bench.scrape import ServerFigures, parse, server_figures


def outcome(
    at_s: float, latency_s: float, status: int | None = 200, failure: str = "", late_s: float = 0.0, **fields: Any
) -> EditOutcome:
    steps, reply = fields.pop("steps", 20), Reply(status, failure, **fields)
    return EditOutcome(Planned(at_s, "dresses", "red", steps=steps), at_s + late_s, at_s + latency_s, reply)


def test_percentiles_are_those_of_the_edits_that_were_done() -> None:
    done = [outcome(second, 1.0 + second / 100) for second in range(101)]
    not_done = [outcome(1.0, 0.001, 503, "503 Overloaded"), outcome(2.0, 300.0, None, "timeout")]
    latency = summarise([*done, *not_done], 5.0).latency_s
    assert latency is not None
    assert (latency.p50, latency.p90, latency.p95, latency.p99) == pytest.approx((1.5, 1.9, 1.95, 1.99))
    assert latency.mean == pytest.approx(1.5)
    assert latency.p50_interval[0] < 1.5 < latency.p50_interval[1]
    assert latency.p95_interval[0] <= 1.95 <= latency.p95_interval[1]


def test_throughput_is_what_is_done_within_the_window() -> None:
    # They are done at 2, 4, 9, 11 and 13 s, after 1, 3, 6, 3 and 4 s.
    done = [outcome(1.0, 1.0), outcome(1.0, 3.0), outcome(3.0, 6.0), outcome(8.0, 3.0), outcome(9.0, 4.0)]
    summary = summarise([*done, outcome(5.0, 0.1, 429, "429 Overloaded")], objective_s=3.0, window_s=10.0)
    assert summary.throughput_per_s == pytest.approx(3 / 10)
    assert summary.goodput_per_s == pytest.approx(2 / 10)
    assert summary.good_share == pytest.approx(3 / 6)
    assert (summary.num_arrived, summary.num_done, summary.num_refused, summary.num_failed) == (6, 5, 1, 0)


def test_without_a_window_it_lasts_until_the_last_edit_is_over() -> None:
    summary = summarise([outcome(0.0, 1.0), outcome(0.0, 8.0)], 5.0)
    assert (summary.window_s, summary.throughput_per_s) == (8.0, 0.25)


def test_refusals_are_by_status() -> None:
    refused = [outcome(0.0, 0.1 * number, 503, "503 Overloaded", retry_after="5") for number in range(1, 4)]
    silent = [outcome(0.0, 0.3, 503, "503 reply in another form"), outcome(0.0, 60.0, 504, "504 DeadlineExceeded")]
    refusals = summarise([*refused, *silent], 5.0).refusals
    assert list(refusals) == ["503", "504"]
    assert (refusals["503"].number, refusals["503"].retry_after_share) == (4, 0.75)
    assert refusals["503"].p99_s == pytest.approx(0.3)
    assert (refusals["504"].number, refusals["504"].p99_s, refusals["504"].retry_after_share) == (1, 60.0, 0.0)


def test_failures_are_by_kind_most_first() -> None:
    failed = [outcome(0.0, 1.0, None, kind) for kind in ("timeout", "ConnectError", "ConnectError")]
    summary = summarise(failed, 5.0)
    assert list(summary.failures.items()) == [("ConnectError", 2), ("timeout", 1)]
    assert (summary.latency_s, summary.first_preview_s, summary.stages_ms, summary.late) == (None, None, {}, False)
    assert (summary.throughput_per_s, summary.good_share) == (0.0, 0.0)


@pytest.mark.parametrize(("late_s", "late"), [(0.09, False), (0.11, True)])
def test_a_late_client_says_so(late_s: float, late: bool) -> None:
    summary = summarise([outcome(second, 2.0, late_s=late_s) for second in range(10)], 5.0)
    assert summary.send_delay_p99_s == pytest.approx(late_s)
    assert summary.late is late


def test_previews_and_stages_are_those_of_the_replies() -> None:
    outcomes = [
        outcome(10.0, 4.0, preview_at_s=11.0, timings_ms={"denoise": 10.0, "decode": 1.0}),
        outcome(20.0, 4.0, preview_at_s=23.0, timings_ms={"denoise": 30.0, "decode": 3.0}),
        outcome(30.0, 4.0),
    ]
    summary = summarise(outcomes, 5.0)
    assert summary.first_preview_s == pytest.approx({"p50": 2.0, "p95": 2.9})
    assert summary.stages_ms["denoise"] == pytest.approx({"p50": 20.0, "p95": 29.0})
    assert summary.stages_ms["decode"] == pytest.approx({"p50": 2.0, "p95": 2.9})


def width(latencies: list[float]) -> float:
    latency = summarise([outcome(number, seconds) for number, seconds in enumerate(latencies)], 5.0).latency_s
    assert latency is not None
    return latency.p50_interval[1] - latency.p50_interval[0]


def test_edits_that_are_slow_together_are_less_evidence() -> None:
    times = np.random.default_rng(0).normal(5.0, 1.0, 400)
    assert width(sorted(times)) > 2 * width(times.tolist())
    # The standard error of a median of independent times is sqrt(pi / 2 / 400), to both sides.
    assert width(times.tolist()) == pytest.approx(2 * 1.96 * (np.pi / 2 / 400) ** 0.5, rel=0.35)
    assert width([2.0] * 30) == 0.0


BEFORE = """
# HELP ray_fashion_rag_rows_per_step Rows in a UNet call
# TYPE ray_fashion_rag_rows_per_step histogram
ray_fashion_rag_rows_per_step_bucket{deployment="Denoiser",le="2.0"} 10.0
ray_fashion_rag_rows_per_step_bucket{deployment="Denoiser",le="4.0"} 10.0
ray_fashion_rag_rows_per_step_bucket{deployment="Denoiser",le="+Inf"} 10.0
ray_other_total{deployment="Denoiser"} 7.0
"""
AFTER = """
ray_fashion_rag_rows_per_step_bucket{deployment="Denoiser",le="2.0"} 16.0
ray_fashion_rag_rows_per_step_bucket{deployment="Denoiser",le="4.0"} 18.0
ray_fashion_rag_rows_per_step_bucket{deployment="Denoiser",le="+Inf"} 18.0
ray_fashion_rag_rows_per_step_bucket{deployment="Denoiser",replica="new",le="2.0"} 0.0
ray_fashion_rag_rows_per_step_bucket{deployment="Denoiser",replica="new",le="4.0"} 2.0
ray_fashion_rag_rows_per_step_bucket{deployment="Denoiser",replica="new",le="+Inf"} 2.0
ray_fashion_rag_stage_seconds_bucket{stage="decode",le="0.1"} 4.0
ray_fashion_rag_stage_seconds_bucket{stage="decode",le="0.2"} 8.0
ray_fashion_rag_stage_seconds_bucket{stage="decode",le="+Inf"} 8.0
ray_fashion_rag_stage_seconds_bucket{stage="encode",le="0.1"} 0.0
ray_fashion_rag_stage_seconds_bucket{stage="encode",le="0.2"} 0.0
ray_fashion_rag_stage_seconds_bucket{stage="encode",le="+Inf"} 3.0
"""


def test_a_servers_figures_are_what_has_grown() -> None:
    figures = server_figures(parse(BEFORE), parse(AFTER), num_rows=28)
    assert (figures.num_calls, figures.rows_per_call) == (10, 2.8)
    assert figures.calls_by_rows == pytest.approx({"2": 0.6, "4": 0.4})
    assert figures.stages_ms["decode"] == pytest.approx({"p50": 100.0, "p95": 190.0})
    assert figures.stages_ms["encode"] == pytest.approx({"p50": 200.0, "p95": 200.0})
    assert (figures.step_ms, figures.queue_ms) == ({}, {})


def test_a_server_that_did_nothing_has_no_rows() -> None:
    figures = server_figures(parse(BEFORE), parse(BEFORE), num_rows=0)
    assert (figures.num_calls, figures.rows_per_call, figures.calls_by_rows) == (0, None, {})


SERVER = ServerFigures(10, 2.8, {"2": 0.6, "4": 0.4}, {"p50": 41.0, "p95": 83.0}, {}, {})


def runs() -> list[Run]:
    quiet = [outcome(second, 1.0 + second, steps=10 + 40 * (second % 2)) for second in range(4)]
    busy = [*quiet, outcome(1.0, 0.25, 503, "503 Overloaded", retry_after="5"), outcome(2.0, 9.0, None, "timeout")]
    return [
        Run(1.0, quiet, summarise(quiet, 5.0, 10.0), SERVER),
        Run(None, busy, summarise(busy, 5.0), None),
    ]


def test_the_table_has_a_column_for_each_run() -> None:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown(runs()).splitlines()]
    assert lines[:2] == [["", "1/s", "trace"], ["---"] * 3]
    assert {len(line) for line in lines} == {3}
    rows = {name: cells for name, *cells in lines[2:]}
    assert len(rows) == len(lines) - 2
    assert rows["arrived"] == ["4", "6"]
    assert rows["done a second, within the window"] == ["0.40 (10 s)", "0.36 (11 s)"]
    assert rows["p99, s"] == ["3.97", "3.97"]
    assert rows["refused with 503"] == ["", "1, p99 after 0.25 s, Retry-After with 100%"]
    assert rows["failed: timeout"] == ["", "1"]
    assert rows["rows of a UNet call, mean"] == ["2.80", ""]
    assert rows["a UNet call, p50 and p95, ms"] == ["41, 83", ""]


def test_a_run_is_json() -> None:
    first, last = json.loads(json.dumps([run.as_record() for run in runs()]))
    assert (first["rate"], first["summary"]["num_done"], first["server"]["rows_per_call"]) == (1.0, 4, 2.8)
    assert (last["rate"], last["summary"]["refusals"]["503"]["number"], last["server"]) == (None, 1, None)


def test_the_plot_shows_every_edit() -> None:
    figure = plot(runs())
    by_arrival, distribution, below, _ = figure.axes
    assert by_arrival.lines[0].get_xydata().tolist() == [[second, 1.0 + second] for second in range(4)]
    assert [line.get_label() for line in below.lines] == ["4 done", "1 refused", "1 failed", "objective"]
    assert [line.get_label() for line in distribution.lines] == ["10 steps", "50 steps", "objective"]
    assert distribution.lines[0].get_xdata()[-1] == 3.0
