"""The claim: edits can be three times cheaper, and more, at the same quality. Each shortcut is measured.

The 200 held-out cases of `fashion-rag demo evaluate`, one garment each, are edited with the same seeds in every way:
the plain 50 steps of DDIM, other solvers and numbers of steps, guidance in a part of the steps, deep features kept for
several steps, and the server's presets. Agreement is read from pixels (fashion_rag.demo.world.measure); CLIP-I and CMMD
are by the demo's own towers, so they are not independent. The demo world is small: what holds in it may not hold for
photos.
`fashion-rag evaluate` does the same on Dress Code.

    python -m benchmarks.frontier --out benchmarks/results/frontier.json --plot benchmarks/results/frontier.png
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.judging import SEED, changes
from benchmarks.judging import judge as agreement
from export.runtime import Runtime
from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.retrieval_encoder import RetrievalEncoder
from fashion_rag.demo.model.evaluate import make_cases, paint
from fashion_rag.denoising.plan import plan
from fashion_rag.denoising.runner import Inputs
from fashion_rag.evaluation.metrics import clip_distance
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.models.unet import unet_input
from fashion_rag.pipeline import Pipeline
from fashion_rag.provenance import provenance, write_figure, write_result
from fashion_rag.request import PLAIN, Shortcuts, Solver
from serve.config import IngressSettings

TIMED_ROWS = 8  # in each call that is timed
NUM_TIMED = 15  # calls that are timed
Record = dict[str, Any]


@dataclass(frozen=True)
class DenoisingWay:
    """One way to denoise. family: the ways that are drawn with it as one line."""

    name: str
    family: str
    steps: int
    shortcuts: Shortcuts = PLAIN


def _ways() -> list[DenoisingWay]:
    """Return all ways; the plain one comes first, and the others are compared with it."""
    ddim = [DenoisingWay(f"ddim {steps}", "DDIM", steps) for steps in (50, 20, 10, 7, 5)]
    solvers = [
        DenoisingWay(f"{solver} {steps}", name, steps, Shortcuts(solver))
        for solver, name in ((Solver.DPMPP_2M, "DPM-Solver++(2M)"), (Solver.UNIPC, "UniPC"))
        for steps in (20, 10, 7, 5)
    ]
    guided = [
        DenoisingWay(
            f"unipc {steps}, guided {start}-{end}", "guidance in a part", steps, Shortcuts(Solver.UNIPC, start, end)
        )
        for steps, start, end in ((10, 0.0, 0.7), (10, 0.0, 0.5), (10, 0.2, 1.0), (10, 0.1, 0.6))
    ]
    kept = [
        DenoisingWay(f"ddim {steps}, every {every}", "features kept", steps, Shortcuts(cache_interval=every))
        for steps, every in ((50, 2), (50, 3), (50, 5), (20, 2))
    ]
    presets = [
        DenoisingWay(f"preset {name}", "preset", preset.steps or 0, preset.shortcuts)
        for name, preset in IngressSettings().presets.items()
        # The demo bundle has no student.
        if not preset.shortcuts.student
    ]
    return ddim + solvers + guided + kept + presets


@cache
def _loaded() -> tuple[Pipeline, Any]:
    torch.set_num_threads(1)
    return Runtime(str(DEMO_BUNDLE)).open().load_pipeline(), RetrievalEncoder.load(DEMO_BUNDLE / "retrieval")


def judge(steps: int, shortcuts: Shortcuts, num_cases: int) -> Record:
    """Edit all cases; return for each whether colour and pattern agree, CLIP-I, and the vector of its picture."""
    pipeline, encoder = _loaded()
    manifest = pipeline.manifest
    cases = [
        replace(case, request=replace(case.request, shortcuts=shortcuts))
        for case in make_cases(num_cases, manifest.image_size, SEED, steps, manifest.guidance_scale)
    ]
    pictures = paint(pipeline, cases, [[case.target] for case in cases], lambda: None)
    return agreement(pictures, cases, encoder) | {
        "vectors": _vectors(encoder, pictures),
        "truth": _vectors(encoder, [case.truth for case in cases]),
    }


def _vectors(encoder: Any, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    images = [Image.fromarray(picture) for picture in pictures]
    vectors: NDArray[np.float64] = encoder.encode_images(images).astype(np.float64)
    return vectors


def row_seconds() -> tuple[float, float]:
    """Return the seconds of a row of the whole UNet, and of its outermost layers, in full calls that take turns."""
    pipeline, _ = _loaded()
    bundle = Bundle.open(DEMO_BUNDLE)
    blank = Inputs.blank(bundle.latent_size, bundle.text_width)
    sample = unet_input(blank.latents, blank.mask, blank.masked_image_latents, blank.pose_map)
    t = torch.zeros(TIMED_ROWS, dtype=torch.int64)
    inputs = (sample.repeat(TIMED_ROWS, 1, 1, 1), t, blank.prompt_embeds.repeat(TIMED_ROWS, 1, 1))
    unet: Any = pipeline.unet
    deep_s, shallow_s = [], []
    with torch.inference_mode():
        for _ in range(NUM_TIMED):
            started = time.perf_counter()
            _, features = unet.deep(*inputs)
            deep_s.append(time.perf_counter() - started)
            started = time.perf_counter()
            unet.shallow(*inputs, features)
            shallow_s.append(time.perf_counter() - started)
    return statistics.median(deep_s) / TIMED_ROWS, statistics.median(shallow_s) / TIMED_ROWS


def summary(way: DenoisingWay, judged: Record, plain: Record, seconds: tuple[float, float]) -> Record:
    """Return costs, means, and how far they are from the plain way, with 95 % intervals over the cases."""
    pipeline, _ = _loaded()
    steps = plan(pipeline.sampler, way.steps, pipeline.manifest.guidance_scale, way.shortcuts)
    rows = [sum(kind) for kind in zip(*(step.rows for step in steps), strict=True)]
    record: Record = {"name": way.name, "family": way.family, "deep_rows": rows[0], "shallow_rows": rows[1]}
    record["seconds"] = rows[0] * seconds[0] + rows[1] * seconds[1]
    record |= changes(judged, plain)
    record["cmmd"] = clip_distance(judged["truth"], judged["vectors"])
    return record


def table(records: Sequence[Record]) -> Table:
    """Return a table for a terminal."""
    rows = Table("", "whole rows", "outer rows", "s", "times cheaper", "colour", "pattern", "CLIP-I", "CMMD")
    plain = records[0]
    for record in records:
        measures = [record[name] for name in ("colour", "pattern", "clip_i")]
        changes = [f"{measure['mean']:.3f} ({measure['change']:+.3f})" for measure in measures]
        costs = [str(record["deep_rows"]), str(record["shallow_rows"]), f"{record['seconds']:.2f}"]
        cheaper = f"{plain['seconds'] / record['seconds']:.1f}"
        rows.add_row(record["name"], *costs, cheaper, *changes, f"{record['cmmd']:.2f}")
    return rows


def draw(records: Sequence[Record]) -> Any:
    """Draw quality against seconds, with a panel for each measure."""
    figure, panels = plt.subplots(2, 2, figsize=(11, 7), layout="constrained", sharex=True)
    titles = {
        "colour": "main colour agrees",
        "pattern": "pattern agrees, of patterned garments",
        "clip_i": "CLIP-I",
        "cmmd": "CMMD to the drawn truth (less is better)",
    }
    families = list(dict.fromkeys(record["family"] for record in records))
    for panel, (name, title) in zip(panels.flat, titles.items(), strict=True):
        for family in families:
            own = [record for record in records if record["family"] == family]
            values = [record[name] if name == "cmmd" else record[name]["mean"] for record in own]
            seconds = [record["seconds"] for record in own]
            if family == "preset":
                panel.scatter(seconds, values, marker="*", s=160, color="black", label="presets", zorder=3)
                for record, value in zip(own, values, strict=True):
                    label = record["name"].removeprefix("preset ")
                    panel.annotate(label, (record["seconds"], value), xytext=(6, 6), textcoords="offset points")
            else:
                marks = "o" if "part" in family else "o-"
                panel.plot(seconds, values, marks, label=family, alpha=0.8)
        panel.set_title(title, fontsize=10)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.xaxis.set_minor_locator(NullLocator())
    for panel in panels[1]:
        panel.set_xlabel("seconds of UNet calls an edit (8 rows a call, one CPU thread)")
    panels[0, 0].legend(fontsize=8)
    return figure


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    plot: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
    num_cases: Annotated[int, typer.Option(help="Held-out cases.")] = 200,
    num_processes: Annotated[int, typer.Option(help="Ways judged at once, with a thread each.")] = 2,
) -> None:
    """Judge all ways to denoise, print the figures and write them."""
    ways = _ways()
    seconds = row_seconds()
    # A preset may be the same as another way, and is then judged once.
    different = dict.fromkeys((way.steps, way.shortcuts) for way in ways)
    judged: dict[tuple[int, Shortcuts], Record] = {}
    with ProcessPoolExecutor(num_processes, get_context("spawn")) as pool:
        futures = {pool.submit(judge, *key, num_cases): key for key in different}
        for future in track(as_completed(futures), "judging", len(futures)):
            judged[futures[future]] = future.result()
    plain = judged[next(iter(different))]
    records = [summary(way, judged[way.steps, way.shortcuts], plain, seconds) for way in ways]
    Console(width=140).print(table(records))
    result = {
        "from": provenance(),
        "num_cases": num_cases,
        "row_seconds": {"whole": seconds[0], "outermost": seconds[1], "rows_of_a_call": TIMED_ROWS},
        "settings": records,
    }
    write_result(out, result)
    if plot:
        write_figure(plot, draw(records))


if __name__ == "__main__":
    typer.run(main)
