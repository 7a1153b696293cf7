"""One edit in progress: where it stands, and what a UNet call made of it. The engine makes these and owns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fashion_rag.denoising.plan import Step, plan
from fashion_rag.denoising.runner import Edit, Inputs, Position
from fashion_rag.denoising.scheduler import Rows, Ticket, sum_rows


@dataclass(kw_only=True, eq=False)
class EditState(Ticket):
    """An edit and where it stands after the steps done. Nothing in it changes while a call with it runs.

    steps: what is planned. inputs, position: there once the edit is ready.
    """

    edit: Edit
    steps: tuple[Step, ...]
    inputs: Inputs = field(init=False, repr=False)
    position: Position = field(init=False, repr=False)

    @classmethod
    def of(cls, edit: Edit, arrived: float) -> EditState:
        """The state of an edit before its first step. Raises InvalidRequest for steps that its schedule has not."""
        steps = plan(edit.sampler, edit.num_inference_steps, edit.guidance_scale, edit.shortcuts)
        return cls(
            id=edit.id,
            size=edit.size,
            rows=[step.rows for step in steps],
            arrived=arrived,
            deadline=edit.deadline,
            edit=edit,
            steps=steps,
        )

    def start(self, inputs: Inputs) -> None:
        """Make the edit ready to run."""
        self.inputs, self.ready = inputs, True
        self.position = Position.first(inputs.latents, self.edit.shortcuts.solver)

    @property
    def latents(self) -> Tensor:
        """The latents [1, 4, h, w] after the steps done."""
        return self.position.latents


@dataclass(frozen=True)
class Outcome:
    """Where each edit stands after a step, None where that is useless, and its preview if wanted.

    seconds: how long the step took. error: why it failed, if it did.
    """

    positions: Sequence[Position | None]
    previews: Sequence[NDArray[np.uint8] | None]
    seconds: float
    error: Exception | None = None


def running_rows(batch: Sequence[EditState]) -> Rows:
    """The rows of the step that these edits have begun."""
    return sum_rows(state.steps[state.num_begun - 1].rows for state in batch)
