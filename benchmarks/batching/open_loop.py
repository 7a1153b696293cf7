"""Edits that come at random and do not wait for the server, and how they are served: for real, or on a virtual clock.

`run.py` calls it. Nothing here knows what is compared.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import nn

from fashion_rag.denoising.engine import Engine, Failed, Finished
from fashion_rag.denoising.noise_schedule import NoiseSchedule
from fashion_rag.denoising.runner import Edit, Inputs
from fashion_rag.denoising.scheduler import Limits, running_rows
from fashion_rag.denoising.state import CallOutcome, CallResult, EditState
from fashion_rag.models.unet import SplitUNet

# A simulated engine is given this UNet, and never calls it.
NO_UNET = SplitUNet(nn.Identity(), nn.Identity())

GUIDANCE_SCALE = 7.5
ROWS = 2  # An edit takes two rows because it is guided.
NEVER_FULL = 1_000_000  # So many edits may wait that none is refused.

StepTimes = Mapping[int, float]  # seconds of an engine's step, by the rows of its UNet call


class NumberedArrival(NamedTuple):
    """An edit of `num_steps` steps that comes `at_s` seconds after the start."""

    number: int
    at_s: float
    num_steps: int


class Times(NamedTuple):
    """The seconds from an edit's arrival until it was done, and until the engine was empty again."""

    done_s: float
    empty_s: float


# Returns which of the waiting edits, given oldest first, may join a step; it is also given how many are running and how
# many fit into a step.
LetIn = Callable[[Sequence[NumberedArrival], int, int], Sequence[NumberedArrival]]


def arrivals(steps: Sequence[int], num_edits: int, rate: float, seed: int) -> list[NumberedArrival]:
    """Return Poisson arrivals, `rate` a second on average, of edits whose step counts are equal parts, shuffled.

    The same seed gives the same edits in the same order at every rate.
    """
    rng = np.random.default_rng(seed)
    at_s = rng.exponential(size=num_edits).cumsum() / rate
    num_steps = rng.permutation(np.resize(steps, num_edits))
    return [NumberedArrival(number, float(at_s[number]), int(num_steps[number])) for number in range(num_edits)]


def serve(
    engine: Engine, sleep: Callable[[float], None], coming: Sequence[NumberedArrival], let_in: LetIn, inputs: Inputs
) -> list[Times]:
    """Serve the edits in `coming` and return their times, in its order.

    let_in: is asked before every step. sleep: lets so many seconds of the engine's clock pass. Raises the error of an
    edit that fails.
    """
    queue = deque(coming)
    waiting: list[NumberedArrival] = []
    done: dict[int, float] = {}
    empty: dict[int, float] = {}
    start = engine.clock()
    while queue or waiting or len(engine):
        now = engine.clock() - start
        while queue and queue[0].at_s <= now:
            waiting.append(queue.popleft())
        for arrival in list(let_in(waiting, len(engine), engine.limits.max_rows // ROWS)):
            waiting.remove(arrival)
            engine.add(guided_edit(arrival.number, arrival.num_steps, inputs), inputs)
        if not len(engine):
            sleep(queue[0].at_s - now)
            continue
        events = engine.step()
        now = engine.clock() - start
        for event in events:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                done[int(event.id)] = now
        if not len(engine):
            empty |= dict.fromkeys(done.keys() - empty.keys(), now)
    return [Times(done[number] - at_s, empty[number] - at_s) for number, at_s, _ in coming]


def guided_edit(number: int, num_steps: int, inputs: Inputs) -> Edit:
    """Return a guided edit without a deadline, of the size of `inputs`."""
    height, width = inputs.latents.shape[-2:]
    return Edit(str(number), (height, width), num_steps, GUIDANCE_SCALE, NoiseSchedule())


class SimulatedEngine(Engine):
    """An engine on a clock of its own, with the bookkeeping of a real one.

    Its calls compute nothing; they take the time that `step_s` gives for their rows.
    """

    def __init__(self, limits: Limits, step_s: StepTimes) -> None:
        super().__init__(NO_UNET, limits, clock=lambda: self.now)
        self.now = 0.0
        self.step_s = step_s

    def sleep(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.now += seconds

    def run(self, batch: Sequence[EditState]) -> CallOutcome:
        """Let the time of the call pass, and return every edit's position as it was."""
        seconds = self.step_s[running_rows(batch).total]
        self.sleep(seconds)
        return CallOutcome([CallResult(state.position, None) for state in batch], seconds)
