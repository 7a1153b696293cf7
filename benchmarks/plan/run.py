"""The claim: how many GPUs a load needs, and at what cost, can be predicted to within 15 % of what is measured.

`validate` replays measured loads on the simulated graph and compares. `capacity` looks for the least number of replicas
that keep an objective, at rates up to far more than can be tried, and plays a day with the autoscaling rule.

    python -m benchmarks.plan validate measured.json
    python -m benchmarks.plan capacity --curve benchmarks/results/curve_h100_published.json --gpu-dollars-hour 3 \\
        --out benchmarks/results/plan_h100_published.json --plot benchmarks/results/plan_h100_published.png

A fleet of more than SAMPLE replicas is simulated as SAMPLE replicas at the same load a replica: each sees a share of
Poisson arrivals, which are Poisson arrivals again, and looks at the queues of as many others. This leaves out that
replicas differ more in a large fleet than in a small one. A figure is only as good as the curve that it is made from:
where the curve was not measured, tables and plots say so.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, astuple
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from benchmarks.plan.files import Curve, Figures, MeasuredLoad, Measurement, ServerSetup, read
from benchmarks.plan.report import capacity_table, plot, validation_table
from benchmarks.plan.scaling import Scaler, Scaling
from benchmarks.plan.simulation import Served, SimulationResult, System, simulate
from benchmarks.plan.traffic import DAY_S, TrafficMix, day_rate, poisson, varying
from fashion_rag.provenance import provenance, write_figure, write_result

SAMPLE, DAY_SAMPLE = 8, 4
SETTLED = 0.1  # the share of the first arrivals that is not counted, because they find an empty graph
MAX_REFUSED = 0.01
# An objective is taken to be out of reach if so many times the replicas that full batches need do not keep it.
ENOUGH, GROWTH = 32, 1.25
WINDOW_S = 1800.0

Record = dict[str, Any]


def figures(result: SimulationResult, edits: Sequence[Served], from_s: float, until_s: float) -> Figures:
    """Return the figures of those edits of `result` that came from `from_s` until `until_s`."""
    latencies = []
    answered = 0
    for edit in edits:
        if edit.latency_s is not None:
            latencies.append(edit.latency_s)
            answered += edit.arrival.at_s + edit.latency_s <= until_s
    rows = sum(num_rows * num_calls for num_rows, num_calls in result.calls.items())
    p50_s, p95_s, p99_s = np.percentile(latencies, [50, 95, 99]).tolist() if latencies else [math.inf] * 3
    return Figures(
        p50_s,
        p95_s,
        p99_s,
        throughput=answered / (until_s - from_s),
        refused=sum(edit.refused or edit.late for edit in edits),
        rows_per_call=rows / max(1, result.calls.total()),
    )


def replay(measurement: Measurement, run: MeasuredLoad, num_seeds: int) -> Figures:
    """Return what is predicted for a measured load: the medians of the simulations with `num_seeds` seeds."""
    system = measurement.server.system(measurement.calibration)
    num_replicas = measurement.server.num_replicas
    predicted = []
    for seed in range(num_seeds):
        result = simulate(system, run.arrivals, num_replicas, seed)
        predicted.append(astuple(figures(result, result.edits, 0.0, run.duration_s)))
    return Figures(*(median(values) for values in zip(*predicted, strict=True)))


class Planner:
    """A planner that simulates a system under one mix of edits, `num_edits` at a time, and remembers the figures."""

    def __init__(self, system: System, mix: TrafficMix, num_edits: int, seed: int = 0) -> None:
        self.system, self.mix, self.num_edits, self.seed = system, mix, num_edits, seed
        self.at = cache(self._at)

    @property
    def most(self) -> float:
        """Return the edits a second of a replica whose calls are always full, and that does nothing else."""
        call_s = self.system.call_s()
        return max(num_rows / seconds for num_rows, seconds in enumerate(call_s) if num_rows) / self.mix.row_steps

    def _at(self, rate: float, num_replicas: int) -> Figures:
        """Return the figures of so many replicas, or of SAMPLE at the same rate a replica."""
        size = min(num_replicas, SAMPLE)
        coming = poisson(self.mix, rate * size / num_replicas, self.num_edits, self.seed)
        result = simulate(self.system, coming, size, self.seed)
        settled = result.edits[int(SETTLED * self.num_edits) :]
        return figures(result, settled, settled[0].arrival.at_s, settled[-1].arrival.at_s)

    def keeps(self, objective_s: float, rate: float, num_replicas: int) -> bool:
        """Return whether p95 is within the objective, and next to none are refused."""
        expected = self.at(rate, num_replicas)
        return expected.p95_s <= objective_s and expected.refused <= MAX_REFUSED * self.num_edits

    def least(self, rate: float, objective_s: float) -> int | None:
        """Return the least number of replicas that keep the objective; None if it is out of reach."""
        keeps = partial(self.keeps, objective_s, rate)
        low = high = max(1, math.ceil(rate / self.most))
        while not keeps(high):
            low, high = high + 1, math.ceil(high * GROWTH) + 1
            if high > ENOUGH * max(1, rate / self.most):
                return None
        return low + bisect_left(range(low, high), True, key=keeps)


def costs(planner: Planner, rates: Sequence[float], objectives: Sequence[float], dollars_hour: float) -> list[Record]:
    """Return replicas, dollars for 1000 edits and the figures, for every rate and objective.

    Replicas are None where the objective is out of reach.
    """
    records: list[Record] = []
    for rate in rates:
        for objective_s in objectives:
            num = planner.least(rate, objective_s)
            record: Record = {"rate": rate, "objective_s": objective_s, "replicas": num}
            if num is not None:
                record |= {"dollars_per_1000": num * dollars_hour / 3.6 / rate, **asdict(planner.at(rate, num))}
            records.append(record)
    return records


def day(planner: Planner, scaling: Scaling, busiest: Record, dollars_hour: float) -> Record:
    """Play a day with replicas that come and go; return what it costs, and the figures of its windows.

    busiest: the record of `costs` for the highest rate of the day. Only as many of the edits are played as DAY_SAMPLE
    replicas would serve; a replica of the sample then stands for several.
    """
    highest, num_replicas, objective_s = busiest["rate"], busiest["replicas"], busiest["objective_s"]
    share = min(1.0, DAY_SAMPLE / num_replicas)
    rate = partial(day_rate, highest * share)
    scaler = Scaler(scaling, math.ceil(2 * share * num_replicas))
    first = math.ceil(share * num_replicas * day_rate(1.0, 0.0))
    coming = varying(planner.mix, rate, highest * share, DAY_S, planner.seed)
    result = simulate(planner.system, coming, first, planner.seed, scaler, DAY_S)
    windows: list[Record] = []
    for edits in _windows(result.edits):
        at_s = edits[0].arrival.at_s // WINDOW_S * WINDOW_S
        of_window = figures(result, edits, at_s, at_s + WINDOW_S)
        windows.append(
            {
                "at_s": at_s,
                "rate": len(edits) / WINDOW_S / share,
                "p95_s": of_window.p95_s,
                "refused": of_window.refused / len(edits),
            }
        )
    scaled, fixed = result.replica_hours / share, num_replicas * DAY_S / 3600
    return {
        "highest_rate": highest,
        "objective_s": objective_s,
        "kept": mean(window["p95_s"] <= objective_s for window in windows),
        "scaling": asdict(scaling),
        "edits": round(len(result.edits) / share),
        "gpu_hours": {"scaled": scaled, "at its busiest all day": fixed},
        "dollars": {"scaled": scaled * dollars_hour, "at its busiest all day": fixed * dollars_hour},
        "refused": sum(edit.refused or edit.late for edit in result.edits) / len(result.edits),
        "replicas": [[at_s, num / share] for at_s, num in result.replicas],
        "windows": windows,
    }


def _windows(edits: Sequence[Served]) -> list[list[Served]]:
    """Return the edits of each WINDOW_S in which some came."""
    return [list(window) for _, window in groupby(edits, lambda edit: edit.arrival.at_s // WINDOW_S)]


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


app = typer.Typer(add_completion=False)


@app.command()
def validate(
    measured: Annotated[list[Path], typer.Argument(help="Measured loads, as `Measurement` describes.")],
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    num_seeds: Annotated[int, typer.Option(help="Simulations of each load; their median counts.")] = 5,
) -> None:
    """Replay measured loads, and show what was predicted beside what was measured."""
    records: list[Record] = []
    for path in measured:
        measurement = read(Measurement, path)
        for run in measurement.runs:
            predicted = asdict(replay(measurement, run, num_seeds))
            record: Record = {"file": path.name, "rate": run.rate, "held_out": run.held_out, "edits": len(run.arrivals)}
            records.append(record | {"measured": asdict(run.measured), "predicted": predicted})
    Console().print(validation_table(records))
    if out:
        write_result(out, {"from": provenance(), "runs": records})


@app.command()
def capacity(
    curve: Annotated[Path, typer.Option(help="JSON file of what is known of a device, as `Curve` describes.")],
    gpu_dollars_hour: Annotated[float, typer.Option(help="Dollars for an hour of a GPU.")],
    rate: Annotated[str, typer.Option(help="Edits a second.")] = "1,10,100,1000,10000",
    objective_s: Annotated[str, typer.Option(help="Seconds that p95 is to keep.")] = "1.5,2,3,5,10",
    steps: Annotated[str, typer.Option(help="Step counts, each equally often.")] = "10,20,50",
    guided: Annotated[float, typer.Option(help="The share of guided edits.")] = 1.0,
    max_rows: Annotated[int, typer.Option(help="Rows of a UNet call.")] = 32,
    max_waiting: Annotated[int, typer.Option(help="Edits that may wait in a denoiser.")] = 64,
    max_edits: Annotated[int, typer.Option(help="Edits in an ingress.")] = 100,
    choices: Annotated[int, typer.Option(help="How many queues a router looks at.")] = 2,
    target_load: Annotated[
        float | None, typer.Option(help="Target of the autoscaling rule.", show_default="the load of the busiest hour")
    ] = None,
    start_s: Annotated[float, typer.Option(help="Seconds until a new replica takes edits.")] = 60.0,
    num_edits: Annotated[int, typer.Option(help="Edits in a simulation.")] = 8000,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Picture to write.")] = None,
) -> None:
    """Find the least number of replicas for rates and objectives, and play a day of the last rate."""
    device = read(Curve, curve)
    server = ServerSetup(max_rows=max_rows, max_waiting=max_waiting, max_edits=max_edits, choices=choices)
    mix = TrafficMix(tuple(int(number) for number in _numbers(steps)), guided)
    planner = Planner(server.system(device), mix, num_edits)
    rates, objectives = _numbers(rate), _numbers(objective_s)
    result: Record = {
        "from": provenance(),
        "device": {"name": device.device, "source": device.source, "measured": device.measured},
        "settings": {"server": asdict(server), "mix": asdict(mix), "gpu_dollars_hour": gpu_dollars_hour},
        "capacity": costs(planner, rates, objectives, gpu_dollars_hour),
    }
    within_reach = [fleet for fleet in result["capacity"] if fleet["rate"] == rates[-1] and fleet["replicas"]]
    if within_reach:
        busiest = within_reach[0]
        scaling = Scaling(target_load or busiest["rate"] / busiest["replicas"] / planner.most, start_s=start_s)
        result["day"] = day(planner, scaling, busiest, gpu_dollars_hour)
    Console().print(capacity_table(result))
    if out:
        write_result(out, result)
    if plot_file:
        write_figure(plot_file, plot(result))
