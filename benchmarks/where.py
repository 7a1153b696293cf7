"""Where the time goes: what the processes of a loaded graph do with their time on the processor.

The demo model is served here and gets more edits than it can do. Meanwhile py-spy, which comes with Ray, looks 100
times a second at what each replica and the proxy do in Python; the rest of the processor time that the kernel counts is
spent outside Python, in networks and codecs. The shares are of one core. The result also has the stages of a single
edit, from the replies.

    python -m benchmarks.where --out benchmarks/results/where.json
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.medians import medians
from fashion_rag.bundle import Bundle
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.provenance import provenance, write_figure, write_result
from serve.bench import drawn, measure, mix

RATE_HZ = 100
EDITS_PER_S = 8.0  # far more than two cores do
FILLING_S = 10.0  # until the queue is full
# A stack belongs to the first of these that one of its frames has, from the innermost frame outwards.
ACTIVITIES = {
    "sampler": ("denoising/sampler", "denoising/runner", "denoising/guidance"),
    "scheduling": ("denoising/scheduler", "denoising/engine", "denoising/state"),
    "previews": ("denoising/preview",),
    "pictures in and out": (
        *("PIL/", "data/image", "data/masks", "data/pose"),
        *("serve/http/multipart", "serve/http/edit_requests", "serve/http/forms", "serve/http/replies"),
    ),
    "retrieval": ("catalogue/", "open_clip/"),
    "metrics": ("ray/serve/metrics", "ray/util/metrics", "opentelemetry"),
    "our own, else": (
        "fashion_rag/",
        "export/",
        "/serve/vae",
        "/serve/parser",
        "/serve/denoiser",
        "/serve/ingress",
        "/serve/conditioner",
    ),
    "Ray": ("ray/",),
    "HTTP": ("uvicorn/", "starlette/", "fastapi/", "multipart/", "h11/", "httptools/"),
}
ELSE, BESIDE = "else in Python", "beside Python: networks, codecs"
SILENT: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
PROCESSES = ("Ingress", "Denoiser", "Conditioner", "Retriever", "Parser", "VAE", "Stages", "Proxy")


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write; the plot goes beside it.")],
    seconds: Annotated[int, typer.Option(help="How long to look.")] = 30,
) -> None:
    """Measure where a loaded graph spends its time, print it and write it."""
    console = Console()
    wanted = mix.EditMix(prompts=drawn.drawn_prompts(), steps=[20], num_garments=[1])
    alone = mix.draw(wanted, [10.0 * number for number in range(4)], seed=0)
    many = mix.draw(wanted, mix.poisson(EDITS_PER_S, seconds + 2 * FILLING_S, seed=1), seed=1)
    photos = drawn.draw_photos([*alone, *many], Bundle.open(DEMO_BUNDLE).manifest, lambda: None)
    with measure.graph(DEMO_BUNDLE, None) as target:
        measure.warm_up(target, alone[:2], photos)
        stages = [outcome.reply.timings_ms for outcome in target.send(alone, photos)]
        load = threading.Thread(target=target.send, args=(many, photos))
        load.start()
        time.sleep(FILLING_S)
        shares = look(seconds)
        load.join()
    result = {
        "from": provenance(),
        "single_edit_ms": medians(stages),
        "share_of_a_core": shares,
    }
    console.print(table(shares))
    console.print(result["single_edit_ms"])
    write_result(out, result)
    write_figure(out.with_suffix(".png"), draw(shares), dpi=120)


def look(seconds: int) -> dict[str, dict[str, float]]:
    """Return for each process of the graph which share of a core it used for which activity.

    seconds: how long the processes are watched.
    """
    # A replica's title is ray::ServeReplica:fashion-rag:Denoiser, with .method after it while it runs one.
    names = {pid: re.match(r"ray::(?:ServeReplica:fashion-rag:)?(Proxy|\w+)", title) for pid, title in descendants()}
    pids = {name[1]: pid for pid, name in names.items() if name and name[1] in PROCESSES}
    before, start = {name: cpu_s(pid) for name, pid in pids.items()}, time.monotonic()
    shares = {}
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "--format",
            "raw",
            "--full-filenames",
            "--gil",
            "--nonblocking",
            "--rate",
            str(RATE_HZ),
            "--duration",
            str(seconds),
        ]
        running = [
            subprocess.Popen(
                ["py-spy", "record", "--pid", str(pid), "--output", f"{folder}/{name}", *options], **SILENT
            )
            for name, pid in pids.items()
        ]
        for process in running:
            process.wait()
        after, took_s = {name: cpu_s(pid) for name, pid in pids.items()}, time.monotonic() - start
        for name in pids:
            stacks = [parsed(line) for line in Path(folder, name).read_text().splitlines()]
            share = {name: number / (seconds * RATE_HZ) for name, number in activities(stacks).items()}
            used = (after[name] - before[name]) / took_s
            shares[name] = {BESIDE: max(0.0, used - sum(share.values()))} | share
    return shares


def cpu_s(pid: int) -> float:
    """Return the seconds on the processor that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descendants() -> list[tuple[int, str]]:
    """Return the processes that this one has started, directly or not, as pairs of id and title."""
    run = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    lines = [line.split(maxsplit=2) for line in run.stdout.splitlines()]
    processes = [(int(pid), int(parent), title) for pid, parent, title in lines]
    ours = {os.getpid()}
    started: list[tuple[int, str]] = []
    # Every round finds the children of the processes that are known so far.
    while children := [(pid, title) for pid, parent, title in processes if parent in ours and pid not in ours]:
        ours |= {pid for pid, _ in children}
        started += children
    return started


def parsed(line: str) -> tuple[tuple[str, ...], int]:
    """Return the frames of a line of folded stacks, and how often they were seen.

    In the line, semicolons separate the frames, and the number follows after a space.
    """
    frames, _, number = line.rpartition(" ")
    return tuple(frames.split(";")), int(number)


def activities(stacks: Sequence[tuple[Sequence[str], int]]) -> Counter[str]:
    """Return how often a process was seen at each of the ACTIVITIES."""
    counts: Counter[str] = Counter()
    for frames, number in stacks:
        counts[activity(frames)] += number
    return counts


def activity(frames: Sequence[str]) -> str:
    """Return the activity of a stack."""
    for frame in reversed(frames):
        for name, places in ACTIVITIES.items():
            if any(place in frame for place in places):
                return name
    return ELSE


def table(shares: Mapping[str, Mapping[str, float]]) -> Table:
    """Return a table with a row for each activity and a column for each process."""
    rows = Table("share of a core", *shares, title="A loaded graph")
    for name in (BESIDE, *ACTIVITIES, ELSE):
        if any(name in share for share in shares.values()):
            rows.add_row(name, *(f"{share.get(name, 0):.1%}" for share in shares.values()))
    return rows


def draw(shares: Mapping[str, Mapping[str, float]]) -> Any:
    """Draw a bar for each process."""
    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    left = dict.fromkeys(shares, 0.0)
    for name in (BESIDE, *ACTIVITIES, ELSE):
        widths = [100 * share.get(name, 0.0) for share in shares.values()]
        if any(widths):
            axes.barh(list(shares), widths, left=list(left.values()), label=name)
            left = {process: left[process] + width for process, width in zip(shares, widths, strict=True)}
    axes.set_xlabel("% of a core")
    axes.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    typer.run(main)
