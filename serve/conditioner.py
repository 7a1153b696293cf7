"""The deployment that turns garments into pseudo-words, and words and pseudo-words into prompt embeddings.

It asks the retriever for the garments of an edit, whose pseudo-words come with them, and for the pictures of those that
the catalogue has no words of and that it has not met lately.
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
from serve.stages import Conditioned, Job, Retrieved

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
            words = await self._words(retrieved, job.deadline)
            conditioning: Conditioning = checked(await self._condition((request, words)))
        return Conditioned(conditioning, retrieved.garments, retrieved.timings_s | timings_s)

    async def invert(self, picture: Image.Image) -> Tensor:
        """Pseudo-words [P, D] of a garment's picture, for the catalogue."""
        words: Tensor = checked(await self._invert(picture))
        return words

    async def _words(self, retrieved: Retrieved, deadline: float) -> Tensor | None:
        """Pseudo-words [n, P, D] of the garments: the catalogue's, or those of the cache, or made now."""
        ids = [garment.id for garment in retrieved.garments]
        if not ids:
            return None
        stored = {one: words for one, words in zip(ids, retrieved.pseudo_words, strict=True) if words is not None}
        cached = {
            one: words
            for one in ids
            if one not in stored and (words := self.pseudo_words.get((retrieved.version, one))) is not None
        }
        missing = [one for one in dict.fromkeys(ids) if one not in stored and one not in cached]
        metrics.count_lookups(stored=len(stored), hit=len(cached), miss=len(missing))
        made: dict[str, Tensor] = {}
        if missing:
            # Of the version that was searched, whatever is live by now.
            ask = lambda: self.retriever.pictures.remote(missing, retrieved.version)  # noqa: E731
            pictures: list[Image.Image] = await answer("retrieve", ask, deadline)
            outcomes = await asyncio.gather(*map(self._invert, pictures))
            made = {one: checked(outcome) for one, outcome in zip(missing, outcomes, strict=True)}
            for one, words in made.items():
                self.pseudo_words.put((retrieved.version, one), words)
        known = stored | cached | made
        return torch.stack([known[one] for one in ids])

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
