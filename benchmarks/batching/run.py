"""The claim: edits that share denoising steps are answered sooner than requests that are batched whole.

It holds where a UNet call takes less than in proportion to its rows, and the gain depends on how much less. Measures
the time from arrival to answer when edits come at random and do not wait for the server. The methods:

    shared    the engine: edits join and leave between two steps
    whole     whoever waits is taken together, oldest first; nobody joins until the last of them is done, and then all
              are answered. An edit that is done takes no more rows
    early     as `whole`, but each is answered as soon as it is done itself
    alike     as `whole`, but only edits with the same number of steps are taken together

All have the same engine, UNet, arrivals and largest number of rows; only when edits are let in differs. "measured" is a
real run. "simulated" is the engine's bookkeeping on a virtual clock, where a step takes the time measured for its rows;
"replayed" is that for the arrivals of the real run. "assumed" is the same with times that are made up: a full step
takes as long as one edit's, twice as long, and so on. Load is a share of what batches do that are always full.

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
from fashion_rag.bundle import Bundle
from fashion_rag.denoising.engine import Engine
from fashion_rag.denoising.runner import Inputs
from fashion_rag.denoising.scheduler import Limits
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.models.unet import DeepUNet
from fashion_rag.provenance import provenance, write_figure, write_result

# Steps of the server's presets fast, balanced and exact, in equal parts; and edits that are all alike.
WORKLOADS = {"mixed": (10, 20, 50), "uniform": (20,)}

ServeEdits = Callable[[Sequence[NumberedArrival], LetIn], Sequence[Times]]


@dataclass(frozen=True)
class BatchingSettings:
    """How much is run. loads, real_load: as shares of full batches. real_s: how long edits come in a real run.

    growths: for the assumed steps, the time of a full one in times of one edit's.
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
    """All; the engine itself chooses whom it runs."""
    return waiting


def next_batch(waiting: Sequence[NumberedArrival], num_running: int, num_fit: int) -> Sequence[NumberedArrival]:
    """When nobody runs, as many as fit."""
    return [] if num_running else waiting[:num_fit]


def next_alike(waiting: Sequence[NumberedArrival], num_running: int, num_fit: int) -> Sequence[NumberedArrival]:
    """When nobody runs, the oldest and those with as many steps, as many as fit."""
    alike = [arrival for arrival in waiting if arrival.num_steps == waiting[0].num_steps]
    return next_batch(alike, num_running, num_fit)


class Method(NamedTuple):
    """Whom it lets in, and which of `Times` is that of the answer: two methods are two readings of one run."""

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
    """Median seconds of an engine's step, by its rows. Row counts take turns, so a disturbance meets all of them."""
    seconds: defaultdict[int, list[float]] = defaultdict(list)
    for round_number in range(num_rounds + 1):
        for num_edits in range(1, max_rows // ROWS + 1):
            engine = Engine(unet, Limits(max_rows, NEVER_FULL))
            for number in range(num_edits):
                engine.add(guided_edit(number, 3, inputs), inputs)
            while len(engine):
                start = engine.clock()
                engine.step()
                if round_number:  # the first warms up
                    seconds[ROWS * num_edits].append(engine.clock() - start)
    return {num_rows: median(each) for num_rows, each in seconds.items()}


def assumed_steps(alone_s: float, growth: float, max_rows: int) -> dict[int, float]:
    """Seconds of a step, by its rows: on a line from `alone_s` for one edit to `growth` times that for all rows."""
    num_fit = max_rows // ROWS
    rows = [ROWS * num_edits for num_edits in range(1, num_fit + 1)]
    return dict(zip(rows, np.linspace(alone_s, growth * alone_s, num_fit).tolist(), strict=True))


def capacity(step_s: StepTimes, steps: Sequence[int]) -> float:
    """Edits of `steps`, in equal parts, that batches do in a second if they are always full."""
    max_rows = max(step_s)
    return max_rows / ROWS / (step_s[max_rows] * mean(steps))


def figures(coming: Sequence[NumberedArrival], latencies: Sequence[float], alone_s: float) -> dict[str, float]:
    """What is reported of one method; `_own` is in times that the edit takes alone, at `alone_s` a step."""
    seconds, steps = np.array(latencies), np.array([arrival.num_steps for arrival in coming])
    own = seconds / (steps * alone_s)
    answered_s = seconds + [arrival.at_s for arrival in coming]
    return {
        "p50_s": float(np.percentile(seconds, 50)),
        "p95_s": float(np.percentile(seconds, 95)),
        "mean_s": float(seconds.mean()),
        "p95_own": float(np.percentile(own, 95)),
        "mean_own": float(own.mean()),
        "answers_per_s": float(len(coming) / answered_s.max()),
        **{f"p95_s_of_{each}_steps": float(np.percentile(seconds[steps == each], 95)) for each in np.unique(steps)},
    }


def compare(
    run: ServeEdits, workload: str, load: float, step_s: StepTimes, num_edits: int, num_repeats: int, seed: int
) -> Record:
    """Medians over repeats of each method's figures, and of the figures of shared steps divided by the others'.

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
        repeats.append(
            {
                name: figures(coming, [getattr(each, method.answer) for each in times[method.let_in]], step_s[ROWS])
                for name, method in METHODS.items()
            }
        )
    return {
        "workload": workload,
        "load": load,
        "arrivals_per_s": median(num_edits / coming[-1].at_s for coming in traces),
        "num_edits": num_edits,
        "num_repeats": num_repeats,
        "methods": {
            name: {figure: median(each[name][figure] for each in repeats) for figure in repeats[0][name]}
            for name in METHODS
        },
        "shared_divided_by": {
            name: {
                figure: _spread([each["shared"][figure] / each[name][figure] for each in repeats])
                for figure in ("p95_s", "mean_s", "p95_own")
            }
            for name in BASELINES
        },
    }


def _spread(numbers: Sequence[float]) -> dict[str, float]:
    return {"median": median(numbers), "min": min(numbers), "max": max(numbers)}


def benchmark(
    bundle_path: Path, device: str, settings: BatchingSettings, real: bool, say: Callable[[str], None]
) -> Record:
    """The result as plain values, for JSON. Nothing is `measured` or `replayed` unless `real`; `say` tells of progress.

    step_s: seconds of a step, by its rows. step_s_after: the same after the real run, to show if anything disturbed it.

    Raises as `Bundle` for one that cannot be opened.
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
    measured, replayed, simulated, assumed = list[Record](), list[Record](), list[Record](), list[Record]()
    if real:
        say("real run")
        num_edits = math.ceil(settings.real_s * settings.real_load * capacity(step_s, WORKLOADS["mixed"]))
        for run, found in ((run_real, measured), (simulation(step_s), replayed)):
            found.append(compare(run, "mixed", settings.real_load, step_s, num_edits, settings.real_repeats, seed))
        say("measuring again how long a step takes")
        step_s_after = measure_steps(unet, inputs, settings.max_rows, settings.pace_rounds)
    size = (settings.simulated_edits, settings.simulated_repeats, seed)
    for workload in WORKLOADS:
        for load in settings.loads:
            say(f"simulating {workload} edits at load {load}")
            simulated.append(compare(simulation(step_s), workload, load, step_s, *size))
    for growth in settings.growths:
        say(f"simulating full steps that take {growth} times one edit's")
        made_up = assumed_steps(step_s[ROWS], growth, settings.max_rows)
        level = compare(simulation(made_up), "mixed", settings.real_load, made_up, *size)
        assumed.append({"growth": growth} | level)
    return {
        "from": provenance(),
        "settings": asdict(settings) | {"bundle": bundle.manifest.name, "device": device, "workloads": WORKLOADS},
        "step_s": step_s,
        "step_s_after": step_s_after,
        "measured": measured,
        "replayed": replayed,
        "simulated": simulated,
        "assumed": assumed,
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
    console.print(overview(result, "p95_own", "the same, in times that the edit takes alone"))
    if out:
        write_result(out, result)
    if plot_file:
        write_figure(plot_file, plot(result))
