"""Where the time goes: what the processes of a loaded graph do, by samples of their stacks.

The demo model is served here and gets more edits than it can do. Meanwhile py-spy, which comes with Ray, looks at each
replica and the proxy 100 times a second, and every sample in which a thread was at work counts for what it was at. The
shares are of one core. The stages of a single edit, from the replies, are beside them.

    python benchmarks/where.py --out benchmarks/results/where.json
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import matplotlib.pyplot as plt
import ray
import typer
from ray.util.state import list_actors
from rich.console import Console
from rich.table import Table

from fashion_rag.bundle import Bundle
from fashion_rag.config import DEMO_BUNDLE
from fashion_rag.provenance import provenance, write_result
from serve.bench import drawn, measure, mix

RATE_HZ = 100
NUM_CALLERS_WORTH = 8.0  # edits a second; far above what two cores do
# The first of these that a stack has, from the innermost frame outwards, is what it is at.
ACTIVITIES = {
    "networks": ("onnx_module", "compiled_module", "trt_module"),
    "sampler": ("denoising/sampler", "denoising/runner", "denoising/guidance"),
    "scheduling": ("denoising/scheduler", "denoising/engine", "denoising/state"),
    "previews": ("denoising/preview",),
    "pictures in and out": ("PIL/", "data/image", "data/masks", "data/pose", "serve/uploads", "serve/schemas"),
    "retrieval": ("catalogue/", "open_clip/"),
    "metrics": ("ray/serve/metrics", "ray/util/metrics", "opentelemetry"),
    "our own, else": (
        "fashion_rag/",
        "export/",
        "/serve/vae",
        "/serve/denoiser",
        "/serve/ingress",
        "/serve/conditioner",
    ),
    "Ray": ("ray/",),
    "HTTP": ("uvicorn/", "starlette/", "fastapi/", "multipart/", "h11/", "httptools/"),
}
ELSE = "else"


def main(
    out: Annotated[Path, typer.Option(help="Where to write the figures; the plot beside.")],
    seconds: Annotated[int, typer.Option(help="How long to look.")] = 30,
) -> None:
    """Measure, print, write."""
    console = Console()
    wanted = mix.Mix(prompts=drawn.drawn_prompts(), steps=[20], num_garments=[1])
    alone = [edit for edit in mix.draw(wanted, [10.0 * number for number in range(4)], seed=0)]
    many = mix.draw(wanted, mix.poisson(NUM_CALLERS_WORTH, seconds + 20, seed=1), seed=1)
    photos = drawn.draw_photos([*alone, *many], Bundle.open(DEMO_BUNDLE).manifest, lambda: None)
    with measure.graph(DEMO_BUNDLE, None) as target:
        measure.warm_up(target, alone[:2], photos)
        stages = [outcome.reply.timings_ms for outcome in target.send(alone, photos)]
        load = threading.Thread(target=target.send, args=(many, photos))
        load.start()
        threading.Event().wait(10)
        samples = {name: activities(stacks) for name, stacks in look(seconds).items()}
        load.join()
    shares = {
        name: {what: count / (seconds * RATE_HZ) for what, count in counts.items()} for name, counts in samples.items()
    }
    result = {
        "from": provenance(),
        "single_edit_ms": {stage: median(times[stage] for times in stages) for stage in stages[0]},
        "share_of_a_core": shares,
    }
    console.print(table(shares))
    console.print(result["single_edit_ms"])
    write_result(out, result)
    draw(shares).savefig(out.with_suffix(".png"), dpi=120)


def look(seconds: int) -> dict[str, list[tuple[tuple[str, ...], int]]]:
    """The stacks seen in each process of the graph, outermost frame first, and how often each was seen."""
    pids = {
        actor.class_name.rpartition(":")[2].removesuffix("Actor"): actor.pid
        for actor in list_actors(f"http://{ray._private.worker.get_dashboard_url()}", filters=[("state", "=", "ALIVE")])
        if actor.class_name.startswith("ServeReplica:") or actor.class_name == "ProxyActor"
    }
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for name, pid in pids.items():
            path = Path(folder) / name
            options = ["--format", "raw", "--full-filenames", "--threads", "--rate", str(RATE_HZ)]
            command = [
                "py-spy",
                "record",
                "--pid",
                str(pid),
                "--duration",
                str(seconds),
                "--output",
                str(path),
                *options,
            ]
            running.append(
                (name, path, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            )
        found = {}
        for name, path, process in running:
            process.wait()
            found[name] = [parsed(line) for line in path.read_text().splitlines()]
    return found


def parsed(line: str) -> tuple[tuple[str, ...], int]:
    """A line of folded stacks: frames with semicolons between them, a space, and how often they were seen."""
    frames, _, number = line.rpartition(" ")
    return tuple(frames.split(";")), int(number)


def activities(stacks: Sequence[tuple[Sequence[str], int]]) -> Counter[str]:
    """How often a process was seen at each of the ACTIVITIES."""
    counts: Counter[str] = Counter()
    for frames, number in stacks:
        counts[activity(frames)] += number
    return counts


def activity(frames: Sequence[str]) -> str:
    """What a stack is at."""
    for frame in reversed(frames):
        for what, places in ACTIVITIES.items():
            if any(place in frame for place in places):
                return what
    return ELSE


def table(shares: Mapping[str, Mapping[str, float]]) -> Table:
    """A row an activity, a column a process."""
    found = Table("share of a core", *shares, title="A loaded graph")
    for what in (*ACTIVITIES, ELSE):
        if any(what in share for share in shares.values()):
            found.add_row(what, *(f"{share.get(what, 0):.1%}" for share in shares.values()))
    return found


def draw(shares: Mapping[str, Mapping[str, float]]) -> Any:
    """A bar a process."""
    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    left = dict.fromkeys(shares, 0.0)
    for what in (*ACTIVITIES, ELSE):
        widths = [100 * share.get(what, 0.0) for share in shares.values()]
        if any(widths):
            axes.barh(list(shares), widths, left=list(left.values()), label=what)
            left = {name: left[name] + width for name, width in zip(shares, widths, strict=True)}
    axes.set_xlabel("% of a core")
    axes.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    typer.run(main)
