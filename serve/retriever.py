"""The deployment that finds garments, and categories of edits. No other one opens the catalogue, or writes to it.

It looks for new versions and changes all the time, and takes them on between two batches. An edit sees one state of the
catalogue from search to inversion, because its garments come with all that it needs of them.
"""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from ray import serve as ray_serve
from torch import Tensor

from export.runtime import Runtime
from fashion_rag.artifacts import wait_for
from fashion_rag.bundle import Bundle
from fashion_rag.catalogue.attributes import Filter
from fashion_rag.catalogue.catalogue import Catalogue, Match
from fashion_rag.catalogue.category import CategoryChooser
from fashion_rag.catalogue.changes import GarmentAdded, GarmentDeleted, append, put_image
from fashion_rag.catalogue.garments import INVERSION
from fashion_rag.catalogue.retrieve import retrieve_many
from fashion_rag.catalogue.storage import Root
from fashion_rag.catalogue.table import GarmentRow
from fashion_rag.catalogue.versions import missing_catalogue
from fashion_rag.data.image import open_image
from fashion_rag.errors import ArtifactError
from fashion_rag.person.completion import CategoryChoice
from fashion_rag.request import EditRequest
from serve import metrics
from serve.batching import Outcome, in_batch, run_batch, set_max_batch
from serve.config import RetrieverSettings
from serve.http.replies import GarmentFound, GarmentUsed
from serve.logs import leave_out_expected_errors
from serve.messages import Chosen, RetrievedGarments
from serve.preparation import with_category

# Matches, the pseudo-words or picture file of each, and the version of the catalogue that has them.
MatchesAndWords = tuple[list[Match], tuple[Tensor | bytes, ...], str]

logger = logging.getLogger("ray.serve")


@ray_serve.deployment
class Retriever:
    """Finds the garments and the categories of prompts, several in one call of the text encoder."""

    def __init__(self, runtime: Runtime, catalogue: str) -> None:
        leave_out_expected_errors()
        torch.set_num_threads(runtime.num_threads)
        wait_for(lambda: runtime.missing() + missing_catalogue(catalogue), runtime.wait_s)
        bundle = Bundle.open(Path(runtime.bundle))
        self.root = Root.at(catalogue)
        self.fingerprints = bundle.fingerprints()
        self.encoder = bundle.load_retrieval_encoder()
        self.chooser = CategoryChooser(self.encoder)
        self.chooser.likeness(["warm up"])
        self.catalogue = Catalogue.open(catalogue, self.encoder, self.fingerprints[INVERSION])
        self.settings = RetrieverSettings()
        self._watching: asyncio.Task[None] | None = None
        self._refreshing = asyncio.Lock()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take on new RetrieverSettings."""
        self.settings = RetrieverSettings.from_args(user_config)
        set_max_batch(self.settings.max_batch, self._choose, self._retrieve)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), context=contextvars.Context())

    async def _watch(self) -> None:
        """Take on changes of the catalogue for as long as the replica lives. An error is logged once."""
        last_error = ""
        while True:
            await asyncio.sleep(self.settings.refresh_s)
            try:
                await self._refresh()
                last_error = ""
            except (ArtifactError, OSError) as error:
                if str(error) != last_error:
                    logger.error("the catalogue stays at %s: %s", self.catalogue.version, error)
                last_error = str(error)

    async def _refresh(self) -> None:
        async with self._refreshing:
            fresh = await asyncio.to_thread(self.catalogue.refreshed)
            if fresh is not self.catalogue:
                logger.info("the catalogue is now at %s", fresh.version)
                self.catalogue = fresh

    def check_health(self) -> None:
        """Raise RuntimeError if the replica should be replaced."""
        if self._watching is not None and self._watching.done():
            raise RuntimeError("the task that watches the catalogue has ended")

    async def ping(self) -> None:
        """Return when the replica answers."""

    async def choose(self, request: EditRequest) -> Chosen:
        """Return the category of a request that has none. Raises InvalidRequest as `CategoryChooser.choose`."""
        with metrics.timed("category") as timings_s:
            choice = await in_batch("choose", self._choose, request)
        return Chosen(choice, timings_s)

    @ray_serve.batch(batch_wait_timeout_s=0)
    async def _choose(self, requests: list[EditRequest]) -> list[Outcome[CategoryChoice]]:
        return await run_batch(partial(self.chooser.choose, self.catalogue), requests)

    async def retrieve(self, request: EditRequest, choice: CategoryChoice) -> RetrievedGarments:
        """Return the garments that the request names, or else the nearest to its prompt in the category.

        Raises InvalidRequest for an id that is not in the catalogue.
        """
        with metrics.timed("retrieve") as timings_s:
            asked = with_category(request, choice)
            matches, words, version = await in_batch("retrieve", self._retrieve, asked)
        garments = tuple(
            GarmentUsed(id=match.garment.id, score=match.score, caption=match.garment.caption) for match in matches
        )
        return RetrievedGarments(garments, words, version, timings_s)

    @ray_serve.batch(batch_wait_timeout_s=0)
    async def _retrieve(self, requests: list[EditRequest]) -> list[Outcome[MatchesAndWords]]:
        return await run_batch(partial(_retrieve_from, self.catalogue), requests)

    async def search(self, like: str | Image.Image, category: str, k: int, attributes: Filter) -> list[GarmentFound]:
        """Return the `k` garments of `category` nearest to a text or picture.

        Raises InvalidRequest as `Catalogue.search`.
        """
        return await self._found_garments(lambda catalogue: catalogue.search(like, category, k, attributes))

    async def similar(self, garment_id: str, k: int, attributes: Filter) -> list[GarmentFound]:
        """Return the `k` garments most like the one of this id, which is left out.

        Raises InvalidRequest for an unknown id.
        """

        def search(catalogue: Catalogue) -> list[Match]:
            category = catalogue.get(garment_id).category
            matches = catalogue.search(catalogue.vector(garment_id), category, k + 1, attributes)
            return [match for match in matches if match.garment.id != garment_id][:k]

        return await self._found_garments(search)

    async def _found_garments(self, search: Callable[[Catalogue], list[Match]]) -> list[GarmentFound]:
        return [_garment_found(match) for match in await asyncio.to_thread(search, self.catalogue)]

    async def garment(self, garment_id: str) -> GarmentFound:
        """Return the garment of this id. Raises InvalidRequest for an unknown id."""
        return _garment_found(Match(self.catalogue.get(garment_id), None))

    async def picture_file(self, garment_id: str) -> tuple[str, bytes]:
        """Return the name and content of the file of a garment's picture. Raises InvalidRequest for an unknown id."""
        picture = self.catalogue.get(garment_id).picture
        return picture.name, await asyncio.to_thread(picture.read_bytes)

    async def add(self, row: GarmentRow, jpeg: bytes, pseudo_words: NDArray[np.float32]) -> GarmentFound:
        """Put a garment into the catalogue, in place of an earlier one of its id, and return it as it can be found.

        jpeg: the picture as it is to be stored. row: all else; its `image` is set here. Raises InvalidRequest for what
        breaks a rule of the catalogue.
        """
        await asyncio.to_thread(self._add, row, jpeg, pseudo_words)
        await self._refresh()
        return await self.garment(row.id)

    def _add(self, row: GarmentRow, jpeg: bytes, pseudo_words: NDArray[np.float32]) -> None:
        picture = open_image(jpeg)
        stored = replace(row, image=put_image(self.root, jpeg))
        vector = self.encoder.encode_images([picture])[0]
        append(self.root, GarmentAdded(stored, vector, pseudo_words, self.fingerprints))

    async def delete(self, garment_id: str) -> None:
        """Take a garment out of the catalogue. Raises InvalidRequest for an unknown id."""
        self.catalogue.get(garment_id)
        await asyncio.to_thread(append, self.root, GarmentDeleted(garment_id))
        await self._refresh()


def _retrieve_from(catalogue: Catalogue, requests: Sequence[EditRequest]) -> list[MatchesAndWords]:
    """Return the garments of each request in the catalogue. Raises InvalidRequest as `retrieve_many`."""
    retrieved = []
    for matches in retrieve_many(catalogue, requests):
        retrieved.append((matches, tuple(map(_words_or_picture, matches)), catalogue.version))
    return retrieved


def _words_or_picture(match: Match) -> Tensor | bytes:
    words = match.garment.pseudo_words
    return match.garment.picture.read_bytes() if words is None else torch.from_numpy(words)


def _garment_found(match: Match) -> GarmentFound:
    garment = match.garment
    return GarmentFound(
        id=garment.id,
        category=garment.category,
        caption=garment.caption,
        attributes={name: list(values) for name, values in garment.attributes.items()},
        score=match.score,
    )
