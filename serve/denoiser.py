"""The deployment of the UNet: one engine, whose steps all the edits of a replica share.

Bookkeeping is done on the event loop and the UNet calls in one thread beside it, so an edit is taken on, refused or
cancelled at once, while a step runs. The replica asks the stages before it for what an edit needs once it has taken
the edit on; so an edit that is refused costs the others nothing.
"""

import asyncio
import contextvars
import time
import uuid
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle

from export.runtime import Runtime
from fashion_rag import pipeline
from fashion_rag.denoising.engine import Engine, Event, Failed, Finished, Preview
from fashion_rag.denoising.runner import Edit, Inputs
from fashion_rag.denoising.scheduler import running_rows
from fashion_rag.errors import DeadlineExceeded, Overloaded
from serve import metrics
from serve.autoscaling import LOAD, WorkMeter
from serve.batching import TensorCache
from serve.calls import answer
from serve.config import DenoiserSettings
from serve.logs import leave_out_expected_errors
from serve.messages import Admitted, Conditioned, Denoised, Encoded, Job, Partial, Prepared

# So many UNet calls that fail one after the other, and Serve is told to replace the replica.
MAX_FAILED_CALLS = 3

Item = Admitted | Prepared | Partial | Denoised


@ray_serve.deployment
class Denoiser:
    """Noise to latents, step by step."""

    def __init__(self, runtime: Runtime, conditioner: DeploymentHandle, vae: DeploymentHandle) -> None:
        leave_out_expected_errors()
        torch.set_num_threads(runtime.num_threads)
        parts = runtime.open()
        bundle = parts.bundle
        self.device = parts.device
        self.sampler = bundle.sampler
        self.latent_size = bundle.latent_size
        self.conditioner = conditioner
        self.vae = vae
        preview = Preview.of(bundle.manifest.preview) if bundle.manifest.preview else None
        self.engine = Engine(parts.load_unet(), DenoiserSettings(), preview)
        self.results = TensorCache(0)
        self.meter = WorkMeter()
        self.num_steps_done = 0
        self._events: dict[str, asyncio.Queue[Event]] = {}
        self._thread = ThreadPoolExecutor(1, "denoise")
        self._to_do = asyncio.Event()
        self._stepping: asyncio.Task[None] | None = None
        self._blank = Inputs.blank(self.latent_size, bundle.text_width, self.device)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take on new DenoiserSettings, from the next step on. Serve calls it before the replica is ready, too."""
        settings = DenoiserSettings.from_args(user_config)
        self.engine.limits, self.results.max_bytes = settings, settings.results_bytes
        if self._stepping is None:
            self.engine.warm_up(self._blank)

    async def ping(self) -> None:
        """Return when the replica answers."""

    async def alone_s(self, num_inference_steps: int, guidance_scale: float) -> float:
        """Return how many seconds such an edit is expected to take here where it is alone."""
        return self.engine.alone_s(Edit("", self.latent_size, num_inference_steps, guidance_scale, self.sampler))

    async def progress(self) -> tuple[int, int]:
        """Return the edits taken on and not yet left, and the UNet calls since the replica started."""
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

    async def denoise(self, job: Job) -> AsyncGenerator[Item, None]:
        """Yield the news of an edit: taken on, prepared, the previews that it asked for, the latents at the end.

        A cancelled call frees its rows at the next step. Raises Overloaded at once, and later what the stages before
        raise, DeadlineExceeded, or FashionRAGError for an edit that cannot be computed.
        """
        # Its own: the request's id is the caller's to choose, and returns when the call is made again.
        edit_id = uuid.uuid4().hex
        edit = Edit(
            edit_id,
            self.latent_size,
            job.num_inference_steps,
            job.guidance_scale,
            self.sampler,
            time.monotonic() + job.deadline - time.time(),
            job.preview_steps,
            job.shortcuts,
        )
        try:
            self.engine.add(edit)
        except (Overloaded, DeadlineExceeded) as error:
            if isinstance(error, Overloaded):
                # Another replica might have had room.
                self.meter.add(self.engine.work_s(edit))
            metrics.refusals().inc(tags={"stage": "denoise"})
            raise
        self.meter.add(self.engine.work_s(edit))
        events = self._events[edit_id] = asyncio.Queue()
        try:
            yield Admitted()
            conditioned, encoded = await self._ask(job)
            yield Prepared()
            # What the pipeline would be given; garments of a request may change with the catalogue.
            key = (encoded.digest, conditioned.version, tuple(garment.id for garment in conditioned.garments))
            if encoded.digest and (latents := self.results.get(key)) is not None:
                metrics.repeats().inc()
                yield Denoised(latents.numpy(), conditioned.garments, conditioned.timings_s | encoded.timings_s)
                return
            with metrics.timed("denoise") as timings_s:
                self._provide(edit_id, conditioned, encoded)
                started = time.perf_counter()
                while not isinstance(event := await events.get(), Finished):
                    if isinstance(event, Failed):
                        raise event.error
                    if event.step == 1:
                        metrics.queue_seconds().observe(time.perf_counter() - started)
                    if event.preview is not None:
                        yield Partial(event.step, event.num_steps, event.preview)
            timings_s |= conditioned.timings_s | encoded.timings_s
            latents = event.latents.cpu()
            if encoded.digest:
                self.results.put(key, latents)
            yield Denoised(latents.numpy(), conditioned.garments, timings_s)
        except (asyncio.CancelledError, GeneratorExit):
            metrics.cancellations().inc(tags={"stage": "denoise"})
            raise
        finally:
            del self._events[edit_id]
            self.engine.cancel(edit_id)
            self._count()

    async def _ask(self, job: Job) -> tuple[Conditioned, Encoded]:
        """Return what the stages before make of the request, both at the same time."""
        calls = [
            asyncio.create_task(answer(stage, ask, job.deadline))
            for stage, ask in (
                ("condition", lambda: self.conditioner.condition.remote(job.request, job)),
                ("encode", lambda: self.vae.encode.remote(job.request, self.results.max_bytes > 0)),
            )
        ]
        try:
            conditioned, encoded = await asyncio.gather(*calls)
            return conditioned, encoded
        finally:
            for call in calls:
                call.cancel()

    def _provide(self, edit_id: str, conditioned: Conditioned, encoded: Encoded) -> None:
        inputs = pipeline.denoising_inputs(encoded.latents, encoded.person, conditioned.conditioning)
        self.engine.provide(edit_id, inputs.to(self.device))
        if self._stepping is None:
            # Outside of the request, whose id its log lines would bear for ever.
            self._stepping = asyncio.create_task(self._step(), context=contextvars.Context())
        self._to_do.set()

    async def _step(self) -> None:
        """Step as long as the replica lives; sleeps where there is nothing to do."""
        loop = asyncio.get_running_loop()
        while True:
            batch, events = self.engine.schedule()
            if batch:
                outcome = await loop.run_in_executor(self._thread, self.engine.run, batch)
                metrics.step_seconds().observe(outcome.seconds)
                metrics.rows_per_step().observe(running_rows(batch).total)
                self.num_steps_done += 1
                events += self.engine.postprocess(batch, outcome)
            for event in events:
                # A caller who has just gone has no queue any more.
                if queue := self._events.get(event.id):
                    queue.put_nowait(event)
            self._count()
            if not batch:
                self._to_do.clear()
                await self._to_do.wait()

    def _count(self) -> None:
        metrics.rows_in_flight().set(self.engine.num_rows)
        metrics.edits_waiting().set(self.engine.num_waiting)
