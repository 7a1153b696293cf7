"""One edit in progress: where it stands, and what a UNet call made of it. The engine makes these and owns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fashion_rag.denoising.runner import Edit, Inputs
from fashion_rag.denoising.sampler import previous_timesteps, timesteps
from fashion_rag.denoising.scheduler import Ticket


@dataclass(kw_only=True, eq=False)
class EditState(Ticket):
    """An edit and its latents after the steps done. Nothing in it changes while a call with it runs.

    steps: every timestep with the one it leads to. inputs, latents: there once the edit is ready.
    """

    edit: Edit
    steps: list[tuple[int, int]]
    inputs: Inputs = field(init=False, repr=False)
    latents: Tensor = field(init=False, repr=False)

    @classmethod
    def of(cls, edit: Edit, arrived: float) -> EditState:
        """The state of an edit before its first step. Raises InvalidRequest for steps that its schedule has not."""
        num_steps = edit.num_inference_steps
        visited, led_to = timesteps(edit.sampler, num_steps), previous_timesteps(edit.sampler, num_steps)
        return cls(
            id=edit.id,
            size=edit.size,
            num_rows=edit.num_rows,
            num_steps=num_steps,
            arrived=arrived,
            deadline=edit.deadline,
            edit=edit,
            steps=list(zip(visited.tolist(), led_to.tolist(), strict=True)),
        )

    def start(self, inputs: Inputs) -> None:
        """Make the edit ready to run."""
        self.inputs, self.latents, self.ready = inputs, inputs.latents, True


@dataclass(frozen=True)
class Outcome:
    """What a UNet call made of each edit: its latents [1, 4, h, w], None where useless, and its preview if wanted.

    seconds: how long the call took. error: why it failed, if it did.
    """

    latents: Sequence[Tensor | None]
    previews: Sequence[NDArray[np.uint8] | None]
    seconds: float
    error: Exception | None = None


def total_rows(batch: Sequence[EditState]) -> int:
    """The rows of a UNet call with these edits."""
    return sum(state.num_rows for state in batch)
