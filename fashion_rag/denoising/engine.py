"""Many edits denoised at once: they share every step, and join and leave between two.

Owns the edits in progress; whoever owns the engine drives it, from one thread. There are no locks: `run` touches
nothing but what it is given, so it may run in a thread of its own while `add`, `provide` and `cancel` are called.
`schedule`, `run` and `postprocess` follow each other and never overlap.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fashion_rag.data.image import to_uint8
from fashion_rag.denoising.pace import Pace
from fashion_rag.denoising.plan import plan
from fashion_rag.denoising.runner import Edit, Inputs, Position, Runner, UNetCall
from fashion_rag.denoising.sampler import SamplerConfig
from fashion_rag.denoising.scheduler import Limits, Scheduler
from fashion_rag.denoising.state import EditState, Outcome, running_rows
from fashion_rag.errors import DeadlineExceeded, FashionRAGError, InvalidRequest
from fashion_rag.request import Shortcuts

WARM_UP_CALLS = 3  # of each row count, so that the median is not that of the first, which may compile


@dataclass(frozen=True)
class Preview:
    """A linear map from latents to colours in [-1, 1]: matrix [4, 3] and bias [3]."""

    matrix: Tensor
    bias: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]]) -> Preview:
        """The map of a bundle's manifest: a row of three for each of four channels, then the bias."""
        table = torch.tensor(rows)
        return cls(table[:4], table[4])

    def __call__(self, latents: Tensor) -> NDArray[np.uint8]:
        """Latents [B, 4, h, w] as small pictures, uint8 [B, h, w, 3]."""
        matrix, bias = self.matrix.to(latents), self.bias.to(latents)
        return to_uint8(torch.einsum("bchw,cd->bdhw", latents, matrix) + bias[:, None, None])


@dataclass(frozen=True)
class Progress:
    """An edit has done `step` of its `num_steps`; preview: uint8 [h, w, 3] where one was wanted and the engine can."""

    id: str
    step: int
    num_steps: int
    preview: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Finished:
    """An edit has done its last step and left; latents: [1, 4, h, w]."""

    id: str
    latents: Tensor


@dataclass(frozen=True)
class Failed:
    """An edit has left without a result. An exception of the UNet is the error's `__cause__`."""

    id: str
    error: FashionRAGError


Event = Progress | Finished | Failed


class Engine:
    """Schedules, runs and reports. Deadlines are times of `clock`, in seconds.

    num_failed_calls: how many UNet calls have failed since the last that worked.
    """

    def __init__(
        self,
        unet: UNetCall,
        limits: Limits,
        preview: Preview | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pace = Pace()
        self.scheduler: Scheduler[EditState] = Scheduler(limits, self.pace.step_time_s)
        self.runner = Runner(unet)
        self.preview = preview
        self.clock = clock
        self.num_failed_calls = 0
        self._text_shape: torch.Size | None = None
        self._busy_until = -math.inf  # when the call that is running should be done

    def __len__(self) -> int:
        """Edits that have been added and have not left."""
        return len(self.scheduler)

    @property
    def num_rows(self) -> int:
        """The rows of all edits here, waiting or running."""
        return self.scheduler.num_rows

    @property
    def num_waiting(self) -> int:
        """The edits beyond those that one call has room for; see `Scheduler.num_waiting`."""
        return self.scheduler.num_waiting

    @property
    def limits(self) -> Limits:
        """What the engine takes on; may be replaced at any time, and holds from the next step on."""
        return self.scheduler.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self.scheduler.limits = limits

    def work_s(self, edit: Edit) -> float:
        """Seconds of full UNet calls that `edit` takes: what it costs where there is always enough to do."""
        steps = plan(edit.sampler, edit.num_inference_steps, edit.guidance_scale, edit.shortcuts)
        return sum(self.pace.row_time_s(step.rows) for step in steps)

    def alone_s(self, edit: Edit) -> float:
        """Return how many seconds `edit` is expected to take where it shares its steps with no other."""
        steps = plan(edit.sampler, edit.num_inference_steps, edit.guidance_scale, edit.shortcuts)
        return sum(self.pace.step_time_s(step.rows) for step in steps)

    def warm_up(self, inputs: Inputs) -> None:
        """Run the UNet at 1, 2, 4, ... `max_rows` rows, so that it is compiled and its pace known before any edit.

        Its outermost layers alone, too, where it can be called so. inputs: of any edit; the text of those to come must
        have the same shape. Raises what the UNet raises.
        """
        height, width = inputs.latents.shape[-2:]
        shortcuts = Shortcuts(cache_interval=2 if self._keeps_features else 1)
        state = EditState.of(Edit("warm up", (height, width), 2, 1.0, SamplerConfig(), shortcuts=shortcuts), 0.0)
        max_rows = self.limits.max_rows
        for num_rows in sorted({min(1 << power, max_rows) for power in range(max_rows.bit_length() + 1)}):
            for _ in range(WARM_UP_CALLS):
                state.start(inputs)
                for step in range(state.num_steps):
                    state.num_begun = step + 1
                    batch = [state] * num_rows
                    outcome = self.run(batch)
                    if outcome.error:
                        raise outcome.error
                    self.pace.record(running_rows(batch), outcome.seconds)
                    assert outcome.positions[0]
                    state.position = outcome.positions[0]
        self._text_shape = inputs.prompt_embeds.shape

    @property
    def _keeps_features(self) -> bool:
        return hasattr(self.runner.unet, "shallow")

    def add(self, edit: Edit, inputs: Inputs | None = None) -> None:
        """Let `edit` take part from the next step on, or from when its inputs are provided.

        Raises InvalidRequest for an id in use, for steps that the schedule has not, or for a cache interval where the
        UNet cannot run its outermost layers alone; Overloaded if too many wait, or if its deadline or that of an edit
        here could not be kept, and DeadlineExceeded if no engine could keep its own. Raises as `provide` for inputs
        that do not fit.
        """
        if edit.shortcuts.cache_interval > 1 and not self._keeps_features:
            raise InvalidRequest("cache_interval", edit.shortcuts.cache_interval, "must be 1 on this server")
        state = EditState.of(edit, self.clock())
        try:
            self.scheduler.add(state, max(state.arrived, self._busy_until))
        except DeadlineExceeded:
            if not len(self):
                self.pace.forget()
            raise
        if inputs is not None:
            self.provide(edit.id, inputs)

    def provide(self, edit_id: str, inputs: Inputs) -> None:
        """Hand over the tensors of an edit; one that has left, or has them already, is left alone.

        Raises FashionRAGError, naming the tensor, if one has not the shape that the edit's size or the text of the
        others makes it have; the edit has then left.
        """
        state = self.scheduler.get(edit_id)
        if state is None or state.ready:
            return
        texts = (other.inputs.prompt_embeds.shape for other in self.scheduler if other.ready)
        try:
            inputs.check(state.size, self._text_shape or next(texts, inputs.prompt_embeds.shape))
        except FashionRAGError:
            self.scheduler.remove(edit_id)
            raise
        state.start(inputs)

    def cancel(self, edit_id: str) -> None:
        """Free the rows of an edit, without an event; one that has left is left alone."""
        self.scheduler.remove(edit_id)

    def step(self) -> list[Event]:
        """What became of the edits that took part in one UNet call, and of those refused before it.

        Empty only if no edit was ready or refused. Errors come as `Failed`: of one edit, or of all in a failed call.
        """
        batch, events = self.schedule()
        return events + self.postprocess(batch, self.run(batch)) if batch else events

    def schedule(self) -> tuple[list[EditState], list[Event]]:
        """The edits of the next call, none if none is ready, and `Failed` of those that cannot meet their deadlines."""
        now = self.clock()
        events: list[Event] = [Failed(state.id, error) for state, error in self.scheduler.refuse(now)]
        batch = self.scheduler.schedule()
        if batch:
            self._busy_until = now + self.pace.step_time_s(running_rows(batch))
        elif events:
            self.pace.forget()
        return batch, events

    def run(self, batch: Sequence[EditState]) -> Outcome:
        """What a UNet call makes of `batch`. Never raises; all tensor work is here."""
        started = self.clock()
        error: Exception | None = None
        positions: list[Position | None] = [None] * len(batch)
        previews: list[NDArray[np.uint8] | None] = [None] * len(batch)
        try:
            after, x0 = self.runner.run(
                [state.edit for state in batch],
                [state.inputs for state in batch],
                [state.position for state in batch],
                [state.steps[state.num_begun - 1] for state in batch],
            )
            wanted = [row for row, state in enumerate(batch) if state.num_begun in state.edit.preview_steps]
            if self.preview and wanted:
                for row, picture in zip(wanted, self.preview(x0[wanted]), strict=True):
                    previews[row] = picture
            # Reading `finite` waits for the device, so the time is the step's.
            finite = torch.cat([position.latents for position in after]).isfinite().flatten(1).all(1).tolist()
            positions = [each.alone() if ok else None for each, ok in zip(after, finite, strict=True)]
        except Exception as failure:
            error = failure
        return Outcome(positions, previews, self.clock() - started, error)

    def postprocess(self, batch: Sequence[EditState], outcome: Outcome) -> list[Event]:
        """What became of the edits of `batch`; nothing is said of those cancelled while the call ran."""
        self._busy_until = -math.inf
        if outcome.error:
            self.num_failed_calls += 1
        else:
            self.num_failed_calls = 0
            self.pace.record(running_rows(batch), outcome.seconds)
        reason = f"the UNet call failed: {outcome.error!r}" if outcome.error else "the latents are not finite"
        events: list[Event] = []
        for state, position, preview in zip(batch, outcome.positions, outcome.previews, strict=True):
            if self.scheduler.get(state.id) is not state:  # the id may be in use again
                continue
            if position is None:
                error = FashionRAGError(f"step {state.num_begun} of {state.num_steps}: {reason}")
                error.__cause__ = outcome.error
                events.append(Failed(state.id, error))
            else:
                state.position = position
                events.append(Progress(state.id, state.num_begun, state.num_steps, preview))
                if not state.num_left:
                    events.append(Finished(state.id, state.latents))
            if position is None or not state.num_left:
                self.scheduler.remove(state.id)
        return events
