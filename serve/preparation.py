"""What the stages before the denoiser do for an edit that it has taken on. The denoiser calls it.

    category ──► condition (which has the retriever find garments)
            └──► parse ──► encode

The category is asked for only where the caller gave none, and the parser only where the photo is to be read.
"""

import asyncio
from dataclasses import dataclass, replace

from ray.serve.handle import DeploymentHandle

from fashion_rag.person.completion import CategoryChoice, Found, find
from fashion_rag.request import EditRequest
from serve import tracing
from serve.calls import answer
from serve.messages import Chosen, Conditioned, EncodedPerson, FoundInPhoto, Job, Timings
from serve.tracing import Kind


@dataclass(frozen=True, eq=False)
class Preparation:
    """What an edit needs before its first step, what completes its request, and the time in each stage."""

    found: Found
    conditioned: Conditioned
    encoded: EncodedPerson
    timings_s: Timings


class Preparer:
    """Asks the stages for what an edit needs: as many at the same time as do not wait for each other."""

    def __init__(
        self,
        retriever: DeploymentHandle,
        parser: DeploymentHandle,
        conditioner: DeploymentHandle,
        vae: DeploymentHandle,
        shape: tuple[int, int],
    ) -> None:
        """Take the handles of the stages, and the (height, width) of the model's pictures."""
        self.retriever = retriever
        self.parser = parser
        self.conditioner = conditioner
        self.vae = vae
        self.shape = shape

    async def prepare(self, job: Job) -> Preparation:
        """Return what the stages make of the edit. Raises what they raise, for the first that fails."""
        chosen = await self._chosen(job)
        condition = answer(
            "condition",
            lambda: self.conditioner.condition.remote(job.request, chosen.choice, job),
            job.deadline_unix_s,
        )
        conditioning = asyncio.create_task(condition)
        encoding = asyncio.create_task(self._found_and_encoded(job, chosen.choice))
        try:
            conditioned, (found, encoded) = await asyncio.gather(conditioning, encoding)
        finally:
            conditioning.cancel()
            encoding.cancel()
        timings_s = chosen.timings_s | found.timings_s | conditioned.timings_s | encoded.timings_s
        return Preparation(found.found, conditioned, encoded, timings_s)

    async def _chosen(self, job: Job) -> Chosen:
        """Return the caller's category, or else the one that the retriever chooses by garments or words."""
        if job.choice is not None:
            return Chosen(job.choice, {})
        chosen: Chosen = await answer(
            "category", lambda: self.retriever.choose.remote(job.request), job.deadline_unix_s
        )
        return chosen

    async def _found_and_encoded(self, job: Job, choice: CategoryChoice) -> tuple[FoundInPhoto, EncodedPerson]:
        found = await self._found(job, choice)
        encoded = await answer("encode", lambda: self.vae.encode.remote(job.request, found.found), job.deadline_unix_s)
        return found, encoded

    async def _found(self, job: Job, choice: CategoryChoice) -> FoundInPhoto:
        """Return what completes the request: known already, found by the parser, or found here without the photo."""
        if job.found is not None:
            return FoundInPhoto(job.found, {})
        if job.is_read:
            found: FoundInPhoto = await answer(
                "parse", lambda: self.parser.find.remote(job.request, choice), job.deadline_unix_s
            )
            return found
        with tracing.span("get request", Kind.HANDOVER):
            request = await job.request
        with tracing.span("find mask and window", Kind.IMAGE):
            return FoundInPhoto(await asyncio.to_thread(find, request, choice, self.shape, None), {})


def with_category(request: EditRequest, choice: CategoryChoice) -> EditRequest:
    """Return the request with the category that was chosen for it, whose masks and windows may still be missing."""
    return request if request.category == choice.category else replace(request, category=choice.category)
