"""The course of an edit through the stages of the graph, to its picture or its events. The ingress calls it.

The denoiser has the stages before it prepare the edit, and denoises it. The VAE decodes the latents, and here the
picture is put into the photo. Once the denoiser has taken an edit on, it is finished, unless the caller leaves or its
deadline comes.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import ray
from numpy.typing import NDArray
from ray.serve.handle import DeploymentHandle

from fashion_rag.data.finish import finish
from fashion_rag.person.completion import CategoryChoice, Found, complete, find, wants_reading
from fashion_rag.request import CompleteRequest, EditRequest
from serve import metrics, tracing
from serve.calls import answer, stream
from serve.http.errors import error_reply, explained
from serve.http.forms import EditForm
from serve.http.replies import GarmentUsed, edit_completed, partial_image, sse
from serve.http.streaming import newest
from serve.messages import Admitted, Decoded, Denoised, Job, Partial, Prepared, Timings
from serve.tracing import Kind

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Accepted:
    """An edit that the stages have accepted: its request, and what completed it."""

    request: CompleteRequest
    found: Found


@dataclass(frozen=True, eq=False)
class EditedPhoto:
    """A finished edit: the photo, uint8 [H, W, 3] in the request's size, its garments, and the time in each stage.

    found: what completed the request. denoised_unix_s: when its last step was done, in Unix time.
    """

    image: NDArray[np.uint8]
    garments: tuple[GarmentUsed, ...]
    found: Found
    timings_s: Timings
    denoised_unix_s: float


# What `EditRunner.edit` yields, in this order: one Accepted, any number of Partial, one EditedPhoto.
EditNews = Accepted | Partial | EditedPhoto


class AnswerTimes:
    """How long edits have lately taken from their last step to the encoded answer: decoding, pasting and encoding.

    clock: gives the time in seconds.
    """

    NUM_KEPT = 64
    # A time that is older counts no more, so that a slow start does not have edits refused for ever.
    KEPT_S = 60.0
    SHARE = 0.95

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        # When each of the last answers was encoded, and how long it took.
        self._answers: deque[tuple[float, float]] = deque(maxlen=self.NUM_KEPT)

    def record(self, edited: EditedPhoto) -> None:
        """Record that the answer to an edit has just been encoded."""
        now = self.clock()
        self._answers.append((now, now - edited.denoised_unix_s))

    def high_s(self) -> float:
        """Return what SHARE of the kept answers took at most; 0 if there are none."""
        since = self.clock() - self.KEPT_S
        seconds = [took for at, took in list(self._answers) if at >= since]
        return float(np.quantile(seconds, self.SHARE, method="higher")) if seconds else 0.0


class EditRunner:
    """Takes edits through the denoiser, whose handle streams, and the VAE."""

    def __init__(
        self,
        denoiser: DeploymentHandle,
        vae: DeploymentHandle,
        shape: tuple[int, int],
        has_parser: bool,
        student_denoiser: DeploymentHandle | None = None,
    ) -> None:
        """Take the handles of the stages.

        shape: the (height, width) of the model's pictures. has_parser: whether photos can be read. student_denoiser:
        denoises edits by the bundle's student, where it is served.
        """
        self.denoiser, self.student_denoiser = denoiser, student_denoiser
        self.vae = vae
        self.shape = shape
        self.has_parser = has_parser
        self.answer_times = AnswerTimes()

    async def edit(self, request: EditRequest, preview_steps: frozenset[int]) -> AsyncGenerator[EditNews, None]:
        """Yield once that the edit is accepted, then its previews, then the edited photo.

        preview_steps: after which steps, counted from 1, a preview is wanted. Raises what the stages raise, and what
        `calls.stream` raises.
        """
        job = await asyncio.to_thread(self._job, request, preview_steps)
        accepted: Accepted | None = None
        last_step = 0
        denoiser = self.student_denoiser if request.shortcuts.student else self.denoiser
        assert denoiser is not None, "the student is offered where it is served"
        calls = stream("denoise", lambda: denoiser.denoise.remote(job), request.deadline_unix_s)
        async with aclosing(calls) as items:
            # A replica that takes the place of a dead one yields everything again, from Admitted on.
            async for item in items:
                match item:
                    case Prepared() if accepted is None:
                        with tracing.span("complete request", Kind.IMAGE):
                            completed = await asyncio.to_thread(complete, request, item.found)
                        accepted = Accepted(completed, item.found)
                        yield accepted
                    case Partial() if item.step > last_step:
                        last_step = item.step
                        yield item
                    case Denoised():
                        # This is the last item, but to leave the loop here would cancel the call.
                        denoised = item
                    case Admitted() | Prepared() | Partial():
                        pass
        assert accepted is not None
        yield await self._finished(accepted, denoised)

    def _job(self, request: EditRequest, preview_steps: frozenset[int]) -> Job:
        """Return the job of a request. What needs neither the parser nor the retriever is found here.

        Raises InvalidRequest as `find`.
        """
        choice = None if request.category is None else CategoryChoice(request.category)
        is_read = self.has_parser and wants_reading(request)
        found = None if choice is None or is_read else find(request, choice, self.shape, None)
        # The request goes into shared memory once, and the stages read it from there.
        with tracing.span("put request", Kind.HANDOVER):
            shared = ray.put(request)
        return Job(
            request=shared,
            choice=choice,
            is_read=is_read,
            found=found,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            shortcuts=request.shortcuts,
            deadline_unix_s=request.deadline_unix_s,
            after_s=self.answer_times.high_s(),
            preview_steps=preview_steps,
        )

    async def _finished(self, accepted: Accepted, denoised: Denoised) -> EditedPhoto:
        """Return the photo with what the VAE makes of the latents in it."""
        request, denoised_unix_s = accepted.request, time.time()
        decoded: Decoded = await answer(
            "decode", lambda: self.vae.decode.remote(denoised.latents), request.deadline_unix_s
        )
        started = time.perf_counter()
        with tracing.span("paste", Kind.IMAGE):
            image = await asyncio.to_thread(finish, request, decoded.picture)
        timings_s = denoised.timings_s | decoded.timings_s
        timings_s["decode"] += time.perf_counter() - started
        return EditedPhoto(image, denoised.garments, accepted.found, timings_s, denoised_unix_s)

    async def edit_all(self, requests: Sequence[EditRequest]) -> list[EditedPhoto]:
        """Return the finished edits. Where one fails, its error is raised and the others are cancelled."""
        tasks = [asyncio.create_task(self._edited_photo(request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _edited_photo(self, request: EditRequest) -> EditedPhoto:
        async with aclosing(self.edit(request, frozenset())) as items:
            *_, edited = [item async for item in items]
            assert isinstance(edited, EditedPhoto)
            return edited

    async def events(
        self, form: EditForm, request: EditRequest, arrived: float, held: ExitStack
    ) -> AsyncGenerator[bytes, None]:
        """Yield nothing (b"") once the edit is accepted, then its events, without previews that have grown old.

        arrived: when the request came, in Unix time. held: is closed when the edit is done, whether or not its events
        have been fetched. Raises what the edit raises before it is accepted; a later error is the last event.
        """
        accepted: Accepted | None = None
        index = 0
        edit = self.edit(request, preview_steps(form.partial_images, request.num_inference_steps))
        try:
            async with aclosing(newest(_while_held(held, edit), may_skip=_is_preview)) as items:
                async for item in items:
                    if isinstance(item, Accepted):
                        accepted = item
                        yield b""
                        continue
                    assert accepted is not None
                    if isinstance(item, Partial):
                        if index == 0:
                            metrics.first_preview_seconds().observe(time.time() - arrived)
                        yield await asyncio.to_thread(partial_event, form, accepted.request, item, index)
                        index += 1
                    else:
                        event = await asyncio.to_thread(completed_event, form, accepted.request, item)
                        self.answer_times.record(item)
                        yield event
        except Exception as error:
            # Once the status has been sent, any error can only be an event.
            if accepted is None:
                raise
            yield sse("error", error_reply(error, explained(error)[1], request.request_id))


def preview_steps(num_previews: int, num_steps: int) -> frozenset[int]:
    """Return after which steps, counted from 1, so many previews are shown: evenly spread, and none at the end."""
    steps = (round(number * num_steps / (num_previews + 1)) for number in range(1, num_previews + 1))
    return frozenset(step for step in steps if 0 < step < num_steps)


def partial_event(form: EditForm, request: CompleteRequest, partial: Partial, index: int) -> bytes:
    """Return the event for a preview, which is put into the photo; its index counts from 0.

    Pastes and encodes, so keep it off an event loop.
    """
    with tracing.span("paste", Kind.IMAGE):
        pixels = finish(request, partial.preview)
    event = partial_image(
        form, pixels, index=index, step=partial.step, num_steps=partial.num_steps, icc_profile=request.icc_profile
    )
    return sse("image_edit.partial_image", event)


def completed_event(form: EditForm, request: CompleteRequest, edited: EditedPhoto) -> bytes:
    """Return the event for the edited photo. Encodes it, so keep it off an event loop."""
    event = edit_completed(
        form,
        edited.image,
        garments=edited.garments,
        found=edited.found,
        seed=request.seed,
        timings_s=edited.timings_s,
        icc_profile=request.icc_profile,
    )
    return sse("image_edit.completed", event)


def _is_preview(item: EditNews) -> bool:
    return isinstance(item, Partial)


async def _while_held(held: ExitStack, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Yield the items, and close `held` after the last."""
    with held:
        async with aclosing(items):
            async for item in items:
                yield item
