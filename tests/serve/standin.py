"""Serves the real routes and error table without Ray, in front of stages that answer at once.

The bundle has a human parser, which sees a dress in the upper half of every photo
that is not all black.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn

from fashion_rag.catalogue.table import GarmentRow, check_id
from fashion_rag.errors import InvalidRequest
from fashion_rag.manifest import Manifest
from fashion_rag.person.completion import CategoryChoice, find
from fashion_rag.person.labels import CLASSES
from fashion_rag.person.reading import PhotoReading
from fashion_rag.request import CATEGORIES, EditRequest, Window
from serve.config import IngressSettings, ServeConfig
from serve.edits import EditRunner
from serve.http.admission import Admission
from serve.http.replies import GarmentFound, GarmentUsed
from serve.ingress import Ingress, api
from serve.masks import MaskFinder
from serve.messages import Admitted, Chosen, Decoded, Denoised, Job, Partial, Prepared
from serve.ports import free_port
from serve.proxy.replay import Replay

MODEL = "tiny/model"
IMAGE_SIZE = (64, 48)
CHOICE = CategoryChoice("dresses", 0.75)


class Answer:
    """Stands for what a handle's call returns: it can be awaited, read as a stream, and cancelled."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __await__(self) -> Any:
        return self.answer.__await__()

    def __aiter__(self) -> AsyncGenerator[Any, None]:
        return self.answer  # type: ignore[no-any-return]

    def __anext__(self) -> Awaitable[Any]:
        return self.answer.__anext__()  # type: ignore[no-any-return]

    def cancel(self) -> None:
        pass


class Stage:
    """Stands for a handle. The methods of an object answer its calls."""

    def __init__(self, methods: object) -> None:
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        method: Callable[..., Any] = getattr(self._methods, name)
        return SimpleNamespace(remote=lambda *args: Answer(method(*args)))


class Retriever:
    """Holds garments in memory. Every search finds all garments of its category, whatever the filter."""

    def __init__(self) -> None:
        self.garments = {"red-dress": self._found("red-dress", "dresses", {"size": ["M"]})}

    @staticmethod
    def _found(garment_id: str, category: str, attributes: dict[str, list[str]]) -> GarmentFound:
        return GarmentFound(id=garment_id, category=category, caption="", attributes=attributes, score=None)

    async def ping(self) -> None:
        pass

    async def choose(self, request: EditRequest) -> Chosen:
        return Chosen(CHOICE, {})

    async def search(self, like: object, category: str, k: int, attributes: dict[str, list[str]]) -> list[GarmentFound]:
        if category not in CATEGORIES:
            raise InvalidRequest("category", category, f"must be one of {', '.join(CATEGORIES)}")
        return [garment for garment in self.garments.values() if garment.category == category][:k]

    async def similar(self, garment_id: str, k: int, attributes: dict[str, list[str]]) -> list[GarmentFound]:
        return [garment for garment in self.garments.values() if garment.id != garment_id][:k]

    async def garment(self, garment_id: str) -> GarmentFound:
        if garment_id not in self.garments:
            raise InvalidRequest("garment_ids", garment_id, "must name garments of the catalogue")
        return self.garments[garment_id]

    async def picture_file(self, garment_id: str) -> tuple[str, bytes]:
        await self.garment(garment_id)
        return "a.jpg", b"\xff\xd8\xff"

    async def add(self, row: GarmentRow, jpeg: bytes, words: torch.Tensor) -> GarmentFound:
        attributes = {name: list(values) for name, values in row.attributes.items()}
        self.garments[row.id] = self._found(check_id(row.id), row.category, attributes)
        return self.garments[row.id]

    async def delete(self, garment_id: str) -> None:
        await self.garment(garment_id)
        del self.garments[garment_id]


class Others:
    """Stands for the other stages. Every edit paints what is to be repainted black."""

    async def ping(self) -> None:
        pass

    async def alone_s(self, num_inference_steps: int, guidance_scale: float) -> float:
        return 1.0

    async def invert(self, jpeg: bytes) -> torch.Tensor:
        return torch.zeros(4, 16)

    async def denoise(self, job: Job) -> AsyncGenerator[Any, None]:
        yield Admitted()
        # What stands for shared memory is the request itself.
        request: Any = job.request
        found = job.found
        if found is None:
            reading = await self.read(request) if job.is_read else None
            found = find(request, job.choice or CHOICE, IMAGE_SIZE, reading)
        yield Prepared(found)
        for step in sorted(job.preview_steps):
            yield Partial(step, job.num_inference_steps, np.zeros((8, 6, 3), np.uint8))
        yield Denoised(torch.zeros(1, 4, 8, 6), (GarmentUsed(id="red-dress", score=0.5, caption=""),), {})

    async def read(self, request: EditRequest) -> PhotoReading:
        label_map = np.zeros((512, 384), np.uint8)
        if request.image.any():
            label_map[:256] = CLASSES.index("dress")
        window = Window(0, 0, *request.image.shape[:2])
        return PhotoReading(window, label_map, None, int(label_map.any()))

    async def decode(self, latents: torch.Tensor) -> Decoded:
        return Decoded(np.zeros((64, 48, 3), np.uint8), {"decode": 0.1})


@contextlib.contextmanager
def served(monkeypatch: pytest.MonkeyPatch, has_parser: bool = True) -> Iterator[str]:
    """Serve the routes on a free port while the block runs; yield the URL."""
    # Serve wraps the class, and this is the class itself.
    written = Ingress.func_or_class.__mro__[1]
    ingress: Any = object.__new__(written)
    ingress.manifest = Manifest(MODEL, image_size=IMAGE_SIZE, num_inference_steps=4)
    ingress.keys, ingress.editors = None, SimpleNamespace(check=lambda header: "editor")
    ingress.config = ServeConfig("bundle", "catalogue")
    ingress.admission = Admission(IngressSettings())
    others = Stage(Others())
    ingress.retriever = Stage(Retriever())
    ingress.conditioner = others
    ingress.finds_masks = has_parser
    ingress.edits = EditRunner(others, others, IMAGE_SIZE, has_parser)
    ingress.masks = MaskFinder(others, ingress.retriever, IMAGE_SIZE)
    ingress.stages = {"retriever": ingress.retriever, "denoiser": others, "vae": others}
    ingress.warned = False
    ingress.created = int(time.time())
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: SimpleNamespace(servable_object=ingress))
    monkeypatch.setattr("serve.edits.ray.put", lambda value: value)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(Replay(api), port=port, log_level="error"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server ended at its start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
