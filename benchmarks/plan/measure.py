"""Measures what `validate` compares with: the graph of the demo model on this machine, alone and under loads.

The calibration comes first, from edits sent one by one, from a few that share their steps, and from one beside a
process that keeps another core busy; then come loads at random times, to which nothing is fitted. The model was made
with loads of 0.4, 0.7 and 0.95 edits a second at hand, so the two of HELD_OUT are new to it. Replies tell the times of
the stages; the ingress's own work on forms and replies is timed in this process.

    python -m benchmarks.plan.measure --out benchmarks/results/plan_measured.json
    python -m benchmarks.plan validate benchmarks/results/plan_measured.json
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from fashion_rag.bundle import Bundle
from fashion_rag.manifest import DEMO_BUNDLE, Manifest
from fashion_rag.person.completion import CategoryChoice, find
from fashion_rag.provenance import provenance, write_result
from serve.bench import drawn, measure, mix
from serve.bench.load import EditOutcome
from serve.bench.report import Run
from serve.config import IngressSettings
from serve.http.edit_requests import edit_requests
from serve.http.forms import EditForm
from serve.http.replies import edit_reply

STEPS = (10, 20, 50)
# How many guided and unguided edits are sent at the same moment, by the rows of the calls that they share.
TOGETHER = {1: (0, 1), 2: (1, 0), 3: (1, 1), 4: (2, 0), 6: (3, 0), 8: (4, 0)}
LONG, REPEATS, NUM_ALONE = 60, 3, 12
GUIDED, UNGUIDED = 7.5, 1.0
# The client and Ray's own processes take a little of the two cores.
CORES = 1.9
HELD_OUT = (0.55, 0.85)
RATES = "0.4,0.55,0.7,0.85,0.95"
# The neighbour of a call: products of matrices, which are most of what networks do.
NEIGHBOUR = "import numpy; a = numpy.ones((512, 512), numpy.float32)\nwhile True: a @ a"

Send = Callable[[Sequence[mix.Planned]], list[EditOutcome]]


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    rates: Annotated[str, typer.Option(help="Edits a second, one load after the other.")] = RATES,
    duration: Annotated[float, typer.Option(help="Seconds at each rate.")] = 240.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same edits at the same times.")] = 1,
) -> None:
    """Measure the demo graph alone and under loads, and write what `Measurement` describes."""
    console = Console()
    wanted = mix.EditMix(prompts=drawn.drawn_prompts(), steps=STEPS)
    loads = []
    for rate in [float(number) for number in rates.split(",")]:
        planned = mix.draw(wanted, mix.poisson(rate, duration, seed), seed)
        loads.append(measure.PlannedLoad(planned, rate, duration))
    edits = mix.draw(wanted, [0.0] * max(NUM_ALONE, 4), seed=0)
    photos = drawn.draw_photos([*edits, *(edit for load in loads for edit in load.planned)], manifest())
    with measure.graph(DEMO_BUNDLE, None, backend="onnx") as target:
        target = replace(target, metrics_urls=())
        measure.warm_up(target, edits[:4], photos)

        def send(planned: Sequence[mix.Planned]) -> list[EditOutcome]:
            return target.send(planned, photos)

        calibration = calibrate(send, edits)
        console.print(calibration)
        runs = measure.measure(target, loads, photos, objective_s=5.0)
    records = [record(run, load) for run, load in zip(runs, loads, strict=True)]
    for measured in records:
        console.print(measured["rate"], measured["measured"])
    server = {"cores": CORES, "max_rows": 8, "num_replicas": 1}
    write_result(out, {"from": provenance(), "calibration": calibration, "server": server, "runs": records})


def manifest() -> Manifest:
    """Return the demo bundle's manifest."""
    return Bundle.open(DEMO_BUNDLE).manifest


def calibrate(send: Send, edits: Sequence[mix.Planned]) -> dict[str, Any]:
    """Return what `Curve` describes, of a graph that has nothing else to do."""
    step_time_s = {rows: step_s(send, edits, *numbers) for rows, numbers in TOGETHER.items()}
    with neighbour():
        beside_s = step_s(send, edits, *TOGETHER[2])
    alone = []
    for edit in edits[:NUM_ALONE]:
        alone += send([replace(edit, at_s=0.0, steps=20, guidance_scale=GUIDED, num_garments=1)])
    parse, reply = own_work()
    hops = []
    for outcome in alone:
        timings_ms = outcome.reply.timings_ms
        in_turn_ms = timings_ms["denoise"] + timings_ms["decode"]
        side_by_side_ms = max(timings_ms["encode"], timings_ms["retrieve"] + timings_ms["condition"])
        hops.append(outcome.latency_s - (in_turn_ms + side_by_side_ms) / 1000 - median(parse) - median(reply))
    spreads = {"parse": parse, "reply": reply, "hops": hops}
    for name in ("retrieve", "condition", "encode", "decode"):
        spreads[name] = [outcome.reply.timings_ms[name] / 1000 for outcome in alone]
    return {
        "device": "two CPU cores",
        "source": "benchmarks/plan/measure.py",
        "measured": True,
        "step_time_s": step_time_s,
        "contention": max(1.0, beside_s / step_time_s[2]),
        "stages_s": {name: {"median": median(times), "p95": p95(times)} for name, times in spreads.items()},
    }


def step_s(send: Send, edits: Sequence[mix.Planned], num_guided: int, num_unguided: int) -> float:
    """Return the mean seconds of a step that so many guided and unguided edits share, the median of REPEATS."""
    scales = [GUIDED] * num_guided + [UNGUIDED] * num_unguided
    group = [
        replace(edit, at_s=0.0, steps=LONG, guidance_scale=scale, num_garments=1)
        for edit, scale in zip(edits, scales, strict=False)
    ]
    seconds = []
    for _ in range(REPEATS):
        # The last of them to end has shared nearly all of its steps with all the others.
        longest_ms = max(outcome.reply.timings_ms["denoise"] for outcome in send(group))
        seconds.append(longest_ms / 1000 / LONG)
    return median(seconds)


@contextmanager
def neighbour() -> Iterator[None]:
    """Have another process keep a core busy while the block runs, but give it up to any other process."""
    command = ["nice", "-n", "19", sys.executable, "-c", NEIGHBOUR]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        yield
    finally:
        process.kill()
        process.wait()


def p95(times: Sequence[float]) -> float:
    """Return the 95th percentile."""
    return quantiles(times, n=20)[-1]


def own_work() -> tuple[list[float], list[float]]:
    """Return seconds that the ingress takes for a form and for a reply, several of each."""
    edit = mix.draw(mix.EditMix(prompts=drawn.drawn_prompts()), [0.0], seed=0)[0]
    photo = drawn.draw_photos([edit], manifest())[edit.category, edit.person]
    # The other fields have their defaults, which pydantic's plugin for mypy would know.
    fields: dict[str, Any] = {"prompt": edit.prompt, "category": edit.category, "keypoints": photo.keypoints}
    form = EditForm(image=photo.image, mask=photo.mask, **fields)
    parse, reply = [], []
    for _ in range(20):
        start = time.perf_counter()
        (request,) = edit_requests(form, manifest(), IngressSettings(), "measured", time.time())
        found = find(request, CategoryChoice(edit.category), manifest().image_size, None)
        middle = time.perf_counter()
        edit_reply(form, [np.asarray(request.image)], [0], [], found, {}).model_dump()
        parse.append(middle - start)
        reply.append(time.perf_counter() - middle)
    return parse, reply


def record(run: Run, load: measure.PlannedLoad) -> dict[str, Any]:
    """Return what `MeasuredLoad` describes."""
    summary = run.summary
    latency = summary.latency_s
    assert latency is not None
    return {
        "rate": load.rate,
        "held_out": load.rate in HELD_OUT,
        "duration_s": load.window_s,
        "arrivals": [[edit.at_s, edit.steps, edit.guidance_scale or GUIDED] for edit in load.planned],
        "measured": {
            "p50_s": latency.p50,
            "p95_s": latency.p95,
            "p99_s": latency.p99,
            "throughput": summary.throughput_per_s,
            "refused": summary.num_refused,
        },
    }


if __name__ == "__main__":
    typer.run(main)
