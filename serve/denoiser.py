"""The deployment of the UNet: one engine, whose steps all the edits of a replica share.

Bookkeeping is done on the event loop and the UNet calls in one thread beside it, so an edit is taken on, refused or
cancelled at once, while a step runs. The replica asks the other stages for what an edit needs only once it has taken
the edit on, so an edit that is refused costs them nothing.
"""

import asyncio
import contextvars
import os
import time
import uuid
from collections.abc import AsyncGenerator, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from opentelemetry.trace import Span
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaRank
from torch import Tensor

from export.runtime import Runtime
from fashion_rag import pipeline
from fashion_rag.bundle import STUDENT
from fashion_rag.denoising.engine import Engine, Event, Failed, Finished, Preview, Progress
from fashion_rag.denoising.runner import Edit, Inputs
from fashion_rag.denoising.scheduler import running_rows
from fashion_rag.errors import DeadlineExceeded, Overloaded
from fashion_rag.request import EditRequest
from serve import metrics, tracing
from serve.autoscaling import LOAD, WorkMeter
from serve.batching import Cache
from serve.config import DenoiserSettings
from serve.cores import cores_by_node, pin, share_of
from serve.logs import leave_out_expected_errors
from serve.messages import Admitted, Denoised, Job, Partial, Prepared
from serve.preparation import Preparation, Preparer
from serve.tracing import Kind

# After so many UNet calls that failed one after the other, Serve is told to replace the replica.
MAX_FAILED_CALLS = 3

DenoiserMessage = Admitted | Prepared | Partial | Denoised


@dataclass(frozen=True)
class UNetCall:
    """A UNet call: how long it took, when it ended in nanoseconds of Unix time, and the rows that it had."""

    seconds: float
    ended_ns: int
    num_rows: int


# What happens to an edit, with the call that brought it; None where no call did.
Events = asyncio.Queue[tuple[Event, UNetCall | None]]


@ray_serve.deployment
class Denoiser:
    """Denoises edits step by step, as many together as its settings allow."""

    def __init__(self, runtime: Runtime, stages: dict[str, DeploymentHandle], student: bool = False) -> None:
        """Take the stages that prepare edits, as `Preparer` names them.

        student: whether the bundle's student denoises.
        """
        leave_out_expected_errors()
        torch.set_num_threads(runtime.num_threads)
        self._num_threads = runtime.num_threads
        self._cores = os.sched_getaffinity(0)
        parts = runtime.open()
        bundle = parts.bundle
        self.device = parts.device
        self.sampler = bundle.sampler.for_student() if student else bundle.sampler
        self.latent_size = bundle.latent_size
        self.preparer = Preparer(**stages, shape=bundle.manifest.image_size)
        preview = Preview.of(bundle.manifest.preview) if bundle.manifest.preview else None
        self.engine = Engine(parts.load_unet(STUDENT if student else "unet"), DenoiserSettings(), preview)
        self.results: Cache[Tensor] = Cache(0, attrgetter("nbytes"))
        self.meter = WorkMeter()
        self.num_steps_done = 0
        self._events: dict[str, Events] = {}
        self._thread = ThreadPoolExecutor(1, "denoise")
        self._to_do = asyncio.Event()
        self._stepping: asyncio.Task[None] | None = None
        self._blank = Inputs.blank(self.latent_size, bundle.text_width, self.device)

    def reconfigure(self, user_config: dict[str, Any], rank: ReplicaRank) -> None:
        """Take on new DenoiserSettings, from the next step on.

        Serve also calls this before the replica is ready, and when its rank among the replicas changes.
        """
        settings = DenoiserSettings.from_args(user_config)
        self.engine.limits, self.results.max_bytes = settings, settings.results_bytes
        by_node = cores_by_node(self._cores)
        pin(share_of(rank.local_rank, self._num_threads, by_node) if settings.pin_cores else self._cores)
        if self._stepping is None:
            self.engine.warm_up(self._blank)

    async def ping(self) -> None:
        """Return when the replica answers."""

    async def alone_s(self, num_inference_steps: int, guidance_scale: float) -> float:
        """Return how many seconds an edit of so many steps is expected to take here where it is alone."""
        return self.engine.alone_s(Edit("", self.latent_size, num_inference_steps, guidance_scale, self.sampler))

    async def progress(self) -> tuple[int, int]:
        """Return how many edits are here, and how many UNet calls there have been since the replica started."""
        return len(self.engine), self.num_steps_done

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what the autoscaling policy adds up over the replicas."""
        load = self.meter.read()
        metrics.load().set(load)
        return {LOAD: load}

    def check_health(self) -> None:
        """Raise RuntimeError if the replica should be replaced."""
        if self._stepping is not None and self._stepping.done():
            raise RuntimeError("the denoising loop has ended")
        if self.engine.num_failed_calls >= MAX_FAILED_CALLS:
            raise RuntimeError(f"the last {self.engine.num_failed_calls} UNet calls failed")

    async def denoise(self, job: Job) -> AsyncGenerator[DenoiserMessage, None]:
        """Yield an Admitted, a Prepared, the previews that the job asks for, and a Denoised with the latents.

        A cancelled call frees its rows at the next step. Raises Overloaded or DeadlineExceeded before the first item.
        Raises later what the stages before raise, DeadlineExceeded, or FashionRAGError for an edit that cannot be
        computed.
        """
        # Not the request's id: the caller may choose that one, and it comes again when a call is made again.
        edit_id = uuid.uuid4().hex
        self._add(edit_id, job)
        events = self._events[edit_id] = asyncio.Queue()
        try:
            yield Admitted()
            prepared = await self.preparer.prepare(job)
            yield Prepared(prepared.found)
            timings_s = prepared.timings_s
            key = await self._result_key(job, prepared)
            latents = None if key is None else self.results.get(key)
            if latents is not None:
                metrics.repeats().inc()
            else:
                with (
                    metrics.timed("denoise") as denoise_s,
                    tracing.span("denoise", Kind.WAIT, current=False) as denoising,
                ):
                    self._provide(edit_id, prepared)
                    started, provided_ns = time.perf_counter(), tracing.now_ns()
                    while not isinstance(event := await _next_event(events, denoising, provided_ns), Finished):
                        if isinstance(event, Failed):
                            raise event.error
                        if event.step == 1:
                            metrics.queue_seconds().observe(time.perf_counter() - started)
                        if event.preview is not None:
                            yield Partial(event.step, event.num_steps, event.preview)
                timings_s = denoise_s | timings_s
                latents = event.latents.cpu()
                if key is not None:
                    self.results.put(key, latents)
            yield Denoised(latents.numpy(), prepared.conditioned.garments, timings_s)
        except (asyncio.CancelledError, GeneratorExit):
            metrics.cancellations().inc(tags={"stage": "denoise"})
            raise
        finally:
            del self._events[edit_id]
            self.engine.cancel(edit_id)
            self._count()

    def _add(self, edit_id: str, job: Job) -> None:
        """Have the engine take the edit on. Raises Overloaded or DeadlineExceeded."""
        edit = Edit(
            edit_id,
            self.latent_size,
            num_inference_steps=job.num_inference_steps,
            guidance_scale=job.guidance_scale,
            sampler=self.sampler,
            # The engine's clock is monotonic.
            deadline=time.monotonic() + job.deadline_unix_s - time.time(),
            after_s=job.after_s,
            preview_steps=job.preview_steps,
            shortcuts=job.shortcuts,
        )
        try:
            self.engine.add(edit)
        except (Overloaded, DeadlineExceeded) as error:
            if isinstance(error, Overloaded):
                # Another replica might have had room, so the work counts for the number of replicas.
                self.meter.add(self.engine.work_s(edit))
            metrics.refusals().inc(tags={"stage": "denoise"})
            raise
        self.meter.add(self.engine.work_s(edit))

    async def _result_key(self, job: Job, prepared: Preparation) -> Hashable | None:
        """Return what tells the edit's latents from all others in `results`, or None where no results are kept.

        The garments and the category belong to it, because those of one request may change with the catalogue.
        """
        if self.results.max_bytes == 0:
            return None
        with tracing.span("get request", Kind.HANDOVER):
            request: EditRequest = await job.request
        digest = await asyncio.to_thread(request.digest)
        conditioned = prepared.conditioned
        garment_ids = tuple(garment.id for garment in conditioned.garments)
        return digest, prepared.found.choice.category, conditioned.version, garment_ids

    def _provide(self, edit_id: str, prepared: Preparation) -> None:
        """Give the engine the tensors of an edit, and have it step."""
        encoded, conditioning = prepared.encoded, prepared.conditioned.conditioning
        inputs = pipeline.denoising_inputs(encoded.latents, encoded.person, conditioning)
        self.engine.provide(edit_id, inputs.to(self.device))
        if self._stepping is None:
            # In a context of its own, or its log lines would bear the id of this request for ever.
            self._stepping = asyncio.create_task(self._step(), context=contextvars.Context())
        self._to_do.set()

    async def _step(self) -> None:
        """Step for as long as the replica lives, and sleep where there is nothing to do."""
        loop = asyncio.get_running_loop()
        while True:
            batch, events = self.engine.schedule()
            call = None
            if batch:
                outcome = await loop.run_in_executor(self._thread, self.engine.run, batch)
                call = UNetCall(outcome.seconds, tracing.now_ns(), running_rows(batch).total)
                metrics.step_seconds().observe(call.seconds)
                metrics.rows_per_step().observe(call.num_rows)
                self.num_steps_done += 1
                events += self.engine.postprocess(batch, outcome)
            for event in events:
                # The edit of a caller who has just left has no queue any more.
                if queue := self._events.get(event.id):
                    queue.put_nowait((event, call))
            self._count()
            if not batch:
                self._to_do.clear()
                await self._to_do.wait()

    def _count(self) -> None:
        """Bring the gauges up to date."""
        metrics.rows_in_flight().set(self.engine.num_rows)
        metrics.edits_waiting().set(self.engine.num_waiting)


async def _next_event(events: Events, denoising: Span, provided_ns: int) -> Event:
    """Return what happens to an edit next. A step becomes an event of the edit's span, `denoising`.

    provided_ns: when the engine was given the edit's tensors, from which on it waited for its first step.
    """
    event, call = await events.get()
    if isinstance(event, Progress) and call and denoising.is_recording():
        if event.step == 1:
            with tracing.within(denoising):
                started_ns = call.ended_ns - int(call.seconds * 1e9)
                tracing.record("wait for the first step", Kind.WAIT, provided_ns, started_ns)
        attributes = {"step": event.step, "seconds": call.seconds, "num_rows": call.num_rows}
        denoising.add_event(tracing.STEP, attributes, call.ended_ns)
    return event
