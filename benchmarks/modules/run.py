"""The claim: compiled networks make the same pictures as PyTorch's own, sooner.

Every network of the bundle, with 1 to 16 rows, and a whole edit are timed with each runner:

    eager       PyTorch as it is; on a GPU with channels last
    compile     torch.compile; on a GPU with CUDA graphs
    onnx        ONNX Runtime, on a CPU
    openvino    OpenVINO, on a CPU, from the same files
    tensorrt    TensorRT, on a GPU

They run in float32 on a CPU and float16 on a GPU, with one thread as in a replica. Before a network is timed, it is
checked against PyTorch in float32 on the same inputs; a network that is too far off ends the benchmark, and so does, in
float32, a picture that is off by more than 2/255. Runners take turns within a round, so that a disturbance meets all; a
turn is several calls in a row. Times are medians over the rounds; "times faster" than eager is the median of the
rounds' ratios.

torch.compile takes long, so without --all it is tried only where it matters most (COMPILED below); the other networks
of an edit are then eager. --size sd2 measures an untrained UNet of full size and its VAE, and edits of 50 guided steps,
one and eight at a time; it needs a GPU and takes tens of minutes. "share" is the share of the GPU's useful operations a
second that is reached; operations are counted as the network has them in PyTorch.

    python -m benchmarks.modules --out benchmarks/results/modules.json --plot benchmarks/results/modules.png
    python -m benchmarks.modules --size sd2 --out benchmarks/results/modules_sd2.json
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from rich.console import Console
from torch import nn

from benchmarks.medians import medians
from benchmarks.modules.models import ROWS, MeasuredModel, TimedPictures, bundle_model, synchronize, untrained_model
from benchmarks.modules.report import Record, edit_table, module_table, plot
from benchmarks.modules.runners import (
    FROM_ONNX,
    NetworkRunner,
    Workshop,
    count_flops,
    describe,
    why_not,
)
from export.modules import ModuleSpec
from export.parity import SEED, random_inputs
from fashion_rag.bundle import Bundle
from fashion_rag.errors import ArtifactError
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.provenance import provenance, write_figure, write_result

# Useful operations a second, which "share" is a share of, by part of the GPU's name. An H100 SXM reaches this in large
# bfloat16 matrix products; the dense peak in NVIDIA's datasheet is 989e12, and an H200 has the same processor.
# `count_flops` finds 0.582e12 in a row of the full-size UNet, 0.831e12 in encoding and 1.879e12 in decoding a picture:
# 60.9e12 in an edit of 50 guided steps.
LIMIT_FLOPS = {"H100": 790e12, "H200": 790e12}
# The rows at which torch.compile is tried; on a GPU they are those of the edits.
COMPILED: dict[str, dict[str, tuple[int, ...]]] = {
    "cpu": {"unet": (1, 2, 8), "vae_decoder": (1, 2, 8)},
    "cuda": {"unet": (2, 16), "vae_encoder": (1, 8), "vae_decoder": (1, 8)},
}
COMPILED_QUICK: dict[str, tuple[int, ...]] = {"unet": (2,)}
SD2_STEPS = 50
# In 255ths. A replica promises this for pictures in float32, whatever runs its networks.
MAX_DIFFERENCE = 2


@dataclass(frozen=True)
class ModulesSettings:
    """How much is run.

    turn_s: about how long a runner works before the next has its turn. num_steps: steps of an edit; by default the
    bundle's own, or 50 at full size.
    """

    rows: tuple[int, ...] = (1, 2, 4, 8, 16)
    num_rounds: int = 15
    num_edit_rounds: int = 10
    turn_s: float = 0.05
    num_steps: int | None = None


QUICK = ModulesSettings(rows=(1, 2), num_rounds=3, num_edit_rounds=2, turn_s=0.02, num_steps=4)


def in_turn(names: Iterable[NetworkRunner], round_number: int) -> tuple[NetworkRunner, ...]:
    """Return the order of a round; each round begins with another runner."""
    order = deque(names)
    order.rotate(-round_number)
    return tuple(order)


def spread(numbers: Sequence[float]) -> dict[str, float]:
    """Return the quartiles."""
    return dict(zip(("p25", "median", "p75"), np.percentile(numbers, (25, 50, 75)).tolist(), strict=True))


def compare(seconds: Mapping[NetworkRunner, Sequence[float]]) -> dict[NetworkRunner, Record]:
    """Return the quartiles of each runner's times and of how many times faster than eager it was.

    seconds: a number for each round, by runner.
    """
    compared = {}
    for name, times in seconds.items():
        ratios = [eager / own for eager, own in zip(seconds[NetworkRunner.EAGER], times, strict=True)]
        compared[name] = {"s": spread(times), "times_faster": spread(ratios)}
    return compared


@torch.inference_mode()
def measure_network(
    networks: Mapping[NetworkRunner, nn.Module], spec: ModuleSpec, workshop: Workshop, settings: ModulesSettings
) -> dict[int, dict[NetworkRunner, list[float]]]:
    """Return the seconds of a call, one for each round, by rows and then by runner."""
    generator = torch.Generator().manual_seed(SEED)
    seconds: dict[int, dict[NetworkRunner, list[float]]] = {}
    calls: dict[tuple[int, NetworkRunner], Callable[[], float]] = {}
    for rows in settings.rows:
        inputs = [tensor.to(workshop.device) for tensor in random_inputs(spec, rows, generator)]
        seconds[rows] = {name: [] for name in networks if rows in workshop.rows_of(name, spec.name)}
        for name in seconds[rows]:
            run = partial(networks[name], *inputs)
            run()  # The first call may have to compile something.
            num_calls = math.ceil(settings.turn_s / time_calls(run, 1, workshop.device))
            calls[rows, name] = partial(time_calls, run, num_calls, workshop.device)
    for round_number in range(settings.num_rounds):
        for rows, by_runner in seconds.items():
            for name in in_turn(by_runner, round_number):
                by_runner[name].append(calls[rows, name]())
    return seconds


def time_calls(run: Callable[[], object], num_calls: int, device: torch.device) -> float:
    """Return the seconds of one of `num_calls` calls in a row; a GPU is waited for only at the end."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(num_calls):
        run()
    synchronize(device)
    return (time.perf_counter() - start) / num_calls


def measure_edits(
    model: MeasuredModel,
    batch: int,
    networks: Mapping[NetworkRunner, Mapping[str, nn.Module]],
    settings: ModulesSettings,
    exact: bool,
) -> Record:
    """Return the times of `batch` edits made at once, by runner, and how far the pictures are from eager's.

    Raises ArtifactError if `exact` and a picture is further off than MAX_DIFFERENCE.
    """
    edits = {name: model.make_edit({**networks[NetworkRunner.EAGER], **own}, batch) for name, own in networks.items()}
    expected = edits[NetworkRunner.EAGER]().pictures.astype(int)
    differences = {name: int(np.abs(edit().pictures - expected).max()) for name, edit in edits.items()}
    off = [name for name, difference in differences.items() if difference > MAX_DIFFERENCE]
    if exact and off:
        raise ArtifactError(
            f"{off[0]}: a picture is off by {differences[off[0]]}/255; must be at most {MAX_DIFFERENCE}/255"
        )
    done: dict[NetworkRunner, list[TimedPictures]] = {name: [] for name in edits}
    for round_number in range(settings.num_edit_rounds):
        for name in in_turn(edits, round_number):
            done[name].append(edits[name]())
    seconds = {}
    for name, rounds in done.items():
        seconds[name] = [sum(edited.stages_s.values()) for edited in rounds]
    runners = compare(seconds)
    for name, record in runners.items():
        record |= {
            "edits_per_s": batch / record["s"]["median"],
            "stages_s": medians([edited.stages_s for edited in done[name]]),
            "max_difference_255": differences[name],
        }
    return {"batch": batch, "unet_rows": ROWS * batch, "num_steps": model.num_steps, "runners": runners}


def benchmark(
    model: MeasuredModel, workshop: Workshop, settings: ModulesSettings, runners: Sequence[NetworkRunner]
) -> Record:
    """Return the result as plain values for JSON; eager is always among the runners.

    Raises ArtifactError for a network or a picture that is too far off, and for a network that cannot be compiled.
    """
    left_out = {name: why for name in runners if (why := why_not(name, workshop.device))}
    names = [
        name for name in NetworkRunner if name is NetworkRunner.EAGER or (name in runners and name not in left_out)
    ]
    networks: dict[NetworkRunner, dict[str, nn.Module]] = {name: {} for name in names}
    limit = gpu_limit(workshop.device)
    if set(names) & set(FROM_ONNX):
        workshop.export()
    modules = []
    for spec in model.specs.values():
        ready = ready_networks(spec, names, workshop)
        for name, network in ready.items():
            networks[name][spec.name] = network
        modules.append(network_record(spec, ready, workshop, settings, limit))
    edits = []
    flops = sum(model.edit_rows[record["module"]] * record["flops_per_row"] for record in modules)
    for batch in model.batches:
        if ROWS * batch <= max(settings.rows):
            workshop.say(f"edits, {batch} at once")
            exact = workshop.dtype == torch.float32
            measured = measure_edits(model, batch, networks, settings, exact)
            edits.append(measured | {"runners": with_shares(measured["runners"], batch * flops, limit)})
    return {
        "from": provenance(),
        "settings": asdict(settings)
        | {"model": model.name, "device": workshop.device.type, "num_threads": workshop.num_threads},
        "runners": {name: describe(name, workshop) for name in names},
        "left_out": left_out,
        "limit_flops_per_s": limit,
        "flops_per_edit": flops,
        "modules": modules,
        "edits": edits,
    }


def ready_networks(
    spec: ModuleSpec, names: Iterable[NetworkRunner], workshop: Workshop
) -> dict[NetworkRunner, nn.Module]:
    """Return the network, run by each of the runners that it is measured with."""
    ready = {}
    for name in names:
        if workshop.rows_of(name, spec.name):
            workshop.say(f"{spec.name}: making it ready for {name}")
            ready[name] = workshop.load(name, spec)
    return ready


def network_record(
    spec: ModuleSpec,
    ready: Mapping[NetworkRunner, nn.Module],
    workshop: Workshop,
    settings: ModulesSettings,
    limit: float | None,
) -> Record:
    """Check a network with each runner, time it, and return the figures."""
    reference = workshop.reference(spec)
    parity = {name: workshop.check(name, spec, reference, network) for name, network in ready.items()}
    flops = count_flops(spec, reference)
    workshop.say(f"{spec.name}: taking turns")
    rows: list[Record] = []
    for num_rows, seconds in measure_network(ready, spec, workshop, settings).items():
        rows.append({"rows": num_rows, "runners": with_shares(compare(seconds), num_rows * flops, limit)})
    return {
        "module": spec.name,
        "flops_per_row": flops,
        "max_rel_error": {name: checked.max_rel_error for name, checked in parity.items()},
        "tolerance": max(checked.tolerance for checked in parity.values()),
        "rows": rows,
    }


def with_shares(
    runners: Mapping[NetworkRunner, Record], flops: float, limit: float | None
) -> dict[NetworkRunner, Record]:
    """Return the records with the share of `limit` that each runner reaches; None where the limit is not known."""
    shared = {}
    for name, record in runners.items():
        share = flops / record["s"]["median"] / limit if limit else None
        shared[name] = record | {"share": share}
    return shared


def gpu_limit(device: torch.device) -> float | None:
    """Return the useful operations that the GPU can do in a second; None for a CPU and for an unknown GPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((limit for part, limit in LIMIT_FLOPS.items() if part in name), None)


def main(
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Picture to write.")] = None,
    bundle: Annotated[Path, typer.Option(help="Model bundle.")] = DEMO_BUNDLE,
    size: Annotated[Literal["bundle", "sd2"], typer.Option(help="The bundle, or untrained at full size.")] = "bundle",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU where there is one.")] = None,
    runner: Annotated[
        list[NetworkRunner] | None, typer.Option(help="Repeatable; by default all that run here.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of each network on a CPU.", min=1)] = 1,
    work: Annotated[Path | None, typer.Option(help="Folder that keeps the compiled files, to be used again.")] = None,
    compile_all: Annotated[bool, typer.Option("--all", help="torch.compile everywhere, which takes long.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A minute or two, to see that it works.")] = False,
) -> None:
    """Compare what runs the networks: PyTorch, torch.compile, ONNX Runtime, OpenVINO, TensorRT."""
    if device is None and size == "sd2" and not torch.cuda.is_available():
        raise typer.BadParameter("sd2 needs a GPU, and PyTorch finds none; --device cpu --quick tries it very slowly")
    if size == "sd2" and device == "cpu" and not quick:
        raise typer.BadParameter("sd2 on the CPU takes hours; add --quick")
    torch.set_num_threads(threads)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    settings = QUICK if quick else ModulesSettings()
    compiled = COMPILED_QUICK if quick else COMPILED[place.type]
    console = Console()
    with tempfile.TemporaryDirectory() as scratch, console.status("") as status:
        folder = Path(scratch)
        if size == "sd2":
            model = untrained_model(place, settings.num_steps or SD2_STEPS)
        else:
            model = bundle_model(Bundle.open(bundle), place, folder, settings.num_steps)
        if compile_all:
            compiled = dict.fromkeys(model.specs, settings.rows)
        files = (work or folder) / f"{model.name}-{place.type}"
        say = status.update if console.is_terminal else console.print
        workshop = Workshop(
            specs=model.specs,
            bundle=model.bundle,
            device=place,
            folder=files,
            rows=settings.rows,
            compiled=compiled,
            num_threads=threads,
            say=say,
        )
        result = benchmark(model, workshop, settings, runner or tuple(NetworkRunner))
    console.print(module_table(result))
    console.print(edit_table(result))
    if out:
        write_result(out, result)
    if plot_file:
        write_figure(plot_file, plot(result))
