"""The claim: what runs the networks on a CPU does not change the pictures, except bfloat16, whose cost is measured.

The held-out cases of `fashion-rag demo evaluate`, one garment each, are edited with the same seeds by plain PyTorch in
float32, by each backend of the CPU in float32, and by OpenVINO in bfloat16 where the processor has it. For each there
are: whether colour and pattern agree with the target, CLIP-I, the change against plain PyTorch with its 95 % interval
over the cases, and how far the pictures are from PyTorch's, in levels of 255. The demo world is small: what holds in it
may not hold for photos.

    python -m benchmarks.cpu_quality --out benchmarks/results/cpu_quality.json
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.judging import MEASURES, SEED, changes, judge
from export.backend import has_bfloat16
from export.runtime import Backend, Precision, Runtime
from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.retrieval_encoder import RetrievalEncoder
from fashion_rag.demo.model.evaluate import make_cases, paint
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.provenance import provenance, write_result

Record = dict[str, Any]


class Way(NamedTuple):
    """What runs the networks, and in which precision."""

    backend: Backend
    precision: Precision


PLAIN = Way("torch", "float32")
IN_FLOAT32 = (Way("onnx", "float32"), Way("openvino", "float32"))
# PyTorch's own bfloat16 tells what the precision costs whatever computes in it.
IN_BFLOAT16 = (Way("openvino", "bfloat16"), Way("torch", "bfloat16"))


class Judged(NamedTuple):
    """The pictures of all cases, uint8 [N, H, W, 3], and what `judge` says of them."""

    pictures: NDArray[np.uint8]
    figures: Record


def edit_all(bundle: Path, way: Way, num_cases: int, num_steps: int) -> Judged:
    """Edit all cases in one way and judge them, with one thread."""
    torch.set_num_threads(1)
    pipeline = Runtime(str(bundle), *way).open().load_pipeline()
    manifest = pipeline.manifest
    cases = make_cases(num_cases, manifest.image_size, SEED, num_steps, manifest.guidance_scale)
    pictures = paint(pipeline, cases, [[case.target] for case in cases], lambda: None)
    return Judged(np.stack(pictures), judge(pictures, cases, RetrievalEncoder.load(bundle / "retrieval")))


def summary(way: Way, judged: Judged, plain: Judged) -> Record:
    """Return the figures of a way, and how far its pictures are from those of plain PyTorch."""
    off = np.abs(judged.pictures.astype(int) - plain.pictures)
    largest = off.reshape(len(off), -1).max(axis=1).tolist()
    return {
        "backend": way.backend,
        "precision": way.precision,
        **changes(judged.figures, plain.figures),
        "levels_off": {"mean": float(off.mean()), "median_of_largest": median(largest), "largest": max(largest)},
        "share_off_by_more_than_2": fmean(level > 2 for level in largest),
    }


def table(records: Sequence[Record]) -> Table:
    """Return a table with a line for each way."""
    lines = Table("", *MEASURES, "levels off, mean", "largest, median", "largest", title="Against PyTorch in float32")
    for record in records:
        cells = []
        for name in MEASURES:
            low, high = record[name]["interval"]
            cells.append(f"{record[name]['mean']:.3f} ({record[name]['change']:+.3f}, {low:+.3f} to {high:+.3f})")
        off = record["levels_off"]
        levels = (f"{off['mean']:.3f}", f"{off['median_of_largest']:.0f}", str(off["largest"]))
        lines.add_row(f"{record['backend']} {record['precision']}", *cells, *levels)
    return lines


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    bundle: Annotated[Path, typer.Option(help="Demo bundle.")] = DEMO_BUNDLE,
    num_cases: Annotated[int, typer.Option(help="Held-out cases.", min=1)] = 200,
    num_steps: Annotated[int | None, typer.Option(help="Steps of an edit; by default the bundle's.", min=1)] = None,
    num_processes: Annotated[int, typer.Option(help="Ways at once, with a thread each.", min=1)] = 2,
) -> None:
    """Edit the held-out cases with every backend and precision of the CPU, print the figures and write them."""
    steps = num_steps or Bundle.open(bundle).manifest.num_inference_steps
    ways = [PLAIN, *IN_FLOAT32, *(IN_BFLOAT16 if has_bfloat16() else ())]
    with ProcessPoolExecutor(num_processes, get_context("spawn")) as pool:
        waiting = [pool.submit(edit_all, bundle.resolve(), way, num_cases, steps) for way in ways]
        judged = [future.result() for future in track(waiting, "editing")]
    records = [summary(way, own, judged[0]) for way, own in zip(ways, judged, strict=True)]
    Console(width=160).print(table(records))
    settings = {"num_cases": num_cases, "num_steps": steps, "has_bfloat16": has_bfloat16()}
    write_result(out, {"from": provenance(), "settings": settings, "ways": records})


if __name__ == "__main__":
    typer.run(main)
