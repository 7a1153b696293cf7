"""The claim: a build encodes new garments at the encoders' own speed, and a text finds its garments in milliseconds.

Drawn garments become a catalogue of the demo bundle: from nothing, by one process and by Ray Data workers; again with
nothing new; and again with one garment in ten changed. Then every caption is searched for, encoding included.

    python -m benchmarks.ingest --out benchmarks/results/ingest.json
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import ray
import torch
import typer
from rich.console import Console
from rich.table import Table

from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.build import Built
from fashion_rag.catalogue.garments import Garment, garments_in
from fashion_rag.catalogue.on_ray import on_ray
from fashion_rag.demo.world.layout import write_dresscode
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.provenance import provenance, write_result
from fashion_rag.request import CATEGORIES


def measure(
    bundle_path: Path, num_garments: int, num_workers: Sequence[int], say: Callable[[str], None]
) -> dict[str, Any]:
    """Return the result as plain values for JSON.

    num_workers: Ray workers, one build for each number. say: is told of progress.
    """
    bundle = Bundle.open(bundle_path.resolve())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        say("drawing garments")
        write_dresscode(folder / "world", num_garments // len(CATEGORIES), seed=0, size=bundle.manifest.image_size)
        garments = garments_in(folder / "world")
        builds: dict[str, dict[str, float]] = {}

        def build(name: str, root: Path, chosen: Sequence[Garment], **options: Any) -> None:
            say(f"building: {name}")
            started = time.perf_counter()
            built: Built = bundle.build_catalogue(root, chosen, work=folder / "work", **options)
            seconds = time.perf_counter() - started
            builds[name] = {"s": seconds, "num_encoded": built.num_encoded, "per_s": built.num_encoded / seconds}

        build("new, one process", folder / "catalogue", garments)
        build("nothing new", folder / "catalogue", garments)
        # A garment has changed if it has the picture of another.
        changed = list(garments)
        for number in range(9, len(garments), 10):
            changed[number] = replace(garments[number], picture=garments[number - 1].picture)
        build("one in ten changed", folder / "catalogue", changed)
        for count in num_workers:
            ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            ray.data.DataContext.get_current().enable_progress_bars = False
            try:
                build(
                    f"new, {count} Ray workers",
                    folder / f"catalogue-{count}",
                    garments,
                    compute=partial(on_ray, num_workers=count),
                )
            finally:
                ray.shutdown()
        say("searching")
        catalogue = bundle.open_catalogue(folder / "catalogue")
        seconds = []
        for garment in garments:
            started = time.perf_counter()
            catalogue.search(garment.caption, garment.category, 10)
            seconds.append(time.perf_counter() - started)
    return {
        "from": provenance(),
        "bundle": bundle.manifest.name,
        "num_garments": len(garments),
        "builds": builds,
        "text_to_result_ms": {f"p{share}": 1000 * float(np.percentile(seconds, share)) for share in (50, 99)},
    }


def main(
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    bundle: Annotated[Path, typer.Option(help="Model bundle.")] = DEMO_BUNDLE,
    garments: Annotated[int, typer.Option(help="Number of garments.")] = 1500,
    workers: Annotated[list[int] | None, typer.Option(help="Ray workers; repeatable.", show_default="1 and 2")] = None,
) -> None:
    """Measure building a catalogue, and searching it by text."""
    torch.set_num_threads(1)
    # Ray's workers import the project as this process does.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    console = Console()
    with console.status("") as status:
        result = measure(bundle, garments, workers or (1, 2), status.update)
    table = Table("build", "s", "encoded", "a second", title=f"{result['num_garments']} garments, {result['bundle']}")
    for name, build in result["builds"].items():
        table.add_row(name, f"{build['s']:.1f}", f"{build['num_encoded']:.0f}", f"{build['per_s']:.0f}")
    console.print(table)
    console.print("from text to ten garments, in ms:", result["text_to_result_ms"])
    if out:
        write_result(out, result)


if __name__ == "__main__":
    typer.run(main)
