"""The deployment that finds garments. Only it opens the catalogue: the pictures travel in what it returns."""

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray import serve as ray_serve

from export.backend import Runtime
from fashion_rag import pipeline
from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.index import Catalogue, Match
from fashion_rag.request import EditRequest
from serve import metrics
from serve.batching import checked, each, set_max_batch
from serve.config import BatchSettings
from serve.schemas import GarmentFound, GarmentUsed
from serve.stages import Pictures, Retrieved


@ray_serve.deployment
class Retriever:
    """Prompts to garments, several in one call of the text tower."""

    def __init__(self, runtime: Runtime, catalogue: str) -> None:
        torch.set_num_threads(runtime.num_threads)
        encoder = Bundle.open(Path(runtime.bundle)).load_retrieval_encoder()
        encoder.encode_texts(["warm up"])
        self.catalogue = Catalogue.open(Path(catalogue), encoder)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take on new BatchSettings."""
        set_max_batch(BatchSettings.from_args(user_config).max_batch, self._retrieve)

    async def ping(self) -> None:
        """Returns when the replica answers."""

    async def retrieve(self, request: EditRequest) -> Retrieved:
        """The garments that the request names, or else the nearest to its prompt.

        Raises InvalidRequest for an id that is not in the catalogue.
        """
        with metrics.timed("retrieve") as timings_s:
            matches: list[Match] = checked(await self._retrieve(request))
        garments = tuple(
            GarmentUsed(id=match.garment.id, score=match.score, caption=match.garment.caption) for match in matches
        )
        return Retrieved(garments, self.catalogue.version, timings_s)

    @ray_serve.batch(batch_wait_timeout_s=0)
    async def _retrieve(self, requests: list[EditRequest]) -> list[list[Match] | Exception]:
        return await asyncio.to_thread(each, partial(pipeline.retrieve_many, self.catalogue), requests)

    async def pictures(self, garment_ids: Sequence[str]) -> Pictures:
        """The pictures of garments. Raises InvalidRequest for an unknown id."""
        garments = [self.catalogue.get(garment_id) for garment_id in garment_ids]
        images = await asyncio.to_thread(lambda: [garment.image() for garment in garments])
        return Pictures(images, self.catalogue.version)

    async def search(self, text: str, category: str, k: int) -> list[GarmentFound]:
        """The `k` garments of `category` nearest to `text`. Raises InvalidRequest as `Catalogue.search` does."""
        return [_found(match) for match in await asyncio.to_thread(self.catalogue.search, text, category, k)]

    async def garment(self, garment_id: str) -> GarmentFound:
        """The garment of this id; raises InvalidRequest for an unknown one."""
        return _found(Match(self.catalogue.get(garment_id), None))

    async def picture_file(self, garment_id: str) -> tuple[str, bytes]:
        """Name and content of the file of a garment's picture; raises InvalidRequest for an unknown id."""
        path = self.catalogue.get(garment_id).image_path
        return path.name, await asyncio.to_thread(path.read_bytes)


def _found(match: Match) -> GarmentFound:
    garment = match.garment
    return GarmentFound(id=garment.id, category=garment.category, caption=garment.caption, score=match.score)
