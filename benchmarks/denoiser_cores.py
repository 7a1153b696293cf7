"""The claim: which way to use the cores of a machine denoises most, a denoiser on each core or one with a thread each.

Two processes with a thread each, pinned to a core each as `denoiser.pin_cores` pins them, run steps of the UNet at the
same time; then one process with two threads on both cores does. They take turns, a few seconds each, so that a
disturbance meets both. What is compared is the rows a second of both cores together, and the seconds of a step, which
is what an edit waits for. Both hold as many rows in all: two denoisers of 4 rows are compared with one of 8.

    python -m benchmarks.denoiser_cores --out benchmarks/results/denoiser_cores.json
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.table import Table

from export.modules import module_specs
from export.parity import SEED, random_inputs
from export.runtime import CPU_BACKENDS, Runtime
from fashion_rag.errors import ArtifactError
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.provenance import provenance, write_result
from serve.cores import cores_by_node, pin, share_of

NUM_CORES = 2
TWO, ONE = "two of one thread", "one of two threads"
Record = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """A time in which a worker calls the UNet with `rows` rows again and again.

    start_s, end_s: of the clock `time.monotonic`, which all processes of a machine share.
    """

    rows: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Worker:
    """A process that holds a UNet, and the connection to it."""

    process: BaseProcess
    connection: Connection


def work(connection: Connection, runtime: Runtime, cores: set[int]) -> None:
    """Load the UNet on `cores`, and answer each Turn with the seconds of its calls, until None comes."""
    pin(cores)
    torch.set_num_threads(runtime.num_threads)
    parts = runtime.open()
    network, spec = parts.load_unet().whole, module_specs(parts.bundle)["unet"]
    connection.send("ready")
    with torch.inference_mode():
        while (turn := connection.recv()) is not None:
            inputs = random_inputs(spec, turn.rows, torch.Generator().manual_seed(SEED))
            # The first call with a number of rows may do more than later ones.
            network(*inputs)
            time.sleep(max(0.0, turn.start_s - time.monotonic()))
            seconds: list[float] = []
            while (begun := time.monotonic()) < turn.end_s or not seconds:
                network(*inputs)
                seconds.append(time.monotonic() - begun)
            connection.send(seconds)


@contextmanager
def workers(runtime: Runtime, num_workers: int) -> Iterator[list[Worker]]:
    """Start processes that share the cores of this process, and end them with the block."""
    context = get_context("spawn")
    by_node = cores_by_node(sorted(os.sched_getaffinity(0))[:NUM_CORES])
    started: list[Worker] = []
    try:
        for rank in range(num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, runtime, share_of(rank, runtime.num_threads, by_node)))
            process.start()
            theirs.close()
            started.append(Worker(process, ours))
        for worker in started:
            assert worker.connection.recv() == "ready"
        yield started
    finally:
        for worker in started:
            if worker.process.is_alive():
                worker.connection.send(None)
            worker.process.join()


def take_turn(together: Sequence[Worker], rows: int, turn_s: float, settle_s: float) -> tuple[float, float]:
    """Have all workers call the UNet at once; return rows a second of all together, and the mean seconds of a step.

    rows: of each worker. settle_s: how long after now the turn begins, in which each worker makes a call.
    """
    start_s = time.monotonic() + settle_s
    turn = Turn(rows, start_s, start_s + turn_s)
    for worker in together:
        worker.connection.send(turn)
    calls = [worker.connection.recv() for worker in together]
    # A call that began before the end may end after it, so each worker counts the time that its own calls took.
    rows_per_s = sum(rows * len(seconds) / sum(seconds) for seconds in calls)
    return rows_per_s, fmean(second for seconds in calls for second in seconds)


def measure(
    runtime: Runtime, rows: Sequence[int], num_rounds: int, turn_s: float, settle_s: float = 2.0
) -> list[Record]:
    """Return the figures of both ways by the rows of a step in all, which are even numbers."""
    records: list[Record] = []
    with workers(runtime, NUM_CORES) as two, workers(replace(runtime, num_threads=NUM_CORES), 1) as one:
        for all_rows in rows:
            ways = {TWO: (two, all_rows // NUM_CORES), ONE: (one, all_rows)}
            measured: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for number in range(num_rounds):
                order = list(ways) if number % 2 == 0 else list(reversed(ways))
                for name in order:
                    measured[name].append(take_turn(*ways[name], turn_s, settle_s))
            record: Record = {"rows": all_rows}
            for name, figures in measured.items():
                rows_per_s, step_s = zip(*figures, strict=True)
                record[name] = {"rows_per_s": median(rows_per_s), "step_s": median(step_s)}
            record["times_more_rows"] = record[TWO]["rows_per_s"] / record[ONE]["rows_per_s"]
            records.append(record)
    return records


def table(backend: str, records: Sequence[Record]) -> Table:
    """Return a table with a line for each number of rows."""
    lines = Table("rows in all", TWO, ONE, "two of one against one of two", title=f"{backend}: rows/s, ms of a step")
    for record in records:
        cells = [f"{record[name]['rows_per_s']:.1f}, {1000 * record[name]['step_s']:.0f}" for name in (TWO, ONE)]
        lines.add_row(str(record["rows"]), *cells, f"{record['times_more_rows']:.2f}")
    return lines


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    bundle: Annotated[Path, typer.Option(help="Model bundle.")] = DEMO_BUNDLE,
    backend: Annotated[
        Literal["torch", "onnx", "openvino"] | None, typer.Option(help="By default onnx, and then openvino.")
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="onnx computes in float32 alone.")
    ] = "float32",
    num_rounds: Annotated[int, typer.Option(help="Turns of each way.", min=1)] = 7,
    turn_s: Annotated[float, typer.Option(help="Seconds of a turn.", min=0.01)] = 3.0,
) -> None:
    """Compare a denoiser on each of two cores with one that has two threads, print the figures and write them."""
    if len(os.sched_getaffinity(0)) < NUM_CORES:
        raise ArtifactError(f"cores: got {len(os.sched_getaffinity(0))}; must be at least {NUM_CORES}")
    results: dict[str, list[Record]] = {}
    for name in (backend,) if backend else CPU_BACKENDS:
        runtime = Runtime(str(bundle.resolve()), name, precision)
        results[name] = measure(runtime, (2, 4, 8, 16), num_rounds, turn_s)
        Console().print(table(name, results[name]))
    settings = {"precision": precision, "num_rounds": num_rounds, "turn_s": turn_s, "num_cores": NUM_CORES}
    write_result(out, {"from": provenance(), "settings": settings, "backends": results})


if __name__ == "__main__":
    typer.run(main)
