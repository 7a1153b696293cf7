"""Denoises many edits at once: they share every step, and join and leave between two steps.

The engine owns the edits in progress, and its owner drives it from one thread. There are no locks: `run` touches
nothing but its argument, so it may run in a thread of its own while `add`, `provide` and `cancel` are called.
`schedule`, `run` and `postprocess` follow each other and never overlap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fashion_rag.data.image import to_uint8
from fashion_rag.denoising.call_queue import CallQueue
from fashion_rag.denoising.noise_schedule import NoiseSchedule
from fashion_rag.denoising.plan import plan
from fashion_rag.denoising.runner import Edit, Inputs, Runner
from fashion_rag.denoising.scheduler import Limits, running_rows
from fashion_rag.denoising.state import CallOutcome, CallResult, EditState
from fashion_rag.errors import FashionRAGError
from fashion_rag.models.unet import DeepUNet
from fashion_rag.request import Shortcuts

# Calls of each row count. The first may compile, and teaches the pace nothing.
WARM_UP_CALLS = 3


@dataclass(frozen=True)
class Preview:
    """A linear map from latents to colours in [-1, 1]: matrix [4, 3] and bias [3]."""

    matrix: Tensor
    bias: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]]) -> Preview:
        """Return the map in a bundle's manifest: a row of three for each of four channels, then the bias."""
        table = torch.tensor(rows)
        return cls(table[:4], table[4])

    def __call__(self, latents: Tensor) -> NDArray[np.uint8]:
        """Return latents [B, 4, h, w] as small pictures, uint8 [B, h, w, 3]."""
        matrix, bias = self.matrix.to(latents), self.bias.to(latents)
        return to_uint8(torch.einsum("bchw,cd->bdhw", latents, matrix) + bias[:, None, None])


@dataclass(frozen=True)
class Progress:
    """An edit has done `step` of its `num_steps` steps.

    preview: uint8 [h, w, 3] where one was wanted and the engine has a preview map.
    """

    id: str
    step: int
    num_steps: int
    preview: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Finished:
    """An edit has done its last step and has left, with latents [1, 4, h, w]."""

    id: str
    latents: Tensor


@dataclass(frozen=True)
class Failed:
    """An edit has left without a result. Where the UNet raised an exception, that is the error's `__cause__`."""

    id: str
    error: FashionRAGError


Event = Progress | Finished | Failed


class Engine:
    """Schedules steps, runs them and reports what became of the edits.

    clock: gives the time in seconds that deadlines are measured by. num_failed_calls: how many UNet calls have failed
    since the last one that worked.
    """

    def __init__(
        self,
        unet: DeepUNet,
        limits: Limits,
        preview: Preview | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue: CallQueue[EditState] = CallQueue(limits, clock)
        self.pace = self.queue.pace
        self.scheduler = self.queue.scheduler
        self.runner = Runner(unet)
        self.preview = preview
        self.clock = clock
        self.num_failed_calls = 0
        self._text_shape: torch.Size | None = None

    def __len__(self) -> int:
        """Return the number of edits that have been added and have not left."""
        return len(self.scheduler)

    @property
    def num_rows(self) -> int:
        """Return the rows of all edits here, waiting or running."""
        return self.scheduler.num_rows

    @property
    def num_waiting(self) -> int:
        """Return the number of edits for which one call has no room; see `Scheduler.num_waiting`."""
        return self.scheduler.num_waiting

    @property
    def limits(self) -> Limits:
        """Return how much the engine accepts. The limits may be replaced at any time and hold from the next step on."""
        return self.scheduler.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self.scheduler.limits = limits

    def work_s(self, edit: Edit) -> float:
        """Return the seconds of full UNet calls that `edit` takes: its cost where calls are always full."""
        steps = plan(edit.sampler, edit.num_inference_steps, edit.guidance_scale, edit.shortcuts)
        return self.queue.work_s(step.rows for step in steps)

    def alone_s(self, edit: Edit) -> float:
        """Return how many seconds `edit` is expected to take where it shares its steps with no other."""
        steps = plan(edit.sampler, edit.num_inference_steps, edit.guidance_scale, edit.shortcuts)
        return sum(self.pace.step_time_s(step.rows) for step in steps)

    def warm_up(self, inputs: Inputs) -> None:
        """Run the UNet at 1, 2, 4, ... `max_rows` rows, so that it is compiled and its pace known before any edit.

        The outermost layers alone are run, too. inputs: of any edit; the text of all edits must have the same shape as
        theirs. Raises what the UNet raises.
        """
        height, width = inputs.latents.shape[-2:]
        edit = Edit("warm up", (height, width), 2, 1.0, NoiseSchedule(), shortcuts=Shortcuts(cache_interval=2))
        state = EditState.of(edit, 0.0)
        max_rows = self.limits.max_rows
        for num_rows in sorted({min(1 << power, max_rows) for power in range(max_rows.bit_length() + 1)}):
            for number in range(WARM_UP_CALLS):
                state.start(inputs)
                for step in range(state.num_steps):
                    state.num_begun = step + 1
                    batch = [state] * num_rows
                    outcome = self.run(batch)
                    if outcome.error:
                        raise outcome.error
                    if number:
                        self.pace.record(running_rows(batch), outcome.seconds)
                    position = outcome.results[0].position
                    assert position
                    state.position = position
        self._text_shape = inputs.prompt_embeds.shape

    def add(self, edit: Edit, inputs: Inputs | None = None) -> None:
        """Let `edit` take part from the next step on, or from when its inputs are provided.

        Raises InvalidRequest for an id in use and for a number of steps that the schedule does not have; Overloaded if
        too many edits wait, or if the deadline of this edit or of another could not be kept; DeadlineExceeded if the
        edit could not keep its deadline even alone. Raises as `provide` for inputs that do not fit.
        """
        self.queue.add(EditState.of(edit, self.clock()))
        if inputs is not None:
            self.provide(edit.id, inputs)

    def provide(self, edit_id: str, inputs: Inputs) -> None:
        """Hand over the tensors of an edit. Nothing happens for an edit that has left or has its tensors already.

        Raises FashionRAGError, naming the tensor, if a shape is not that of the edit's size or of the other edits'
        text; the edit has then left.
        """
        state = self.scheduler.get(edit_id)
        if state is None or state.ready:
            return
        texts = (running.inputs.prompt_embeds.shape for running in self.scheduler if running.ready)
        try:
            inputs.check(state.size, self._text_shape or next(texts, inputs.prompt_embeds.shape))
        except FashionRAGError:
            self.scheduler.remove(edit_id)
            raise
        state.start(inputs)

    def cancel(self, edit_id: str) -> None:
        """Free the rows of an edit, without an event. Nothing happens for an edit that has left."""
        self.scheduler.remove(edit_id)

    def step(self) -> list[Event]:
        """Run one UNet call; return what became of the edits that took part, and of those refused before it.

        The list is empty only if no edit was ready or refused. Errors come as `Failed`, of one edit or, where the call
        failed, of all edits in it.
        """
        batch, events = self.schedule()
        return events + self.postprocess(batch, self.run(batch)) if batch else events

    def schedule(self) -> tuple[list[EditState], list[Event]]:
        """Return the edits of the next call, and a `Failed` for each edit that can no longer meet its deadline.

        There are no edits for the next call if none is ready.
        """
        batch, refused = self.queue.begin_call()
        return batch, [Failed(state.id, error) for state, error in refused]

    def run(self, batch: Sequence[EditState]) -> CallOutcome:
        """Return what a UNet call makes of `batch`. All tensor work is done here. Never raises."""
        started = self.clock()
        try:
            results = self._call(batch)
        except Exception as error:
            return CallOutcome([CallResult(None, None)] * len(batch), self.clock() - started, error)
        return CallOutcome(results, self.clock() - started)

    def _call(self, batch: Sequence[EditState]) -> list[CallResult]:
        stepped = self.runner.run([state.step_row for state in batch])
        previews: dict[int, NDArray[np.uint8]] = {}
        wanted = [place for place, state in enumerate(batch) if state.num_begun in state.edit.preview_steps]
        if self.preview and wanted:
            pictures = self.preview(torch.cat([stepped[place].x0 for place in wanted]))
            previews = dict(zip(wanted, pictures, strict=True))
        # Reading `finite` waits for the device, so that the measured time is that of the step.
        latents = torch.cat([result.position.latents for result in stepped])
        finite = latents.isfinite().flatten(1).all(1).tolist()
        results = []
        for place, result in enumerate(stepped):
            position = result.position.alone() if finite[place] else None
            results.append(CallResult(position, previews.get(place)))
        return results

    def postprocess(self, batch: Sequence[EditState], outcome: CallOutcome) -> list[Event]:
        """Return what became of the edits of `batch`, leaving out those that were cancelled while the call ran."""
        self.num_failed_calls = self.num_failed_calls + 1 if outcome.error else 0
        reason = f"the UNet call failed: {outcome.error!r}" if outcome.error else "the latents are not finite"
        events: list[Event] = []
        for state, result in zip(batch, outcome.results, strict=True):
            if not self.queue.holds(state):
                continue
            if result.position is None:
                error = FashionRAGError(f"step {state.num_begun} of {state.num_steps}: {reason}")
                error.__cause__ = outcome.error
                events.append(Failed(state.id, error))
            else:
                state.position = result.position
                events.append(Progress(state.id, state.num_begun, state.num_steps, result.preview))
                if not state.num_left:
                    events.append(Finished(state.id, state.latents))
            if result.position is None or not state.num_left:
                self.scheduler.remove(state.id)
        self.queue.end_call(batch, failed=outcome.error is not None)
        return events
