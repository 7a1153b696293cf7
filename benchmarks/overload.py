"""The claim: at five times what it can do, the server does nine tenths of that in time, and lets in few that are late.

The graph of the demo model is served here. A single caller's edits of 20 steps give the deadline of all others: three
times their median. Eight callers who each wait for one edit before they send the next give the peak, in steps a second.
Then edits of 10, 20 and 50 steps come at random times, one, two and five times as many as at the peak. Goodput is the
steps of the edits that were done within their deadline. Whoever was not refused by the ingress or the denoiser was let
in, as the server's own counters tell, and is late if there was no picture in time.

    python -m benchmarks.overload --out benchmarks/results/overload.json
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from benchmarks.against.report import CALLERS, DEADLINE, pace
from benchmarks.against.run import FILLING, MIN_DEADLINES, NUM_PERSONS, Edits, closed_loop
from fashion_rag.bundle import Bundle
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.provenance import provenance, write_result
from serve.bench import drawn, load, measure, scrape
from serve.bench.load import EditOutcome
from serve.bench.mix import Photos, Planned
from serve.bench.report import summarise

TIMES = (1, 2, 5)
GOODPUT, LATE = 0.9, 0.01  # What is claimed of the highest load: at least, and less than.
NUM_LIGHT = 10

Record = dict[str, Any]


def num_refused(series: scrape.Series) -> int:
    """Return how many edits the ingress and the denoiser have refused since they started."""
    return round(sum(value for (name, _), value in series.items() if name == "refusals_total"))


def load_record(
    outcomes: Sequence[EditOutcome], refused: int, duration_s: float, deadline_s: float, peak_steps_per_s: float
) -> Record:
    """Return the figures of one load.

    refused: how many of its edits the server refused. peak_steps_per_s: what goodput is a share of.
    """
    in_time = [outcome for outcome in outcomes if outcome.kind == "done" and outcome.latency_s <= deadline_s]
    let_in = len(outcomes) - refused
    good = pace(outcomes, FILLING * duration_s, duration_s, deadline_s)
    return {
        "arrived": len(outcomes),
        "let_in": let_in,
        "late": let_in - len(in_time),
        "late_share": (let_in - len(in_time)) / let_in if let_in else 0.0,
        "goodput_steps_per_s": good.steps_per_s,
        "goodput_share": good.steps_per_s / peak_steps_per_s,
        "summary": asdict(summarise(outcomes, deadline_s, duration_s)),
    }


def measure_round(target: measure.Target, edits: Edits, seconds: float) -> Record:
    """Return the peak, the deadline and the figures of all loads. Raises RuntimeError if a single caller's edit fails.

    seconds: how long edits come at each load, or longer where MIN_DEADLINES deadlines take longer.
    """
    alone = closed_loop(target.url, edits.light(NUM_LIGHT), edits.photos)
    if failures := [outcome.reply.failure for outcome in alone if outcome.kind != "done"]:
        raise RuntimeError(f"{len(failures)} of {len(alone)} edits of a single caller failed: {failures[0]}")
    deadline_s = DEADLINE * median(outcome.latency_s for outcome in alone)
    saturated = closed_loop(target.url, edits.saturating(), edits.photos, CALLERS, seconds)
    peak = pace(saturated, FILLING * seconds, seconds)
    duration_s = max(seconds, MIN_DEADLINES * deadline_s)
    loads = []
    for times in TIMES:
        rate = times * peak.edits_per_s
        before = refusals_so_far(target)
        outcomes = load.run(
            target.url, edits.coming(rate, duration_s, deadline_s), edits.photos, timeout_s=2 * deadline_s
        )
        refused = refusals_so_far(target) - before
        record = load_record(outcomes, refused, duration_s, deadline_s, peak.steps_per_s)
        loads.append({"times": times, "rate": rate, **record})
    return {"deadline_s": deadline_s, "peak": peak._asdict(), "loads": loads}


def refusals_so_far(target: measure.Target) -> int:
    """Return how many edits have been refused, once all replicas have reported."""
    time.sleep(scrape.SETTLE_S)
    return num_refused(scrape.scrape(target.metrics_urls))


def table(rounds: Sequence[Record]) -> Table:
    """Return a table with a line for each load of each round, green where the claim holds."""
    names = ("round", "times", "edits/s", "let in", "late", "goodput, steps/s", "of the peak")
    figures = Table(*(Column(name, justify="right") for name in names), box=SIMPLE)
    for number, measured in enumerate(rounds, start=1):
        for figure in measured["loads"]:
            late_colour = "green" if figure["late_share"] < LATE else "red"
            good_colour = "green" if figure["goodput_share"] >= GOODPUT else "red"
            figures.add_row(
                str(number),
                str(figure["times"]),
                f"{figure['rate']:.2f}",
                str(figure["let_in"]),
                f"{figure['late']} [{late_colour}]{figure['late_share']:.1%}[/]",
                f"{figure['goodput_steps_per_s']:.1f}",
                f"[{good_colour}]{figure['goodput_share']:.2f}[/]",
            )
    return figures


def draw_edits(seed: int) -> Edits:
    """Return the edits of a round, of the demo world."""
    prompts = drawn.drawn_prompts()
    persons = [Planned(0.0, category, "", person) for category in prompts for person in range(NUM_PERSONS)]
    photos: Photos = drawn.draw_photos(persons, Bundle.open(DEMO_BUNDLE).manifest)
    return Edits(prompts, photos, seed)


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    rounds: Annotated[int, typer.Option(help="Number of rounds.")] = 3,
    seconds: Annotated[float, typer.Option(help="How long edits come at each load.")] = 60.0,
    backend: Annotated[str, typer.Option(help="torch, onnx, or another of `fashion-rag serve`.")] = "onnx",
    threads: Annotated[int | None, typer.Option(help="Threads of each network.", show_default="one a core")] = None,
) -> None:
    """Measure what the graph does in time at and above what it can do."""
    threads = threads or os.cpu_count() or 1
    measured: list[Record] = []
    with measure.graph(DEMO_BUNDLE, None, backend=backend, num_threads=threads) as target:
        for number in range(rounds):
            edits = draw_edits(number)
            measure.warm_up(target, edits.saturating()[: 2 * CALLERS], edits.photos)
            measured.append(measure_round(target, edits, seconds))
    Console().print(table(measured))
    settings = {"seconds": seconds, "backend": backend, "threads": threads}
    write_result(out, {"from": provenance(), "settings": settings, "rounds": measured})


if __name__ == "__main__":
    typer.run(main)
