import json
import math
import re
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from benchmarks.plan.files import STAGES, Curve, MeasuredLoad, Measurement, ServerSetup, read
from benchmarks.plan.parts import Spread
from benchmarks.plan.run import SAMPLE, Planner, app, figures, replay
from benchmarks.plan.simulation import Served, SimulationResult, System, simulate
from benchmarks.plan.traffic import Arrival, TrafficMix, poisson

RESULTS = Path(__file__).parents[3] / "benchmarks/results"
CURVE = Curve("a device", "made up", True, {1: 0.02, 2: 0.02, 8: 0.05}, {name: Spread(0.01, 0.01) for name in STAGES})
SERVER = ServerSetup(max_edits=100, max_waiting=64, cores=2.0, num_replicas=2)


def planner(num_edits: int, **changes: Any) -> Planner:
    return Planner(replace(SERVER, cores=None, **changes).system(CURVE), TrafficMix(), num_edits)


def measurement(*rates: float) -> Measurement:
    """Return a measurement as if the simulation with another seed were the server."""
    runs = []
    for rate in rates:
        coming = poisson(TrafficMix(), rate, 600, seed=3)
        result = simulate(SERVER.system(CURVE), coming, SERVER.num_replicas, seed=99)
        measured = figures(result, result.edits, 0.0, coming[-1].at_s)
        runs.append(MeasuredLoad(rate, coming[-1].at_s, coming, measured))
    return Measurement(CURVE, runs, SERVER)


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_figures_of_some_edits() -> None:
    at = [Arrival(float(second), 10, 7.5) for second in range(10, 16)]
    edits = [
        Served(at[0], 1.0),
        Served(at[1], 2.0),
        Served(at[2], refused=True),
        Served(at[3], 3.0),
        Served(at[4], 6.0),  # answered too late to count as throughput
        Served(at[5]),
    ]
    result = SimulationResult(edits)
    result.calls.update({2: 3, 4: 1})
    result.replicas, result.ended_s = [(0.0, 2)], 20.0
    of_edits = figures(result, edits, 10.0, 18.0)
    assert astuple(of_edits) == pytest.approx((2.5, 5.55, 5.91, 3 / 8, 1, 2.5))
    assert figures(result, edits[5:], 10.0, 18.0).p95_s == math.inf


def test_a_measurement_goes_to_a_file_and_back_and_is_predicted(tmp_path: Path) -> None:
    written = measurement(2.0, 4.0)
    path = write(tmp_path / "measured.json", asdict(written) | {"from": "the file may say more"})
    assert read(Measurement, path) == written
    predicted = replay(written, written.runs[0], num_seeds=1)
    assert predicted.p95_s == pytest.approx(written.runs[0].measured.p95_s, rel=0.1)
    output = run("validate", str(path), "--out", str(tmp_path / "out.json"), "--num-seeds", "1")
    assert output.count("measured.json") == 2
    written_result = json.loads((tmp_path / "out.json").read_text())
    assert written_result["runs"][0]["predicted"] == asdict(predicted) and written_result["from"]["packages"]


def test_an_error_shows(tmp_path: Path) -> None:
    wrong = asdict(measurement(2.0))
    wrong["runs"][0]["measured"]["p95_s"] *= 2
    output = run("validate", str(write(tmp_path / "measured.json", wrong)), "--num-seeds", "1")
    assert re.findall(r"-[45]\d%", output) and output.count("+0%") + output.count("-0%") >= 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("stages_s", {"parse": {"median": 1, "p95": 1}}, "stages_s: got"),
        ("step_time_s", {}, "step_time_s: got"),
        ("step_time_s", {"2": 0.0}, "step_time_s: got"),
        ("measured", None, "measured"),
    ],
)
def test_a_curve_that_is_incomplete_is_refused(tmp_path: Path, name: str, value: object, message: str) -> None:
    path = write(tmp_path / "curve.json", asdict(CURVE) | {name: value})
    with pytest.raises(ValidationError, match=message):
        read(Curve, path)


def test_the_published_curve_is_the_arithmetic_that_its_source_tells() -> None:
    curve = read(Curve, RESULTS / "curve_h100_published.json")
    alone_s = 0.68 * (512 * 384) / (512 * 512) / 50
    expected = {1: alone_s, 2: alone_s, 8: alone_s * 4 * 49 / 70, 32: alone_s * 16 * 49 / 76}
    assert {rows: curve.step_time_s[rows] for rows in expected} == pytest.approx(expected, rel=0.01)
    assert not curve.measured and "Nothing here was measured on an H100" in curve.source
    line = replace(
        System({2: expected[2], 8: expected[8], 32: expected[32]}, {}), limits=ServerSetup(32).system(curve).limits
    )
    assert [curve.step_time_s[rows] for rows in (4, 16)] == pytest.approx(
        [line.call_s()[rows] for rows in (4, 16)], rel=0.01
    )


@pytest.mark.parametrize("load", [0.4, 0.7])
def test_a_sample_of_a_fleet_does_as_the_whole_fleet(load: float) -> None:
    fleet, plan = 4 * SAMPLE, planner(2500)
    rate = load * plan.most * fleet
    sampled = plan.at(rate, fleet)
    # Each replica gets as many edits as in the sample, so that both are as settled.
    whole = simulate(plan.system, poisson(TrafficMix(), rate, 4 * 2500, seed=5), fleet, seed=5)
    settled = whole.edits[1000:]
    of_fleet = figures(whole, settled, settled[0].arrival.at_s, settled[-1].arrival.at_s)
    assert sampled.p50_s == pytest.approx(of_fleet.p50_s, rel=0.1)
    assert sampled.p95_s == pytest.approx(of_fleet.p95_s, rel=0.1)
    assert sampled.throughput * 4 == pytest.approx(of_fleet.throughput, rel=0.1)
    assert sampled.rows_per_call == pytest.approx(of_fleet.rows_per_call, rel=0.1)


def test_the_least_number_keeps_the_objective_and_one_less_does_not() -> None:
    plan = planner(1500)
    for rate in (3.0, 20.0, 400.0):
        least = plan.least(rate, 2.5)
        assert least is not None and plan.keeps(2.5, rate, least)
        assert least == 1 or not plan.keeps(2.5, rate, least - 1)
    # An edit of 50 steps alone takes more than a second.
    assert plan.least(3.0, 1.0) is None


def test_a_fleet_that_refuses_does_not_keep_its_objective() -> None:
    strict = planner(1500, max_edits=2)
    assert strict.at(6.0, 2).p95_s < 2.5 and not strict.keeps(2.5, 6.0, 2)


def test_capacity_says_what_its_figures_are_worth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.plan.run.DAY_S", 2 * 3600.0)
    curve = write(tmp_path / "curve.json", asdict(replace(CURVE, measured=False)))
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    arguments = [
        "--gpu-dollars-hour",
        "3.6",
        "--target-load",
        "0.7",
        "--rate",
        "0.02,0.04",
        "--objective-s",
        "1,2.5",
        "--num-edits",
        "200",
    ]
    output = run("capacity", "--curve", str(curve), *arguments, "--out", str(out), "--plot", str(picture))
    assert "published figures, not measured" in output and "out of reach" in output
    result = json.loads(out.read_text())
    assert [fleet["replicas"] for fleet in result["capacity"]] == [None, 1, None, 1]
    assert result["capacity"][1]["dollars_per_1000"] == pytest.approx(3.6 / 0.02 / 3.6)
    day = result["day"]
    assert day["highest_rate"] == 0.04 and day["objective_s"] == 2.5 and day["kept"] == 1 and day["refused"] == 0
    # There is always one replica.
    assert day["gpu_hours"] == {"scaled": pytest.approx(2, abs=0.1), "at its busiest all day": 2}
    assert picture.stat().st_size > 0

    write(curve, asdict(CURVE))
    assert "published" not in run(
        "capacity", "--curve", str(curve), *arguments[:2], "--rate", "1", "--objective-s", "1"
    )
