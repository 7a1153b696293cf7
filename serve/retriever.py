"""The deployment that finds garments. Only it opens the catalogue: the pictures travel in what it returns."""

import asyncio
import time
from pathlib import Path

import torch
from ray import serve as ray_serve

from fashion_rag import pipeline
from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.index import Catalogue
from fashion_rag.request import EditRequest
from serve.schemas import GarmentUsed
from serve.stages import Retrieved


@ray_serve.deployment
class Retriever:
    """Prompts to garments."""

    def __init__(self, bundle: str, catalogue: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self.catalogue = Catalogue.open(Path(catalogue), Bundle.open(Path(bundle)).load_retrieval_encoder())

    async def ping(self) -> None:
        """Returns when the replica answers."""

    async def retrieve(self, request: EditRequest) -> Retrieved:
        """The garments that the request names, or else the nearest to its prompt.

        Raises InvalidRequest for an id that is not in the catalogue.
        """
        return await asyncio.to_thread(self._retrieve, request)

    def _retrieve(self, request: EditRequest) -> Retrieved:
        started = time.perf_counter()
        matches = pipeline.retrieve(self.catalogue, request)
        return Retrieved(
            garments=tuple(
                GarmentUsed(id=match.garment.id, score=match.score, caption=match.garment.caption) for match in matches
            ),
            pictures=[match.garment.image() for match in matches],
            timings_s={"retrieve": time.perf_counter() - started},
        )

    async def picture(self, garment_id: str) -> tuple[str, bytes]:
        """Name and content of the file of a garment's picture; raises InvalidRequest for an unknown id."""
        path = self.catalogue.get(garment_id).image_path
        return path.name, await asyncio.to_thread(path.read_bytes)
