"""Tests the figures of an overload on made-up outcomes; the loads themselves are those of `benchmarks.against`."""

import pytest
from rich.console import Console

from benchmarks.overload import load_record, num_refused, table
from serve.bench.load import EditOutcome, Reply
from serve.bench.mix import Planned
from serve.bench.scrape import parse

DONE, REFUSED, LATE = Reply(200), Reply(503, "503 Overloaded"), Reply(504, "504 DeadlineExceeded")


def outcome(at_s: float, seconds: float, reply: Reply = DONE, steps: int = 20) -> EditOutcome:
    return EditOutcome(Planned(at_s, "dresses", "red", steps=steps), at_s, at_s + seconds, reply)


def test_all_refusals_count_whichever_stage_they_are_of() -> None:
    metrics = """
ray_fashion_rag_refusals_total{stage="ingress",x="1"} 2.0
ray_fashion_rag_refusals_total{stage="denoise",x="2"} 5.0
ray_fashion_rag_edits_total{status="503"} 7.0
"""
    assert num_refused(parse(metrics)) == 7


def test_late_is_what_was_let_in_and_has_no_picture_in_time() -> None:
    outcomes = [
        outcome(2.0, 2.0),
        outcome(4.0, 4.0, steps=50),
        outcome(4.0, 6.0),  # done, but later than its deadline
        outcome(5.0, 5.0, LATE),
        outcome(6.0, 0.1, REFUSED),
        outcome(7.0, 0.1, LATE),  # refused at once
    ]
    record = load_record(outcomes, refused=2, duration_s=10.0, deadline_s=5.0, peak_steps_per_s=17.5)
    assert (record["arrived"], record["let_in"], record["late"], record["late_share"]) == (6, 4, 2, 0.5)
    # The first fifth of the time is left out.
    assert record["goodput_steps_per_s"] == pytest.approx(70 / 8)
    assert record["goodput_share"] == pytest.approx(0.5)


def test_with_nobody_let_in_nobody_is_late() -> None:
    record = load_record([outcome(0.0, 0.1, REFUSED)], 1, duration_s=10.0, deadline_s=5.0, peak_steps_per_s=1.0)
    assert (record["let_in"], record["late"], record["late_share"], record["goodput_share"]) == (0, 0, 0.0, 0.0)


def test_the_table_has_every_load() -> None:
    load = load_record([outcome(2.0, 2.0)], 0, duration_s=10.0, deadline_s=5.0, peak_steps_per_s=2.5)
    console = Console(width=200, record=True)
    console.print(table([{"loads": [{"times": 5, "rate": 6.0, **load}]}]))
    assert console.export_text().split()[-8:] == ["1", "5", "6.00", "1", "0", "0.0%", "2.5", "1.00"]
