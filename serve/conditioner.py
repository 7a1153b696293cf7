"""The deployment that turns garments into pseudo-words, and words and pseudo-words into prompt embeddings.

It asks the retriever for the garments of an edit, and for the pictures of those that it has not met lately.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle
from torch import Tensor

from export.backend import Runtime
from fashion_rag import pipeline
from fashion_rag.pipeline import Conditioning
from fashion_rag.request import EditRequest
from serve import metrics
from serve.batching import TensorCache, checked, each, set_max_batch
from serve.calls import answer
from serve.config import ConditionerSettings
from serve.stages import Conditioned, Job, Pictures, Retrieved

Worded = tuple[EditRequest, Tensor | None]


@ray_serve.deployment
class Conditioner:
    """Prompts and garments to prompt embeddings, several in one call of each tower."""

    def __init__(self, runtime: Runtime, retriever: DeploymentHandle) -> None:
        torch.set_num_threads(runtime.num_threads)
        parts = runtime.open()
        self.prompt_encoder = parts.load_prompt_encoder()
        self.garment_encoder = parts.load_garment_encoder()
        self.retriever = retriever
        self.pseudo_words = TensorCache(0)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take on new ConditionerSettings."""
        settings = ConditionerSettings.from_args(user_config)
        set_max_batch(settings.max_batch, self._invert, self._condition)
        self.pseudo_words.max_bytes = settings.cache_bytes

    async def ping(self) -> None:
        """Returns when the replica answers."""

    async def condition(self, request: EditRequest, job: Job) -> Conditioned:
        """What the UNet reads of the prompt and the garments. Raises InvalidRequest where they do not fit together."""
        retrieved: Retrieved = await answer(
            "retrieve", lambda: self.retriever.retrieve.remote(job.request), job.deadline
        )
        with metrics.timed("condition") as timings_s:
            garment_ids = [garment.id for garment in retrieved.garments]
            words = await self._words(garment_ids, retrieved.version, job.deadline)
            conditioning: Conditioning = checked(await self._condition((request, words)))
        return Conditioned(conditioning, retrieved.garments, retrieved.timings_s | timings_s)

    async def _words(self, garment_ids: Sequence[str], version: str, deadline: float) -> Tensor | None:
        """Pseudo-words [n, P, D] of garments, from the cache as far as it has them."""
        if not garment_ids:
            return None
        words: dict[str, Tensor] = {}
        for garment_id in garment_ids:
            if (known := self.pseudo_words.get((version, garment_id))) is not None:
                words[garment_id] = known
        missing = [garment_id for garment_id in dict.fromkeys(garment_ids) if garment_id not in words]
        metrics.count_lookups(num_hits=len(words), num_misses=len(missing))
        if missing:
            pictures: Pictures = await answer("retrieve", lambda: self.retriever.pictures.remote(missing), deadline)
            made = await asyncio.gather(*map(self._invert, pictures.images))
            for garment_id, outcome in zip(missing, made, strict=True):
                words[garment_id] = checked(outcome)
                # Under the version that had the picture: the catalogue may have been replaced in between.
                self.pseudo_words.put((pictures.version, garment_id), words[garment_id])
        return torch.stack([words[garment_id] for garment_id in garment_ids])

    @ray_serve.batch(batch_wait_timeout_s=0)
    async def _invert(self, pictures: list[Image.Image]) -> list[Tensor | Exception]:
        return await asyncio.to_thread(each, self._invert_all, pictures)

    @torch.inference_mode()
    def _invert_all(self, pictures: Sequence[Image.Image]) -> list[Tensor]:
        # Copies, because the cache must not keep a whole batch for one of its rows.
        return [words.clone() for words in pipeline.invert(self.garment_encoder, pictures)]

    @ray_serve.batch(batch_wait_timeout_s=0)
    async def _condition(self, worded: list[Worded]) -> list[Conditioning | Exception]:
        return await asyncio.to_thread(each, self._condition_all, worded)

    @torch.inference_mode()
    def _condition_all(self, worded: Sequence[Worded]) -> list[Conditioning]:
        requests, words = zip(*worded, strict=True)
        return pipeline.condition(self.prompt_encoder, requests, words)
