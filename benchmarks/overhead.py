"""The claim: HTTP and the graph of replicas add little to the time of an edit.

The same edit of the demo model is made in turn by the graph, over HTTP, and by the same stages called one after the
other in this process: picture in, retrieval, pseudo-words from a cache as in the graph, prompt, encoding, the engine's
steps, decoding, PNG out. Each has one thread. The overhead is the difference of the two times of a round. The graph
runs two stages side by side, which counts in its favour.

    python -m benchmarks.overhead --out benchmarks/results/overhead.json
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any, NamedTuple

import httpx
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.medians import medians
from fashion_rag import pipeline
from fashion_rag.catalogue.retrieve import retrieve
from fashion_rag.data.finish import finish
from fashion_rag.demo.world.catalogue import ensure_demo_world
from fashion_rag.denoising.engine import Engine, Finished
from fashion_rag.denoising.runner import Edit
from fashion_rag.denoising.scheduler import Limits
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.pipeline import Pipeline
from fashion_rag.provenance import provenance, write_result
from serve import app, showcase
from serve.config import IngressSettings
from serve.http.edit_requests import edit_requests
from serve.http.forms import EditForm
from serve.http.replies import edit_reply
from serve.ports import free_port

WARM_UP_ROUNDS = 3


class Round(NamedTuple):
    """The seconds of an edit, served and bare, and the milliseconds that the served one spent in each stage."""

    served_s: float
    bare_s: float
    stages_ms: dict[str, float]


@dataclass(frozen=True)
class Bare:
    """The stages of an edit without HTTP and replicas. words: the pseudo-words of garments, by id."""

    parts: Pipeline
    engine: Engine
    words: dict[str, Tensor]

    @torch.inference_mode()
    def edit(self, form: EditForm) -> dict[str, Any]:
        """Return the reply to a form, as the server would send it."""
        parts = self.parts
        (request,) = edit_requests(form, parts.manifest, IngressSettings(), "bare", time.time())
        ((request, found),) = parts.complete([request])
        (match,) = retrieve(parts.catalogue, request)
        if match.garment.id not in self.words:
            self.words[match.garment.id] = pipeline.invert(parts.garment_encoder, [match.garment.image()])
        (conditioning,) = pipeline.condition(parts.prompt_encoder, [request], [self.words[match.garment.id]])
        ((latents, person),) = pipeline.encode(parts.vae, [request], parts.manifest)
        height, width = latents.shape[-2:]
        edit = Edit("bare", (height, width), request.num_inference_steps, request.guidance_scale, parts.sampler)
        self.engine.add(edit, pipeline.denoising_inputs(latents, person, conditioning))
        while not isinstance(event := self.engine.step()[-1], Finished):
            pass
        picture = finish(request, pipeline.decode(parts.vae, event.latents)[0])
        reply = edit_reply(form, [picture], [request.seed], [], found, {})
        return reply.model_dump()


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    num_rounds: Annotated[int, typer.Option(help="Edits by each of the two.")] = 40,
    bundle: Annotated[Path, typer.Option(help="Model bundle.")] = DEMO_BUNDLE,
) -> None:
    """Measure what HTTP and the graph add to an edit."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        catalogue = ensure_demo_world(world, bundle)
        case = showcase.read_cases(world, bundle)[0]
        config = app.local_config(bundle, catalogue)
        parts = config.runtime.open().load_pipeline(catalogue)
        bare = Bare(parts, Engine(parts.unet, Limits()), {})
        port = free_port()
        app.start(config, "127.0.0.1", port)
        try:
            rounds = _measure(bare, case, port, num_rounds)
        finally:
            app.stop()
    overheads = [times.served_s - times.bare_s for times in rounds]
    steps = parts.manifest.num_inference_steps
    result: dict[str, Any] = {
        "from": provenance(),
        "num_rounds": num_rounds,
        "num_steps": steps,
        "bare_ms": _spread([times.bare_s for times in rounds]),
        "served_ms": _spread([times.served_s for times in rounds]),
        "overhead_ms": _spread(overheads),
        "overhead_share": median(overheads) / median(times.bare_s for times in rounds),
        "served_stages_ms": medians([times.stages_ms for times in rounds]),
    }
    write_result(out, result)
    table = Table("ms", "p25", "median", "p75", title=f"One edit of {steps} steps, {num_rounds} rounds")
    for name in ("bare_ms", "served_ms", "overhead_ms"):
        table.add_row(name.removesuffix("_ms"), *(f"{result[name][key]:.1f}" for key in ("p25", "median", "p75")))
    Console().print(table)
    Console().print(f"overhead: {result['overhead_share']:.1%} of the bare edit")
    Console().print("served, ms in each stage:", result["served_stages_ms"])


def _measure(bare: Bare, case: showcase.SheetCase, port: int, num_rounds: int) -> list[Round]:
    files = {"image": showcase.png(case.person), "mask": showcase.png(case.mask)}
    keypoints = json.dumps(case.keypoints)
    fields: dict[str, Any] = {"category": case.category, "prompt": case.prompt, "keypoints": keypoints, "seed": 1}
    form = EditForm(image=files["image"], mask=files["mask"], **fields)
    rounds = []
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300.0) as client:
        for _ in range(WARM_UP_ROUNDS + num_rounds):
            started = time.perf_counter()
            served = client.post("/v1/images/edits", files=files, data=fields).raise_for_status().json()
            between = time.perf_counter()
            alone = bare.edit(form)
            ended = time.perf_counter()
            # The pictures are the same, so both have done the same work.
            assert served["data"] == alone["data"]
            rounds.append(Round(between - started, ended - between, served["timings_ms"]))
    return rounds[WARM_UP_ROUNDS:]


def _spread(seconds: list[float]) -> dict[str, float]:
    low, middle, high = quantiles(seconds, n=4)
    return {"p25": 1000 * low, "median": 1000 * middle, "p75": 1000 * high}


if __name__ == "__main__":
    typer.run(main)
