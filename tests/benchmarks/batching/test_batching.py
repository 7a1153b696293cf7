import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from torch import Tensor

from benchmarks.batching.open_loop import LetIn, NumberedArrival, SimulatedEngine, Times, arrivals, serve
from benchmarks.batching.report import details, overview, plot
from benchmarks.batching.run import (
    QUICK,
    anyone,
    assumed_steps,
    benchmark,
    capacity,
    compare,
    figures,
    next_alike,
    next_batch,
)
from fashion_rag.denoising.engine import Engine
from fashion_rag.denoising.runner import Inputs
from fashion_rag.denoising.scheduler import Limits
from fashion_rag.errors import FashionRAGError

INPUTS = Inputs.blank((2, 2), 4)
STEP_S = {2: 1.0, 4: 1.5}
# The second and third come while the first runs.
COMING = [NumberedArrival(0, 2.0, 3), NumberedArrival(1, 2.5, 1), NumberedArrival(2, 2.6, 2)]


@pytest.mark.parametrize(
    ("let_in", "done_s", "empty_s"),
    [
        (anyone, [4.0, 2.0, 4.4], [5.0, 4.5, 4.4]),
        (next_batch, [3.0, 4.0, 4.9], [3.0, 5.0, 4.9]),
        (next_alike, [3.0, 3.5, 5.4], [3.0, 3.5, 5.4]),
    ],
)
def test_edits_take_the_time_of_the_steps_that_they_wait_for_and_share(
    let_in: LetIn, done_s: list[float], empty_s: list[float]
) -> None:
    engine = SimulatedEngine(Limits(max_rows=4), STEP_S)
    times = serve(engine, engine.sleep, COMING, let_in, INPUTS)
    assert [edit_times.done_s for edit_times in times] == pytest.approx(done_s)
    assert [edit_times.empty_s for edit_times in times] == pytest.approx(empty_s)


def test_batches_take_the_oldest_and_no_more_than_fit() -> None:
    waiting = [
        NumberedArrival(0, 0.0, 10),
        NumberedArrival(1, 0.1, 20),
        NumberedArrival(2, 0.2, 10),
        NumberedArrival(3, 0.3, 10),
    ]
    assert [arrival.number for arrival in next_batch(waiting, 0, 2)] == [0, 1]
    assert [arrival.number for arrival in next_alike(waiting, 0, 2)] == [0, 2]
    for let_in in (next_batch, next_alike):
        assert let_in(waiting, 1, 2) == let_in([], 0, 2) == []


def test_an_edit_that_fails_ends_the_benchmark() -> None:
    def broken(sample: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(FashionRAGError, match="out of memory"):
        serve(Engine(broken, Limits()), lambda seconds: None, [NumberedArrival(0, 0.0, 1)], anyone, INPUTS)


def test_arrivals_are_equal_parts_the_same_at_every_rate() -> None:
    slow, fast = (arrivals((10, 20, 50), 3000, rate, seed=1) for rate in (0.5, 2.0))
    assert [arrival.num_steps for arrival in slow] == [arrival.num_steps for arrival in fast]
    assert [arrival.at_s for arrival in slow] == pytest.approx([4 * arrival.at_s for arrival in fast])
    assert [sum(arrival.num_steps == steps for arrival in slow) for steps in (10, 20, 50)] == [1000] * 3
    assert 3000 / slow[-1].at_s == pytest.approx(0.5, rel=0.1)
    pauses = np.diff([arrival.at_s for arrival in slow])
    assert pauses.min() > 0 and pauses.std() == pytest.approx(pauses.mean(), rel=0.1)
    assert arrivals((10, 20, 50), 3000, 0.5, seed=2) != slow


def test_capacity_is_that_of_full_batches() -> None:
    assert capacity({2: 1.0, 4: 1.5, 6: 2.0}, (10, 30)) == 3 / (2.0 * 20)


def test_assumed_steps_lie_on_a_line() -> None:
    assert assumed_steps(0.1, 3.0, max_rows=6) == pytest.approx({2: 0.1, 4: 0.2, 6: 0.3})


def test_figures_of_a_method() -> None:
    coming = [NumberedArrival(number, 10.0 * number, steps) for number, steps in enumerate((10, 20, 10))]
    assert figures(coming, [2.0, 3.0, 6.0], alone_s=0.1) == pytest.approx(
        {
            "p50_s": 3.0,
            "p95_s": 5.7,
            "mean_s": 11 / 3,
            "p95_own": 5.6,
            "mean_own": 9.5 / 3,
            "answers_per_s": 3 / 26,
            "p95_s_of_10_steps": 5.8,
            "p95_s_of_20_steps": 3.0,
        }
    )


def test_methods_are_compared_on_the_same_arrivals_and_by_the_answers_that_they_give() -> None:
    seen: list[Sequence[NumberedArrival]] = []
    seconds = {anyone: Times(2.0, 99.0), next_batch: Times(4.0, 8.0), next_alike: Times(1.0, 99.0)}

    def run(coming: Sequence[NumberedArrival], let_in: LetIn) -> list[Times]:
        seen.append(coming)
        # The second repeat is slower for all, the third for shared steps.
        slower = (1, 3, 4 if let_in is anyone else 1)[(len(seen) - 1) // 3]
        return [Times(*(slower * value for value in seconds[let_in]))] * len(coming)

    level = compare(run, "uniform", 0.5, STEP_S, num_edits=4, num_repeats=3, seed=0)
    assert seen[0] == seen[1] == seen[2] != seen[3]
    p95 = {name: method_figures["p95_s"] for name, method_figures in level["methods"].items()}
    assert p95 == {"shared": 6.0, "whole": 8.0, "early": 4.0, "alike": 1.0}
    ratios = {name: spreads["p95_s"] for name, spreads in level["shared_divided_by"].items()}
    assert ratios == {
        "whole": {"median": 0.25, "min": 0.25, "max": 1.0},
        "early": {"median": 0.5, "min": 0.5, "max": 2.0},
        "alike": {"median": 2.0, "min": 2.0, "max": 8.0},
    }
    assert level["methods"]["shared"]["mean_own"] == pytest.approx(6.0 / 20)


def printed(table: object) -> str:
    console = Console(width=100, file=io.StringIO())
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_the_benchmark_runs_and_tells_measured_from_simulated(tiny_bundle: Path, tmp_path: Path) -> None:
    settings = replace(
        QUICK, max_rows=4, pace_rounds=1, real_s=0.3, real_load=0.95, loads=(0.5,), growths=(1.0,), simulated_edits=300
    )
    result = benchmark(tiny_bundle, "cpu", settings, real=True, say=lambda text: None)
    assert json.loads(json.dumps(result)).keys() >= {"from", "settings", "step_s"}
    (measured,), (replayed,) = result["measured"], result["replayed"]
    assert measured["num_edits"] == replayed["num_edits"] and measured["methods"] != replayed["methods"]
    assert [level["workload"] for level in result["simulated"]] == ["mixed", "uniform"]

    rows = printed(overview(result, "p95_s", "p95")).splitlines()
    for kind, load in (("measured", "0.95"), ("replayed", "0.95"), ("simulated", "0.5"), ("assumed x1", "0.95")):
        assert any(row.split()[: len(kind.split())] == kind.split() and load in row for row in rows)
    # Where a full step costs no more than one edit's, batches that are not refilled do less than full ones.
    assert any("assumed x1" in row and "behind" in row for row in rows)
    assert not any("measured" in row and "behind" in row for row in rows)
    assert result["step_s"].keys() == result["step_s_after"].keys() == {2, 4}
    assert any("after the real run" in row for row in rows)
    assert {"p95 own", "answers per s"} <= {row[1:20].strip() for row in printed(details(measured)).splitlines()}
    plot(result).savefig(tmp_path / "plot.png")


def test_a_simulation_alone_measures_nothing_but_the_steps(tiny_bundle: Path) -> None:
    settings = replace(QUICK, max_rows=2, pace_rounds=1, loads=(0.5,), growths=(), simulated_edits=20)
    result = benchmark(tiny_bundle, "cpu", settings, real=False, say=lambda text: None)
    assert result["step_s"].keys() == {2}
    assert result["measured"] == result["replayed"] == []
    assert "after" not in printed(overview(result, "p95_s", "p95"))
