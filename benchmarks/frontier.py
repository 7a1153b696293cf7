"""The claim: edits can be three times cheaper, and more, at the same quality. What each shortcut costs, and loses.

The 200 held-out cases of `fashion-rag demo evaluate`, one garment each, the same seeds for all: the plain 50 steps of
DDIM, other solvers and numbers of steps, guidance in a part of the steps, deep features kept for several steps, and the
server's presets. Agreement is read from pixels (fashion_rag.demo.world.measure); CLIP-I and CMMD are by the demo's own
towers, so not independent. The demo world is a small world: what holds here may not hold for photos.
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

from export.runtime import Runtime
from fashion_rag.bundle import Bundle
from fashion_rag.demo.model.evaluate import Case, make_cases, paint
from fashion_rag.demo.world.agreement import read_edit
from fashion_rag.demo.world.draw import render_garment
from fashion_rag.denoising.plan import plan
from fashion_rag.denoising.runner import Inputs
from fashion_rag.evaluation.metrics import clip_distance
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.models.unet import unet_input
from fashion_rag.pipeline import Pipeline
from fashion_rag.provenance import provenance, write_figure, write_result
from fashion_rag.request import PLAIN, Shortcuts, Solver
from serve.config import IngressSettings

SEED = 7
# Rows of the calls that are timed, and how often.
TIMED_ROWS, NUM_TIMED = 8, 15
RESAMPLES = 2000
Record = dict[str, Any]


@dataclass(frozen=True)
class DenoisingWay:
    """One way to denoise. family: what it is drawn with."""

    name: str
    family: str
    steps: int
    shortcuts: Shortcuts = PLAIN


def _settings() -> list[DenoisingWay]:
    ddim = [DenoisingWay(f"ddim {steps}", "DDIM", steps) for steps in (50, 20, 10, 7, 5)]
    others = [
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
    ]
    # The plain one comes first: the others are compared with it.
    return ddim + others + guided + kept + presets


@cache
def _loaded() -> tuple[Pipeline, Any]:
    torch.set_num_threads(1)
    return Runtime(str(DEMO_BUNDLE)).open().load_pipeline(), Bundle.open(DEMO_BUNDLE).load_retrieval_encoder()


def judge(steps: int, shortcuts: Shortcuts, num_cases: int) -> Record:
    """What becomes of all cases: per case whether colour and pattern agree, CLIP-I, and its picture's vector."""
    pipeline, encoder = _loaded()
    manifest = pipeline.manifest
    cases = [
        replace(case, request=replace(case.request, shortcuts=shortcuts))
        for case in make_cases(num_cases, manifest.image_size, SEED, steps, manifest.guidance_scale)
    ]
    pictures = paint(pipeline, cases, [[case.target] for case in cases], lambda: None)
    found = [
        read_edit(picture, case.request.mask, case.person, case.target)
        for picture, case in zip(pictures, cases, strict=True)
    ]
    shop = [Image.fromarray(render_garment(case.target, manifest.image_size)) for case in cases]
    likeness = (encoder.encode_images([one.cut_out for one in found]) * encoder.encode_images(shop)).sum(axis=1)
    return {
        "colour": [one.has_colour for one in found],
        "pattern": [one.reading.pattern == case.target.pattern for one, case in zip(found, cases, strict=True)],
        "clip_i": likeness.tolist(),
        "vectors": _vectors(encoder, pictures),
        "truth": _vectors(encoder, [case.truth for case in cases]),
        "patterned": _patterned(cases),
    }


def _patterned(cases: Sequence[Case]) -> list[bool]:
    return [case.target.pattern != "plain" for case in cases]


def _vectors(encoder: Any, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = encoder.encode_images([Image.fromarray(one) for one in pictures]).astype(np.float64)
    return found


def row_seconds() -> tuple[float, float]:
    """Seconds of a row of the whole UNet, and of one of its outermost layers, in full calls that take turns."""
    pipeline, _ = _loaded()
    bundle = Bundle.open(DEMO_BUNDLE)
    blank = Inputs.blank(bundle.latent_size, bundle.text_width)
    sample = unet_input(blank.latents, blank.mask, blank.masked_image_latents, blank.pose_map)
    t = torch.zeros(TIMED_ROWS, dtype=torch.int64)
    inputs = (sample.repeat(TIMED_ROWS, 1, 1, 1), t, blank.prompt_embeds.repeat(TIMED_ROWS, 1, 1))
    unet: Any = pipeline.unet
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for _ in range(NUM_TIMED):
            started = time.perf_counter()
            _, features = unet.deep(*inputs)
            seconds[0].append(time.perf_counter() - started)
            started = time.perf_counter()
            unet.shallow(*inputs, features)
            seconds[1].append(time.perf_counter() - started)
    deep, shallow = (statistics.median(each) / TIMED_ROWS for each in seconds)
    return deep, shallow


def summary(setting: DenoisingWay, judged: Record, plain: Record, seconds: tuple[float, float]) -> Record:
    """Costs, means, and how far from the plain setting, with 95 % intervals over the cases."""
    pipeline, _ = _loaded()
    steps = plan(pipeline.sampler, setting.steps, pipeline.manifest.guidance_scale, setting.shortcuts)
    rows = [sum(kind) for kind in zip(*(step.rows for step in steps), strict=True)]
    patterned = np.array(judged["patterned"])
    record: Record = {"name": setting.name, "family": setting.family, "deep_rows": rows[0], "shallow_rows": rows[1]}
    record["seconds"] = rows[0] * seconds[0] + rows[1] * seconds[1]
    rng = np.random.default_rng(SEED)
    for name in ("colour", "pattern", "clip_i"):
        # Of plain garments the pattern says little.
        chosen = patterned if name == "pattern" else np.ones_like(patterned)
        own, theirs = (np.array(each[name], dtype=float)[chosen] for each in (judged, plain))
        differences = own - theirs
        means = rng.choice(differences, (RESAMPLES, len(differences))).mean(axis=1)
        interval = [float(each) for each in np.percentile(means, [2.5, 97.5])]
        record[name] = {"mean": float(own.mean()), "change": float(differences.mean()), "interval": interval}
    record["cmmd"] = clip_distance(judged["truth"], judged["vectors"])
    return record


def table(records: Sequence[Record]) -> Table:
    """For a terminal."""
    found = Table("", "whole rows", "outer rows", "s", "times cheaper", "colour", "pattern", "CLIP-I", "CMMD")
    plain = records[0]
    for one in records:
        changes = [f"{one[name]['mean']:.3f} ({one[name]['change']:+.3f})" for name in ("colour", "pattern", "clip_i")]
        costs = [str(one["deep_rows"]), str(one["shallow_rows"]), f"{one['seconds']:.2f}"]
        found.add_row(one["name"], *costs, f"{plain['seconds'] / one['seconds']:.1f}", *changes, f"{one['cmmd']:.2f}")
    return found


def draw(records: Sequence[Record]) -> Any:
    """Quality against seconds, a panel for each measure."""
    figure, panels = plt.subplots(2, 2, figsize=(11, 7), layout="constrained", sharex=True)
    titles = {
        "colour": "main colour agrees",
        "pattern": "pattern agrees, of patterned garments",
        "clip_i": "CLIP-I",
        "cmmd": "CMMD to the drawn truth (less is better)",
    }
    families = list(dict.fromkeys(one["family"] for one in records))
    for panel, (name, title) in zip(panels.flat, titles.items(), strict=True):
        for family in families:
            own = [one for one in records if one["family"] == family]
            values = [one[name] if name == "cmmd" else one[name]["mean"] for one in own]
            seconds = [one["seconds"] for one in own]
            if family == "preset":
                panel.scatter(seconds, values, marker="*", s=160, color="black", label="presets", zorder=3)
                for one, value in zip(own, values, strict=True):
                    label = one["name"].removeprefix("preset ")
                    panel.annotate(label, (one["seconds"], value), xytext=(6, 6), textcoords="offset points")
            else:
                panel.plot(seconds, values, "o-" if "part" not in family else "o", label=family, alpha=0.8)
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
    num_processes: Annotated[int, typer.Option(help="Settings judged at once, a thread each.")] = 2,
) -> None:
    """Judge all settings, print, write."""
    settings = _settings()
    seconds = row_seconds()
    # Presets may be among the others.
    ways = dict.fromkeys((setting.steps, setting.shortcuts) for setting in settings)
    judged: dict[tuple[int, Shortcuts], Record] = {}
    with ProcessPoolExecutor(num_processes, get_context("spawn")) as pool:
        futures = {pool.submit(judge, *way, num_cases): way for way in ways}
        for future in track(as_completed(futures), "judging", len(futures)):
            judged[futures[future]] = future.result()
    plain = judged[next(iter(ways))]
    records = [summary(one, judged[one.steps, one.shortcuts], plain, seconds) for one in settings]
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
