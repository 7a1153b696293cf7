"""The claim: on a CPU, OpenVINO runs the exported networks sooner than PyTorch and ONNX Runtime, within a tolerance.

A step of the UNet and a decoding of the VAE are timed, with 1 to 16 rows, as replicas load and call them:

    torch              plain PyTorch in float32, the reference
    onnx               ONNX Runtime, on the exported files
    openvino           OpenVINO, on the same files, in float32
    openvino-bfloat16  the same in bfloat16; left out where the processor cannot multiply in it

They take turns within a round, each round beginning with another, so that a disturbance meets all; a turn is a call.
The first call with a number of rows is not counted, because OpenVINO prepares its kernels in it. "times faster" is the
ratio of the medians. Before that, every network of the bundle is compared with PyTorch on the same inputs: the largest
and the root mean square difference, as shares of the output's spread. In float32, a network that is further off than
`export.parity` allows ends the benchmark.

    python -m benchmarks.cpu_backends --out benchmarks/results/cpu_backends.json
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from export.backend import has_bfloat16
from export.modules import ModuleSpec, module_specs
from export.onnx_module import load_onnx
from export.openvino_module import load_openvino
from export.parity import SEED, compare, outputs, random_inputs
from export.to_onnx import cached_onnx
from fashion_rag.bundle import Bundle
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.provenance import provenance, write_result

TIMED = ("unet", "vae_decoder")
TORCH, ONNX, OPENVINO, BFLOAT16 = "torch", "onnx", "openvino", "openvino-bfloat16"
PYTORCH_BFLOAT16 = "torch-bfloat16"  # only compared, to tell what bfloat16 costs by itself

Record = dict[str, Any]


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    bundle: Annotated[Path, typer.Option(help="Model bundle.")] = DEMO_BUNDLE,
    threads: Annotated[int, typer.Option(help="Threads of each network.", min=1)] = 1,
    rows: Annotated[list[int] | None, typer.Option(help="Repeatable; by default 1, 2, 4, 8 and 16.")] = None,
    num_rounds: Annotated[int, typer.Option(help="Calls of each backend and number of rows.", min=1)] = 15,
) -> None:
    """Compare the backends of the CPU with PyTorch, print the figures and write them."""
    torch.set_num_threads(threads)
    opened = Bundle.open(bundle)
    result = benchmark(opened, cached_onnx(opened), threads, tuple(rows or (1, 2, 4, 8, 16)), num_rounds)
    write_result(out, result)
    console = Console()
    console.print(parity_table(result["parity"]))
    console.print(times_table(result["times"]))


def benchmark(bundle: Bundle, folder: Path, num_threads: int, rows: tuple[int, ...], num_rounds: int) -> Record:
    """Return the result as plain values for JSON.

    folder: with the exported networks. Raises ArtifactError for a float32 network that is too far from PyTorch's.
    """
    parity: list[Record] = []
    times: list[Record] = []
    for spec in module_specs(bundle).values():
        networks = load_networks(bundle, folder, spec, num_threads)
        parity += differences(spec, networks)
        if spec.name in TIMED:
            timed = {name: network for name, network in networks.items() if name != PYTORCH_BFLOAT16}
            for num_rows in rows:
                times += turns(spec, timed, num_rows, num_rounds)
    return {
        "from": provenance(),
        "settings": {"bundle": bundle.manifest.name, "num_threads": num_threads, "num_rounds": num_rounds},
        "parity": parity,
        "times": times,
    }


def load_networks(bundle: Bundle, folder: Path, spec: ModuleSpec, num_threads: int) -> dict[str, nn.Module]:
    """Return the network by what runs it; PyTorch in float32 comes first."""
    networks: dict[str, nn.Module] = {
        TORCH: spec.load(bundle, torch.float32),
        ONNX: load_onnx(folder, bundle, spec.name, num_threads),
        OPENVINO: load_openvino(folder, bundle, spec.name, num_threads),
    }
    if has_bfloat16():
        networks[BFLOAT16] = load_openvino(folder, bundle, spec.name, num_threads, torch.bfloat16)
        networks[PYTORCH_BFLOAT16] = spec.load(bundle, torch.bfloat16)
    return networks


def differences(spec: ModuleSpec, networks: Mapping[str, nn.Module]) -> list[Record]:
    """Return how far each network is from PyTorch's in float32. Raises ArtifactError as `compare`, for float32."""
    expected = list(outputs(spec, networks[TORCH]))
    records: list[Record] = []
    for name in networks:
        if name == TORCH:
            continue
        got = list(outputs(spec, networks[name]))
        tolerance = compare(spec, expected, got).tolerance if name in (ONNX, OPENVINO) else None
        largest, mean_square = [], []
        for wanted, output in zip(expected, got, strict=True):
            error = (output - wanted) / wanted.std()
            largest.append(error.abs().max().item())
            mean_square.append(error.square().mean().sqrt().item())
        figures = {"max_rel_error": max(largest), "rms_rel_error": max(mean_square), "tolerance": tolerance}
        records.append({"module": spec.name, "backend": name} | figures)
    return records


@torch.inference_mode()
def turns(spec: ModuleSpec, networks: Mapping[str, nn.Module], num_rows: int, num_rounds: int) -> list[Record]:
    """Return the times of calls with `num_rows` rows, by what runs the network."""
    inputs = random_inputs(spec, num_rows, torch.Generator().manual_seed(SEED))
    calls: dict[str, Callable[[], Tensor]] = {}
    for name, network in networks.items():
        calls[name] = partial(network, *inputs)
        calls[name]()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = deque(calls)
    for _ in range(num_rounds):
        for name in order:
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
        order.rotate(-1)
    reference_s = median(seconds[TORCH])
    records: list[Record] = []
    for name, measured in seconds.items():
        median_s = median(measured)
        figures = {"median_s": median_s, "min_s": min(measured), "times_faster": reference_s / median_s}
        records.append({"module": spec.name, "rows": num_rows, "backend": name} | figures)
    return records


def parity_table(records: list[Record]) -> Table:
    """Return a table of the differences from PyTorch."""
    table = Table("network", "backend", "largest", "root mean square", title="Off by, in spreads of the output")
    for record in records:
        errors = (f"{record['max_rel_error']:.1e}", f"{record['rms_rel_error']:.1e}")
        table.add_row(record["module"], record["backend"], *errors)
    return table


def times_table(records: list[Record]) -> Table:
    """Return a table of the median time of a call, and of how many times faster than PyTorch it is."""
    table = Table("network", "rows", "backend", "ms", "times faster", title="A call, medians")
    for record in records:
        figures = (f"{1000 * record['median_s']:.1f}", f"{record['times_faster']:.2f}")
        table.add_row(record["module"], str(record["rows"]), record["backend"], *figures)
    return table


if __name__ == "__main__":
    typer.run(main)
