"""The claim: the cost of an edit grows with the photo only by reading, pasting and writing it.

One caller sends the same edit of the demo model, whose networks work at one size, with the photo at several sizes in
turn. Photos are sent, and come back, as PNG and as JPEG. The larger ones are the small one, enlarged, so their files
are smaller than a camera's.

    python -m benchmarks.picture_size --out benchmarks/results/picture_size.json
"""

from __future__ import annotations

import io
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.medians import medians
from fashion_rag.bundle import Bundle
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.provenance import provenance, write_result
from serve.bench import drawn, measure, mix

FACTORS = (1, 4, 8, 16, 32)  # times the size of the bundle's pictures
FORMATS = ("png", "jpeg")
WARM_UP_ROUNDS = 1


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    num_rounds: Annotated[int, typer.Option(help="Edits of each size and format.")] = 6,
) -> None:
    """Measure edits of photos of several sizes, print the figures and write them."""
    edit = mix.draw(mix.EditMix(prompts=drawn.drawn_prompts()), [0.0], seed=0)[0]
    photo = drawn.draw_photos([edit], Bundle.open(DEMO_BUNDLE).manifest)[edit.category, edit.person]
    measured: dict[tuple[str, int], list[tuple[float, dict[str, float], int]]] = defaultdict(list)
    with measure.graph(DEMO_BUNDLE, None) as target, httpx.Client(base_url=target.url, timeout=300.0) as client:
        for number in range(WARM_UP_ROUNDS + num_rounds):
            for factor in FACTORS:
                for file_format in FORMATS:
                    files = {
                        "image": enlarged(photo.image, factor, file_format),
                        "mask": enlarged(photo.mask, factor, "png"),
                    }
                    fields = edit.form() | {"output_format": file_format}
                    start = time.perf_counter()
                    reply = client.post("/v1/images/edits", files=files, data=fields).raise_for_status()
                    took_s = time.perf_counter() - start
                    if number >= WARM_UP_ROUNDS:
                        figures = (took_s, reply.json()["timings_ms"], len(reply.content))
                        measured[file_format, factor].append(figures)
    height, width = Bundle.open(DEMO_BUNDLE).manifest.image_size
    sizes = []
    for (file_format, factor), rounds in measured.items():
        sizes.append(
            {
                "format": file_format,
                "size": [height * factor, width * factor],
                "latency_ms": 1000 * median(took_s for took_s, _, _ in rounds),
                "stages_ms": medians([timings for _, timings, _ in rounds]),
                "reply_bytes": median(length for _, _, length in rounds),
            }
        )
    write_result(out, {"from": provenance(), "num_rounds": num_rounds, "sizes": sizes})
    Console().print(table(sizes))


def table(sizes: list[dict[str, Any]]) -> Table:
    """Return a table with a row for each size and format."""
    stages = list(sizes[0]["stages_ms"])
    names = ("format", "height x width", "latency, ms", *stages, "between and around")
    rows = Table(*names, title="One edit of 20 steps")
    for record in sizes:
        times = [record["stages_ms"][stage] for stage in stages]
        milliseconds = (record["latency_ms"], *times, record["latency_ms"] - sum(times))
        rows.add_row(
            record["format"], "x".join(map(str, record["size"])), *(f"{number:.0f}" for number in milliseconds)
        )
    return rows


def enlarged(content: bytes, factor: int, file_format: str) -> bytes:
    """Return a picture file, `factor` times as high and as wide, in another format."""
    picture = Image.open(io.BytesIO(content))
    size = (picture.width * factor, picture.height * factor)
    saved = io.BytesIO()
    resampling = Image.Resampling.BICUBIC if file_format == "jpeg" else Image.Resampling.NEAREST
    picture.resize(size, resampling).save(saved, file_format)
    return saved.getvalue()


if __name__ == "__main__":
    typer.run(main)
