"""The claim: edits that share denoising steps are answered sooner than requests that are batched whole.

It holds where a UNet call takes less than in proportion to its rows, and the gain depends on how much less. Measures
the time from arrival to answer when edits come at random and do not wait for the server. The methods:

    shared    The engine as it is: edits join and leave between two steps.
    whole     Waiting edits are taken together, oldest first; nobody joins until the last of them is done, and then all
              are answered. An edit that is done takes no more rows.
    early     As `whole`, but each edit is answered as soon as it is done itself.
    alike     As `whole`, but only edits with the same number of steps are taken together.

All have the same engine, UNet, arrivals and largest number of rows; only when edits are let in differs. "measured" is a
real run. "simulated" is the engine's bookkeeping on a virtual clock, where a step takes the time measured for its rows;
"replayed" is that for the arrivals of the real run. "assumed" is the same with made-up times: a full step takes as long
as one edit's, twice as long, and so on. Load is a share of the edits that always full batches do.

    python -m benchmarks.batching --out benchmarks/results/batching.json --plot benchmarks/results/batching.png
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from rich.console import Console

from benchmarks.batching.open_loop import (
    NEVER_FULL,
    ROWS,
    LetIn,
    NumberedArrival,
    SimulatedEngine,
    StepTimes,
    Times,
    arrivals,
    guided_edit,
    serve,
)
from benchmarks.batching.report import Record, details, overview, plot
from benchmarks.medians import medians
from fashion_rag.bundle import Bundle
from fashion_rag.denoising.engine import Engine
from fashion_rag.denoising.runner import Inputs
from fashion_rag.denoising.scheduler import Limits
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.models.unet import DeepUNet
from fashion_rag.provenance import provenance, write_figure, write_result

# Mixed edits have the steps of the server's presets fast, balanced and exact, in equal parts.
WORKLOADS = {"mixed": (10, 20, 50), "uniform": (20,)}

ServeEdits = Callable[[Sequence[NumberedArrival], LetIn], Sequence[Times]]


@dataclass(frozen=True)
class BatchingSettings:
    """How much is run.

    loads, real_load: shares of the edits that always full batches do. real_s: for how many seconds edits come in a real
    run. growths: for the assumed steps, the time of a full step divided by that of one edit's step.
    """

    max_rows: int = 8
    pace_rounds: int = 10
    real_load: float = 0.7
    real_s: float = 32.0
    real_repeats: int = 3
    loads: tuple[float, ...] = (0.5, 0.7, 0.85)
    growths: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
    simulated_edits: int = 800
    simulated_repeats: int = 5
    seed: int = 0


QUICK = BatchingSettings(pace_rounds=3, real_s=5.0, real_repeats=1, simulated_edits=200, simulated_repeats=2)


def anyone(waiting: Sequence[NumberedArrival], num_running: int, num_fit: int) -> Sequence[NumberedArrival]:
    """Return all; the engine itself chooses which of them it runs."""
    return waiting


def next_batch(waiting: Sequence[NumberedArrival], num_running: int, num_fit: int) -> Sequence[NumberedArrival]:
    """Return as many as fit when none is running, and none otherwise."""
    return [] if num_running else waiting[:num_fit]


def next_alike(waiting: Sequence[NumberedArrival], num_running: int, num_fit: int) -> Sequence[NumberedArrival]:
    """Return the oldest and as many others of as many steps as fit when none is running, and none otherwise."""
    alike = [arrival for arrival in waiting if arrival.num_steps == waiting[0].num_steps]
    return next_batch(alike, num_running, num_fit)


class Method(NamedTuple):
    """A way to serve edits: which edits it lets in, and which of `Times` is that of its answer.

    Two methods that let in the same edits are two readings of one run.
    """

    let_in: LetIn
    answer: str


METHODS = {
    "shared": Method(anyone, "done_s"),
    "whole": Method(next_batch, "empty_s"),
    "early": Method(next_batch, "done_s"),
    "alike": Method(next_alike, "done_s"),
}
BASELINES = ("whole", "early", "alike")


def measure_steps(unet: DeepUNet, inputs: Inputs, max_rows: int, num_rounds: int) -> dict[int, float]:
    """Return the median seconds of an engine's step, by its rows.

    Row counts take turns, so that a disturbance meets all of them.
    """
    seconds: defaultdict[int, list[float]] = defaultdict(list)
    for round_number in range(num_rounds + 1):
        for num_edits in range(1, max_rows // ROWS + 1):
            engine = Engine(unet, Limits(max_rows, NEVER_FULL))
            for number in range(num_edits):
                engine.add(guided_edit(number, 3, inputs), inputs)
            while len(engine):
                start = engine.clock()
                engine.step()
                if round_number:  # The first round warms up.
                    seconds[ROWS * num_edits].append(engine.clock() - start)
    return {num_rows: median(times) for num_rows, times in seconds.items()}


def assumed_steps(alone_s: float, growth: float, max_rows: int) -> dict[int, float]:
    """Return seconds of a step by its rows: on a line from `alone_s` for one edit to `growth` times that for all."""
    num_fit = max_rows // ROWS
    rows = [ROWS * num_edits for num_edits in range(1, num_fit + 1)]
    return dict(zip(rows, np.linspace(alone_s, growth * alone_s, num_fit).tolist(), strict=True))


def capacity(step_s: StepTimes, steps: Sequence[int]) -> float:
    """Return how many edits, of these step counts in equal parts, always full batches do in a second."""
    max_rows = max(step_s)
    return max_rows / ROWS / (step_s[max_rows] * mean(steps))


def figures(coming: Sequence[NumberedArrival], latencies: Sequence[float], alone_s: float) -> dict[str, float]:
    """Return what is reported of one method; `_own` is in multiples of the edit's time alone, at `alone_s` a step."""
    seconds, steps = np.array(latencies), np.array([arrival.num_steps for arrival in coming])
    own = seconds / (steps * alone_s)
    answered_s = seconds + [arrival.at_s for arrival in coming]
    by_steps = {}
    for number in np.unique(steps):
        by_steps[f"p95_s_of_{number}_steps"] = float(np.percentile(seconds[steps == number], 95))
    return {
        "p50_s": float(np.percentile(seconds, 50)),
        "p95_s": float(np.percentile(seconds, 95)),
        "mean_s": float(seconds.mean()),
        "p95_own": float(np.percentile(own, 95)),
        "mean_own": float(own.mean()),
        "answers_per_s": float(len(coming) / answered_s.max()),
        **by_steps,
    }


def compare(
    run: ServeEdits, workload: str, load: float, step_s: StepTimes, num_edits: int, num_repeats: int, seed: int
) -> Record:
    """Return medians over repeats of each method's figures, and of those of shared steps divided by the others'.

    The methods take turns, and have the same arrivals in each repeat.
    """
    steps = WORKLOADS[workload]
    rate = load * capacity(step_s, steps)
    traces = [arrivals(steps, num_edits, rate, seed + repeat) for repeat in range(num_repeats)]
    repeats: list[dict[str, dict[str, float]]] = []
    for coming in traces:
        times: dict[LetIn, Sequence[Times]] = {}
        for let_in in (anyone, next_batch, next_alike):
            times[let_in] = run(coming, let_in)
        by_method = {}
        for name, method in METHODS.items():
            latencies = [getattr(of_edit, method.answer) for of_edit in times[method.let_in]]
            by_method[name] = figures(coming, latencies, step_s[ROWS])
        repeats.append(by_method)
    methods = {name: medians([repeat[name] for repeat in repeats]) for name in METHODS}
    ratios: dict[str, Record] = {name: {} for name in BASELINES}
    for name, of_figures in ratios.items():
        for figure in ("p95_s", "mean_s", "p95_own"):
            of_figures[figure] = _spread([repeat["shared"][figure] / repeat[name][figure] for repeat in repeats])
    return {
        "workload": workload,
        "load": load,
        "arrivals_per_s": median(num_edits / coming[-1].at_s for coming in traces),
        "num_edits": num_edits,
        "num_repeats": num_repeats,
        "methods": methods,
        "shared_divided_by": ratios,
    }


def _spread(numbers: Sequence[float]) -> dict[str, float]:
    return {"median": median(numbers), "min": min(numbers), "max": max(numbers)}


def benchmark(
    bundle_path: Path, device: str, settings: BatchingSettings, real: bool, say: Callable[[str], None]
) -> Record:
    """Return the result as plain values for JSON. Nothing is `measured` or `replayed` unless `real`.

    say: is told of progress. In the result, `step_s` has the seconds of a step by its rows, and `step_s_after` the same
    after the real run, to show whether anything disturbed it. Raises as `Bundle.open`.
    """
    bundle = Bundle.open(bundle_path)
    unet, inputs = bundle.load_unet(device), Inputs.blank(bundle.latent_size, bundle.text_width, device)
    limits, seed = Limits(settings.max_rows, NEVER_FULL), settings.seed

    def run_real(coming: Sequence[NumberedArrival], let_in: LetIn) -> list[Times]:
        return serve(Engine(unet, limits), time.sleep, coming, let_in, inputs)

    def simulation(step_s: StepTimes) -> ServeEdits:
        def run(coming: Sequence[NumberedArrival], let_in: LetIn) -> list[Times]:
            engine = SimulatedEngine(limits, step_s)
            return serve(engine, engine.sleep, coming, let_in, inputs)

        return run

    say("measuring how long a step takes")
    step_s = measure_steps(unet, inputs, settings.max_rows, settings.pace_rounds)
    step_s_after: StepTimes = {}
    levels: dict[str, list[Record]] = {"measured": [], "replayed": [], "simulated": [], "assumed": []}
    if real:
        say("real run")
        num_edits = math.ceil(settings.real_s * settings.real_load * capacity(step_s, WORKLOADS["mixed"]))
        size = (num_edits, settings.real_repeats, seed)
        levels["measured"].append(compare(run_real, "mixed", settings.real_load, step_s, *size))
        levels["replayed"].append(compare(simulation(step_s), "mixed", settings.real_load, step_s, *size))
        say("measuring again how long a step takes")
        step_s_after = measure_steps(unet, inputs, settings.max_rows, settings.pace_rounds)
    size = (settings.simulated_edits, settings.simulated_repeats, seed)
    for workload in WORKLOADS:
        for load in settings.loads:
            say(f"simulating {workload} edits at load {load}")
            levels["simulated"].append(compare(simulation(step_s), workload, load, step_s, *size))
    for growth in settings.growths:
        say(f"simulating full steps that take {growth} times one edit's")
        made_up = assumed_steps(step_s[ROWS], growth, settings.max_rows)
        level = compare(simulation(made_up), "mixed", settings.real_load, made_up, *size)
        levels["assumed"].append({"growth": growth} | level)
    return {
        "from": provenance(),
        "settings": asdict(settings) | {"bundle": bundle.manifest.name, "device": device, "workloads": WORKLOADS},
        "step_s": step_s,
        "step_s_after": step_s_after,
        **levels,
    }


def main(
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Picture to write.")] = None,
    bundle: Annotated[Path, typer.Option(help="Model bundle.")] = DEMO_BUNDLE,
    device: Annotated[str, typer.Option(help="Where the UNet runs.")] = "cpu",
    simulate: Annotated[bool, typer.Option("--simulate", help="Leave the real run out.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A minute, to see that it works.")] = False,
) -> None:
    """Compare sharing denoising steps with batching whole requests."""
    torch.set_num_threads(1)
    console = Console()
    with console.status("") as status:
        result = benchmark(bundle, device, QUICK if quick else BatchingSettings(), not simulate, status.update)
    for level in result["measured"]:
        console.print(details(level))
    console.print(overview(result, "p95_s", "p95 from arrival to answer, in s"))
    console.print(overview(result, "p95_own", "the same, in multiples of the edit's time alone"))
    if out:
        write_result(out, result)
    if plot_file:
        write_figure(plot_file, plot(result))
