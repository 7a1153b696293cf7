"""Many edits denoised at once: every step is one UNet call, and edits join and leave between two steps.

Owns the running edits; whoever owns the engine drives it. It has no locks and no thread of its own: `add`, `step` and
`cancel` must not run at the same time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fashion_rag.data.image import to_uint8
from fashion_rag.denoising.runner import Edit, Runner, UNetCall
from fashion_rag.denoising.sampler import SamplerConfig, previous_timesteps, timesteps
from fashion_rag.denoising.scheduler import Limits, Scheduler, Ticket
from fashion_rag.errors import DeadlineExceeded, FashionRAGError

STEP_TIMES = 32  # how many of the last steps the expected step time is the median of


@dataclass(frozen=True)
class Preview:
    """A linear map from latents to colours in [-1, 1]: matrix [4, 3] and bias [3], on the latents' device."""

    matrix: Tensor
    bias: Tensor

    def __call__(self, latents: Tensor) -> NDArray[np.uint8]:
        """Latents [B, 4, h, w] as small pictures, uint8 [B, h, w, 3]."""
        return to_uint8(torch.einsum("bchw,cd->bdhw", latents, self.matrix) + self.bias[:, None, None])


@dataclass(frozen=True)
class Progress:
    """An edit has done `step` of its `num_steps`; preview: uint8 [h, w, 3], or None if the engine makes none."""

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


@dataclass(kw_only=True, eq=False)
class EditState(Ticket):
    """A running edit: how far it is, and its latents there. steps: every timestep with the one it leads to."""

    edit: Edit
    latents: Tensor
    steps: list[tuple[int, int]]


class Engine:
    """Schedules, runs and reports. Deadlines are times of `clock`, in seconds."""

    def __init__(
        self,
        unet: UNetCall,
        sampler: SamplerConfig,
        limits: Limits,
        preview: Preview | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scheduler: Scheduler[EditState] = Scheduler(limits)
        self.runner = Runner(unet, sampler)
        self.preview = preview
        self.clock = clock
        self._step_times: deque[float] = deque(maxlen=STEP_TIMES)

    def __len__(self) -> int:
        """Edits that have been added and have not left."""
        return len(self.scheduler)

    @property
    def step_time_s(self) -> float:
        """How long a step is expected to take; 0 while nothing is known."""
        return median(self._step_times) if self._step_times else 0.0

    def add(self, edit: Edit) -> None:
        """Let `edit` take part from the next step on.

        Raises Overloaded if too many wait, InvalidRequest for an id in use or for steps that the schedule has not.
        """
        sampler, num_steps = self.runner.sampler, edit.num_inference_steps
        visited, led_to = timesteps(sampler, num_steps), previous_timesteps(sampler, num_steps)
        height, width = edit.latents.shape[-2:]
        state = EditState(
            id=edit.id,
            size=(height, width),
            num_rows=2 if edit.guided else 1,
            num_steps=num_steps,
            arrived=self.clock(),
            deadline=edit.deadline,
            edit=edit,
            latents=edit.latents,
            steps=list(zip(visited.tolist(), led_to.tolist(), strict=True)),
        )
        self.scheduler.add(state, self.step_time_s)

    def cancel(self, edit_id: str) -> None:
        """Free the rows of an edit, without an event; one that has left is left alone."""
        self.scheduler.remove(edit_id)

    def step(self) -> list[Event]:
        """What became of the edits that took part in one UNet call, and of those refused before it.

        Empty only if there was no edit. Errors come as `Failed`: of one edit, or of every edit in a call that failed.
        """
        now, step_time_s = self.clock(), self.step_time_s
        refused = self.scheduler.refuse(now, step_time_s)
        events: list[Event] = [Failed(state.id, _too_late(state, now, step_time_s)) for state in refused]
        if batch := self.scheduler.schedule():
            events += self._advance(batch)
        elif refused:
            # Were the times kept, a few slow steps could have everything refused, and no step would correct them.
            self._step_times.clear()
        return events

    def _advance(self, batch: list[EditState]) -> list[Event]:
        started = self.clock()
        try:
            latents = self.runner.run(
                [state.edit for state in batch],
                [state.latents for state in batch],
                [state.steps[state.num_done] for state in batch],
            )
            finite = latents.isfinite().flatten(1).all(1).tolist()  # waits for the device, so the time is the step's
            previews = self.preview(latents) if self.preview else [None] * len(batch)
        except Exception as error:
            return [self._fail(state, f"the UNet call failed: {error!r}", error) for state in batch]
        self._step_times.append(self.clock() - started)
        events: list[Event] = []
        for state, row, ok, preview in zip(batch, latents, finite, previews, strict=True):
            events += self._moved(state, row, preview) if ok else [self._fail(state, "the latents are not finite")]
        return events

    def _moved(self, state: EditState, row: Tensor, preview: NDArray[np.uint8] | None) -> list[Event]:
        # A copy, because a view would keep the latents of the whole batch, and take them along when it is sent.
        state.latents = row[None].clone()
        state.num_done += 1
        progress = Progress(state.id, state.num_done, state.num_steps, preview)
        if state.num_left:
            return [progress]
        self.scheduler.remove(state.id)
        return [progress, Finished(state.id, state.latents)]

    def _fail(self, state: EditState, reason: str, cause: Exception | None = None) -> Failed:
        self.scheduler.remove(state.id)
        error = FashionRAGError(f"step {state.num_done + 1} of {state.num_steps}: {reason}")
        error.__cause__ = cause
        return Failed(state.id, error)


def _too_late(state: EditState, now: float, step_time_s: float) -> DeadlineExceeded:
    left = f"{state.num_left} of {state.num_steps} steps at {step_time_s:.3g} s each are left"
    return DeadlineExceeded(f"{left}, and {state.deadline - now:.3g} s until the deadline")
