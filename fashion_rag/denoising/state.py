"""One edit in progress: where it stands, and what a UNet call has made of it. The engine makes and owns these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fashion_rag.denoising.plan import Step, plan
from fashion_rag.denoising.runner import Edit, Inputs, Position, StepRow
from fashion_rag.denoising.scheduler import Ticket


@dataclass(kw_only=True, eq=False)
class EditState(Ticket):
    """An edit and where it stands after the steps done. Nothing in it changes while a call that it is part of runs.

    steps: its plan. inputs, position: set once the edit is ready.
    """

    edit: Edit
    steps: tuple[Step, ...]
    inputs: Inputs = field(init=False, repr=False)
    position: Position = field(init=False, repr=False)

    @classmethod
    def of(cls, edit: Edit, arrived: float) -> EditState:
        """Return the state of an edit before its first step. Raises InvalidRequest as `plan`."""
        steps = plan(edit.sampler, edit.num_inference_steps, edit.guidance_scale, edit.shortcuts)
        return cls(
            id=edit.id,
            size=edit.size,
            rows=[step.rows for step in steps],
            arrived=arrived,
            deadline=edit.deadline,
            after_s=edit.after_s,
            edit=edit,
            steps=steps,
        )

    def start(self, inputs: Inputs) -> None:
        """Make the edit ready to run."""
        self.inputs, self.ready = inputs, True
        self.position = Position.first(inputs.latents, self.edit.shortcuts.solver)

    @property
    def current_step(self) -> Step:
        """Return the step that was begun last."""
        return self.steps[self.num_begun - 1]

    @property
    def step_row(self) -> StepRow:
        """Return the edit's part in the step that it has begun."""
        return StepRow(self.edit, self.inputs, self.position, self.current_step)

    @property
    def latents(self) -> Tensor:
        """Return the latents [1, 4, h, w] after the steps done."""
        return self.position.latents


class CallResult(NamedTuple):
    """What a UNet call has made of one edit.

    position: where it stands; None where the call failed or the latents are not finite. preview: uint8 [h, w, 3], where
    one was wanted.
    """

    position: Position | None
    preview: NDArray[np.uint8] | None


@dataclass(frozen=True, eq=False)
class CallOutcome:
    """What a UNet call has made of a batch: a result for each edit, its duration, and why it failed, if it did."""

    results: Sequence[CallResult]
    seconds: float
    error: Exception | None = None
