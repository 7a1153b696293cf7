"""The deployment that turns garments into pseudo-words, and words and pseudo-words into prompt embeddings.

It asks the retriever for the garments of an edit. A garment comes with its pseudo-words, or else with its picture, from
which they are made here and then kept in a cache.
"""

import asyncio
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle
from torch import Tensor

from export.runtime import Runtime
from fashion_rag import pipeline
from fashion_rag.data.image import open_image
from fashion_rag.person.completion import CategoryChoice
from fashion_rag.pipeline import Conditioning
from fashion_rag.request import EditRequest
from serve import metrics, tracing
from serve.batching import Cache, Outcome, in_batch, run_batch, set_max_batch
from serve.calls import answer
from serve.config import ConditionerSettings
from serve.logs import leave_out_expected_errors
from serve.messages import Conditioned, Job, RetrievedGarments
from serve.preparation import with_category
from serve.tracing import Kind

# A request, and the pseudo-words [n, P, D] of its n garments; None where it has none.
RequestAndWords = tuple[EditRequest, Tensor | None]


@ray_serve.deployment
class Conditioner:
    """Makes prompt embeddings of prompts and garments, several in one call of each encoder."""

    def __init__(self, runtime: Runtime, retriever: DeploymentHandle) -> None:
        leave_out_expected_errors()
        torch.set_num_threads(runtime.num_threads)
        parts = runtime.open()
        self.prompt_encoder = parts.load_prompt_encoder()
        self.garment_encoder = parts.load_garment_encoder()
        self.retriever = retriever
        self.pseudo_words: Cache[Tensor] = Cache(0, attrgetter("nbytes"))

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take on new ConditionerSettings."""
        settings = ConditionerSettings.from_args(user_config)
        set_max_batch(settings.max_batch, self._invert, self._condition)
        self.pseudo_words.max_bytes = settings.cache_bytes

    async def ping(self) -> None:
        """Return when the replica answers."""

    async def condition(self, request: EditRequest, choice: CategoryChoice, job: Job) -> Conditioned:
        """Return what the UNet reads of the prompt and the garments, in the category that was chosen.

        Raises InvalidRequest where they do not fit together.
        """
        retrieved: RetrievedGarments = await answer(
            "retrieve", lambda: self.retriever.retrieve.remote(job.request, choice), job.deadline_unix_s
        )
        with metrics.timed("condition") as timings_s:
            words = await self._words(retrieved)
            pair = (with_category(request, choice), words)
            conditioning = await in_batch("condition", self._condition, pair)
        return Conditioned(conditioning, retrieved.garments, retrieved.version, retrieved.timings_s | timings_s)

    async def invert(self, content: bytes) -> NDArray[np.float32]:
        """Return the pseudo-words [P, D] of the garment in a picture file, for the catalogue."""
        words = await self._inverted(content)
        array: NDArray[np.float32] = words.numpy()
        return array

    async def _words(self, retrieved: RetrievedGarments) -> Tensor | None:
        """Return the pseudo-words [n, P, D] of the garments: from the catalogue, from the cache, or made now."""
        known: dict[str, Tensor] = {}
        missing: dict[str, bytes] = {}
        num_stored = 0
        for garment, words in zip(retrieved.garments, retrieved.pseudo_words, strict=True):
            if isinstance(words, Tensor):
                known[garment.id] = words
                num_stored += 1
            elif (cached := self.pseudo_words.get((retrieved.version, garment.id))) is not None:
                known[garment.id] = cached
            else:
                missing[garment.id] = words
        num_hits = len(retrieved.garments) - num_stored - len(missing)
        metrics.count_lookups(stored=num_stored, hit=num_hits, miss=len(missing))
        if missing:
            inverted = await asyncio.gather(*map(self._inverted, missing.values()))
            for garment_id, made in zip(missing, inverted, strict=True):
                known[garment_id] = made
                self.pseudo_words.put((retrieved.version, garment_id), made)
        return torch.stack([known[garment.id] for garment in retrieved.garments]) if known else None

    async def _inverted(self, content: bytes) -> Tensor:
        """Return the pseudo-words [P, D] of the garment in a picture file."""
        with tracing.span("open garment", Kind.IMAGE):
            picture = await asyncio.to_thread(open_image, content)
        return await in_batch("invert", self._invert, picture)

    @ray_serve.batch(batch_wait_timeout_s=0)
    async def _invert(self, pictures: list[Image.Image]) -> list[Outcome[Tensor]]:
        return await run_batch(self._invert_all, pictures)

    @torch.inference_mode()
    def _invert_all(self, pictures: Sequence[Image.Image]) -> list[Tensor]:
        # They are copied, because the cache would otherwise keep a whole batch for one of its rows.
        return [words.clone() for words in pipeline.invert(self.garment_encoder, pictures)]

    @ray_serve.batch(batch_wait_timeout_s=0)
    async def _condition(self, pairs: list[RequestAndWords]) -> list[Outcome[Conditioning]]:
        return await run_batch(self._condition_all, pairs)

    @torch.inference_mode()
    def _condition_all(self, pairs: Sequence[RequestAndWords]) -> list[Conditioning]:
        requests, words = zip(*pairs, strict=True)
        return pipeline.condition(self.prompt_encoder, requests, words)
