"""Tests the arithmetic of the comparison on made-up servers and outcomes."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.against.report import (
    DEADLINE,
    LOAD,
    OVERLOAD,
    STEPS,
    SYSTEMS,
    ClaimRow,
    Interval,
    Throughput,
    over_rounds,
    pace,
    plot,
    ratios,
    rows,
    table,
)
from benchmarks.against.run import BASELINES, AgainstSettings, Edits, call, measure, scripts, served
from fashion_rag.request import CATEGORIES
from serve.bench.load import EditOutcome, Reply
from serve.bench.mix import Photo, Planned
from tests.serve.test_bench_load import Server, VirtualLoop, takes

PHOTO = Photo(b"photo", b"mask", "[]")
DONE, REFUSED = Reply(200), Reply(503, "503 Overloaded")
PROMPTS = {category: ["red", "blue"] for category in CATEGORIES}
EDITS = Edits(PROMPTS, {(category, person): PHOTO for category in PROMPTS for person in range(20)}, seed=3)


def outcome(at_s: float, ended_s: float, steps: int = 20, reply: Reply = DONE) -> EditOutcome:
    return EditOutcome(Planned(at_s, "dresses", "red dress", steps=steps), at_s, ended_s, reply)


def called(server: Server, planned: Sequence[Planned], num_callers: int, duration_s: float) -> list[EditOutcome]:
    async def main() -> list[EditOutcome]:
        transport = httpx.MockTransport(server)
        async with httpx.AsyncClient(base_url="http://server", transport=transport, timeout=None) as client:
            return await call(client, planned, EDITS.photos, num_callers, duration_s)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


def turn(system: str, number: int = 0, **changes: Any) -> dict[str, Any]:
    """Return a turn; those of our systems are twice as good as the baselines in everything."""
    better = 2.0 if system in "cd" else 1.0
    plain = {
        "system": system,
        "round": number,
        "cold_start_s": 10.0,
        "light_s": [1.0 / better, 2.0 / better],
        "saturated": {"edits_per_s": 1.0 * better, "steps_per_s": 30.0 * better},
        "steady": {"steps": [10, 20, 10, 50], "latency_s": [seconds / better for seconds in (1.0, 4.0, 2.0, 8.0)]},
        "overload": {"good": {"edits_per_s": 0.9 * better, "steps_per_s": 15.0 * better}},
    }
    return plain | changes


def test_callers_wait_for_their_answers() -> None:
    planned = EDITS.light(5)
    outcomes = called(takes(2.0), planned, num_callers=2, duration_s=100.0)
    assert [outcome.planned.at_s for outcome in outcomes] == [0.0, 0.0, 2.0, 2.0, 4.0]
    assert [outcome.ended_s for outcome in outcomes] == [2.0, 2.0, 4.0, 4.0, 6.0]
    assert [outcome.latency_s for outcome in outcomes] == [2.0] * 5
    assert [replace(outcome.planned, at_s=0.0) for outcome in outcomes] == planned


def test_callers_stop_when_the_time_is_over() -> None:
    outcomes = called(takes(2.0), EDITS.saturating(), num_callers=3, duration_s=3.0)
    assert [outcome.planned.at_s for outcome in outcomes] == [0.0] * 3 + [2.0] * 3
    assert all(outcome.kind == "done" for outcome in outcomes)


def test_every_system_is_sent_the_same_edits_of_known_persons() -> None:
    first, second = EDITS.coming(5.0, 60.0, deadline_s=2.0), EDITS.coming(5.0, 60.0, deadline_s=2.0)
    assert first == second != Edits(PROMPTS, EDITS.photos, seed=4).coming(5.0, 60.0, deadline_s=2.0)
    assert {edit.steps for edit in first} == set(STEPS)
    assert {edit.deadline_s for edit in first} == {2.0}
    assert {(edit.category, edit.person) for edit in first} <= EDITS.photos.keys()
    assert {(edit.steps, edit.at_s, edit.num_garments) for edit in EDITS.light(7)} == {(20, 0.0, 1)}


def test_pace_counts_edits_by_their_time_between_and_within_the_objective() -> None:
    outcomes = [
        outcome(0.0, 2.0, 10),  # before
        outcome(1.0, 3.0, 10),  # half
        outcome(4.0, 10.0, 50),  # slow
        outcome(5.0, 6.0, 20, REFUSED),
        outcome(5.0, 6.0, 20, Reply(failure="timeout")),
        outcome(11.0, 15.0, 20),  # a quarter
        outcome(12.0, 12.5, 50),  # after
    ]
    assert pace(outcomes, 2.0, 12.0) == Throughput(0.175, 6.0)
    assert pace(outcomes, 2.0, 12.0, objective_s=4.0) == Throughput(0.075, 1.0)


def test_pace_is_the_same_however_edits_share_a_server() -> None:
    one_by_one = [outcome(float(at_s), at_s + 1.0, 30) for at_s in range(30)]
    four_at_once = [outcome(4.0 * turn, 4.0 * turn + 4.0, 30) for turn in range(8) for _ in range(4)]
    assert pace(one_by_one, 5.0, 23.0) == pace(four_at_once, 5.0, 23.0) == Throughput(1.0, 30.0)


def test_over_rounds_is_the_median_of_medians() -> None:
    assert over_rounds([[1.0, 9.0, 2.0], [4.0], [30.0, 10.0]])[0] == 4.0
    assert over_rounds([[5.0], [5.0], [5.0]]) == Interval(5.0, 5.0, 5.0)


def test_the_interval_is_of_rounds_and_of_what_is_in_them() -> None:
    _, low, high = over_rounds([[1.0], [2.0], [3.0]])
    assert (low, high) == (1.0, 3.0)
    _, low, high = over_rounds([[float(value) for value in range(100)]])
    assert 30 < low < 50 < high < 70


def test_ratios_are_of_pairs() -> None:
    turns = [turn("a", light_s=[1.0, 10.0, 100.0]), turn("d", light_s=[1.0, 2.0, 50.0])]
    # The ratio of the medians would be 5, and that of the sums 2.1; the ratios of the pairs are 1, 5 and 2.
    assert ratios(turns, "a", "d", lambda turn: turn["light_s"]).value == 2.0


def test_ratios_need_rounds_of_both() -> None:
    turns = [turn("a", 0), turn("a", 1), turn("d", 0)]
    with pytest.raises(AssertionError):
        ratios(turns, "a", "d", lambda turn: turn["light_s"])


def test_rows_compare_the_better_way_round() -> None:
    claims = rows([turn(name, number) for number in range(3) for name in SYSTEMS])
    figures = [(row.compared, row.figure.value, row.met) for row in claims if row.figure]
    assert figures == [
        ("(a) / (d)", 2.0, False),
        ("(a) / (d)", 2.0, None),
        ("(a) / (c)", 2.0, None),
        ("(d) / (a)", 2.0, False),
        ("(c) / (a)", 2.0, None),
        ("(d) / (b)", 2.0, None),
        ("(d) / (b)", 0.5, True),
        ("(d) / (b)", 0.5, None),
        ("(d)", 0.5, False),
    ]
    assert claims[0].cells == dict.fromkeys("abcd", 10.0)
    assert claims[1].cells == {"a": 1.5, "b": 1.5, "c": 0.75, "d": 0.75}
    assert claims[7].cells["b"] == pytest.approx(7.4)
    assert claims[8].cells["b"] == pytest.approx(1.95)
    assert claims[10].cells == {"a": 0.9, "d": 0.9}
    json.dumps([row.as_record() for row in claims], allow_nan=False)


def test_a_cheaper_way_to_as_good_a_picture_counts_only_where_it_is_named() -> None:
    claims = rows(
        [turn("a", light_s=[4.0] * 2), turn("b"), turn("c"), turn("d", light_s=[2.0] * 2, as_good_s=[1.0] * 2)]
    )
    by_name = {row.name: row for row in claims if row.compared == "(a) / (d)"}
    assert {name: row.figure and row.figure.value for name, row in by_name.items()} == {
        "one edit of 20 steps, s": 2.0,
        "one as good, s": 4.0,
    }


@pytest.mark.parametrize(
    ("value", "goal", "at_most", "met"),
    [(3.0, 3.0, False, True), (2.9, 3.0, False, False), (0.5, 0.5, True, True), (0.6, 0.5, True, False)],
)
def test_a_goal_is_met_or_missed(value: float, goal: float, at_most: bool, met: bool) -> None:
    row = ClaimRow("one edit, s", {"a": 1.0}, "(a) / (d)", Interval(value, 0.1, 9.0), goal, at_most)
    assert row.met is met
    (line,) = [line for line in table([row]).splitlines() if line.startswith("| one edit")]
    assert line.endswith(f"| at {'most' if at_most else 'least'} {goal:g} | {'met' if met else 'missed'} |")
    assert f"| (a) / (d) = {value:.2f} | 0.10 to 9.00 |" in line


def test_a_table_has_as_many_cells_in_every_line() -> None:
    claims = rows([turn(name) for name in SYSTEMS])
    assert len({line.count("|") for line in table(claims).splitlines()}) == 1


def test_a_plot_shows_every_claim_and_both_systems(tmp_path: Path) -> None:
    turns = [turn(name) for name in SYSTEMS]
    figure = plot(rows(turns), turns)
    claims, latencies = figure.axes
    assert len(claims.patches) == len(claims.get_xticklabels()) == 4
    assert [line.get_label()[:3] for line in latencies.lines[:4]] == ["(b)", "the", "(d)", "the"]
    figure.savefig(tmp_path / "plot.png")


def test_each_system_is_measured_as_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    open_loops: list[tuple[list[Planned], float]] = []

    def closed_loop(
        url: str, planned: Sequence[Planned], photos: object, num_callers: int = 1, duration_s: float = 1e9
    ) -> list[EditOutcome]:
        return called(takes(2.0), planned, num_callers, duration_s)

    def run(url: str, planned: list[Planned], photos: object, *, timeout_s: float) -> list[EditOutcome]:
        open_loops.append((planned, timeout_s))
        # The first edit is refused, and the others are in time.
        return [
            outcome(edit.at_s, edit.at_s + 1.0, edit.steps, DONE if number else REFUSED)
            for number, edit in enumerate(planned)
        ]

    monkeypatch.setattr("benchmarks.against.run.closed_loop", closed_loop)
    monkeypatch.setattr("benchmarks.against.run.load.run", run)
    settings = AgainstSettings(num_light=3, saturated_s=30.0, steady_s=50.0, overload_s=20.0)
    records = {
        name: measure(name, "", settings, EDITS, 7.0 if name == "d" else None, lambda _: None) for name in SYSTEMS
    }
    assert {name: [key for key in ("steady", "overload") if key in records[name]] for name in records} == {
        "a": ["overload"],
        "b": ["steady"],
        "c": [],
        "d": ["steady", "overload"],
    }
    # Each of eight callers has an edit done in two seconds.
    assert {record["saturated"]["edits_per_s"] for record in records.values()} == {4.0}
    assert records["d"]["light_s"] == [2.0] * 3
    assert records["b"]["steady"]["rate"] == LOAD * 4.0
    assert records["d"]["steady"]["rate"] == 7.0
    assert records["d"]["steady"]["latency_s"][:2] == [120.0, pytest.approx(1.0)]
    assert records["d"]["overload"]["rate"] == OVERLOAD * 4.0
    overload, timeout_s = open_loops[-1]
    assert {edit.deadline_s for edit in overload} == {DEADLINE * 2.0}
    assert timeout_s == 2 * DEADLINE * 2.0
    # It lasts longer than the 20 s of the settings, because the deadline is long.
    assert len(overload) == pytest.approx(5 * DEADLINE * 2.0 * OVERLOAD * 4.0, rel=0.1)
    assert records["d"]["overload"]["summary"]["window_s"] == 5 * DEADLINE * 2.0


def test_each_system_has_a_script() -> None:
    assert scripts(2).keys() == SYSTEMS.keys()
    assert all(find_spec(f"{BASELINES}.{script}") for script, *_ in scripts(2).values())


def test_a_server_that_dies_is_told_with_what_it_said() -> None:
    edit = EDITS.light(1)[0]
    with (
        pytest.raises(RuntimeError, match="No such option"),
        served(("eager", "--no-such-option"), edit, EDITS.photos),
    ):
        pass
