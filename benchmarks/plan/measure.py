"""What `plan.py validate` compares with: the graph of the demo model on this machine, alone and under loads.

First the calibration, from edits sent one by one and from a few that share their steps; then loads at random times, to
which nothing is fitted. Replies time the stages; the ingress's own work on forms and replies is timed in this process.

    python -m benchmarks.plan.measure --out benchmarks/results/plan_measured.json
    python -m benchmarks.plan validate benchmarks/results/plan_measured.json
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from fashion_rag.bundle import Bundle
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.provenance import provenance, write_result
from serve.bench import drawn, measure, mix
from serve.bench.load import EditOutcome
from serve.config import IngressSettings
from serve.http.edit_requests import edit_requests
from serve.http.forms import EditForm
from serve.http.replies import edit_reply

STEPS = (10, 20, 50)
# By rows of a call: how many guided and unguided edits are sent at the same moment.
TOGETHER = {1: (0, 1), 2: (1, 0), 3: (1, 1), 4: (2, 0), 6: (3, 0), 8: (4, 0)}
LONG, REPEATS, NUM_ALONE = 60, 3, 12
GUIDED, UNGUIDED = 7.5, 1.0
# Beside the replicas, the client and Ray's own processes take a little of the two cores.
CORES = 1.9


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    rates: Annotated[str, typer.Option(help="Edits a second.")] = "0.4,0.7,0.9,1.1",
    duration: Annotated[float, typer.Option(help="Seconds at each rate.")] = 150.0,
    seed: Annotated[int, typer.Option()] = 1,
) -> None:
    """Measure, and write what `Measurement` describes."""
    console = Console()
    wanted = mix.EditMix(prompts=drawn.drawn_prompts(), steps=STEPS)
    asked = [float(rate) for rate in rates.split(",")]
    loads = [
        measure.PlannedLoad(mix.draw(wanted, mix.poisson(rate, duration, seed), seed), rate, duration) for rate in asked
    ]
    edits = mix.draw(wanted, [0.0] * max(NUM_ALONE, 4), seed=0)
    photos = drawn.draw_photos([*edits, *(one for load in loads for one in load.planned)], manifest())
    with measure.graph(DEMO_BUNDLE, None, backend="onnx") as target:
        target = replace(target, metrics_urls=())
        measure.warm_up(target, edits[:4], photos)

        def send(some: Sequence[mix.Planned]) -> list[EditOutcome]:
            return target.send(some, photos)

        calibration = calibrate(send, edits)
        console.print(calibration)
        runs = measure.measure(target, loads, photos, objective_s=5.0)
    found = [record(run, load) for run, load in zip(runs, loads, strict=True)]
    for each in found:
        console.print(each["rate"], each["measured"])
    server = {"cores": CORES, "max_rows": 8, "num_replicas": 1}
    write_result(out, {"from": provenance(), "calibration": calibration, "server": server, "runs": found})


def manifest() -> Any:
    """The demo bundle's."""
    return Bundle.open(DEMO_BUNDLE).manifest


def calibrate(
    send: Callable[[Sequence[mix.Planned]], list[EditOutcome]], edits: Sequence[mix.Planned]
) -> dict[str, Any]:
    """What `Curve` describes, of a graph that has nothing else to do."""
    step_time_s = {}
    for rows, (num_guided, num_unguided) in TOGETHER.items():
        scales = [GUIDED] * num_guided + [UNGUIDED] * num_unguided
        group = [
            replace(edit, at_s=0.0, steps=LONG, guidance_scale=scale, num_garments=1)
            for edit, scale in zip(edits, scales, strict=False)
        ]
        # Of those that began together, the last to end shared nearly all of its steps with all others.
        seconds = [max(one.reply.timings_ms["denoise"] for one in send(group)) / 1000 / LONG for _ in range(REPEATS)]
        step_time_s[rows] = median(seconds)
    alone = []
    for edit in edits[:NUM_ALONE]:
        alone += send([replace(edit, at_s=0.0, steps=20, guidance_scale=GUIDED, num_garments=1)])
    stages = {name: [one.reply.timings_ms[name] / 1000 for one in alone] for name in alone[0].reply.timings_ms}
    parse, reply = own_work()
    hops = [
        one.latency_s
        - sum(one.reply.timings_ms[name] for name in ("denoise", "decode")) / 1000
        - max(one.reply.timings_ms["encode"], one.reply.timings_ms["retrieve"] + one.reply.timings_ms["condition"])
        / 1000
        - median(parse)
        - median(reply)
        for one in alone
    ]
    names = ("retrieve", "condition", "encode", "decode")
    spreads = {name: stages[name] for name in names} | {"parse": parse, "reply": reply, "hops": hops}
    return {
        "device": "two CPU cores",
        "source": "benchmarks/plan_measure.py",
        "measured": True,
        "step_time_s": step_time_s,
        "stages_s": {name: {"median": median(times), "p95": p95(times)} for name, times in spreads.items()},
    }


def p95(times: Sequence[float]) -> float:
    """At least the median."""
    return quantiles(times, n=20)[-1]


def own_work() -> tuple[list[float], list[float]]:
    """Seconds that the ingress takes for a form and for a reply."""
    edit = mix.draw(mix.EditMix(prompts=drawn.drawn_prompts()), [0.0], seed=0)[0]
    photo = drawn.draw_photos([edit], manifest())[edit.category, edit.person]
    form = EditForm(
        image=photo.image,
        mask=photo.mask,
        keypoints=photo.keypoints,
        prompt=edit.prompt,
        category=edit.category,
    )
    parse, reply = [], []
    for _ in range(20):
        start = time.perf_counter()
        (request,) = edit_requests(form, manifest(), IngressSettings(), "measured", time.time())
        middle = time.perf_counter()
        edit_reply(form, [np.asarray(request.image)], [0], [], {}).model_dump()
        parse.append(middle - start)
        reply.append(time.perf_counter() - middle)
    return parse, reply


def record(run: Any, load: measure.PlannedLoad) -> dict[str, Any]:
    """What `MeasuredLoad` describes."""
    summary = run.summary
    latency = summary.latency_s
    return {
        "rate": load.rate,
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
