"""The server that one would write with Ray Serve: `@serve.batch` around the whole edit of `eager.py`, one deployment.

    python -m benchmarks.against.baselines.batched --catalogue out/world/catalogue --port 8002

The edits of a batch that have the same steps and guidance go through one loop together, and each further group after
them; all are answered once the last is done, as `@serve.batch` does.
"""

import asyncio
import logging
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import ray
import torch
import typer
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from ray import serve as ray_serve

from benchmarks.against.baselines.eager import (
    HOST,
    BundleOption,
    CatalogueOption,
    Editor,
    PortOption,
    read_requests,
    reply,
)
from fashion_rag.manifest import DEMO_BUNDLE
from fashion_rag.request import EditRequest
from serve.edits import EditedPhoto
from serve.http.errors import add_handlers

MAX_BATCH = 4
BATCH_WAIT_S = 0.05
# A replica takes so many calls that the next batch is there when one ends, and nobody is refused.
MAX_CALLS = 1000

RAY_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}

api = FastAPI()
add_handlers(api)


def edit_groups(
    editor: Callable[[Sequence[EditRequest]], list[EditedPhoto]], batch: Sequence[EditRequest]
) -> list[EditedPhoto]:
    """Return the edited photos of a batch, in its order. Raises InvalidRequest if one of them cannot be edited."""
    groups = defaultdict(list)
    for place, request in enumerate(batch):
        groups[request.num_inference_steps, request.guidance_scale].append(place)
    edited = dict[int, EditedPhoto]()
    for places in groups.values():
        edited |= zip(places, editor([batch[place] for place in places]), strict=True)
    return [edited[place] for place in range(len(batch))]


@ray_serve.deployment(max_ongoing_requests=MAX_CALLS)
@ray_serve.ingress(api)
class Batched:
    """The whole server: one replica."""

    def __init__(self, bundle: Path, catalogue: str) -> None:
        # Ray would leave PyTorch one thread.
        torch.set_num_threads(os.cpu_count() or 1)
        self.editor = Editor.load(bundle, catalogue)

    @api.post("/v1/images/edits")
    async def edit(self, http: Request) -> JSONResponse:
        """Return the reply to a form."""
        form, requests = await read_requests(http, self.editor.manifest)
        edited = await asyncio.gather(*map(self._edit, requests))
        return await reply(form, requests, edited)

    @ray_serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def _edit(self, batch: list[EditRequest]) -> list[EditedPhoto]:
        return await asyncio.to_thread(edit_groups, self.editor, batch)


def main(catalogue: CatalogueOption, bundle: BundleOption = DEMO_BUNDLE, port: PortOption = 8002) -> None:
    """Answer edits in batches, until Ctrl-C."""
    os.environ.update(RAY_SETTINGS)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        ray_serve.start(http_options={"host": HOST, "port": port})
        ray_serve.run(Batched.bind(bundle.resolve(), catalogue))
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        ray.shutdown()


if __name__ == "__main__":
    typer.run(main)
