"""The jobs that the other processes of `test_fit` run."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fashion_rag.training.fit import TrainingPlan, TrainingProgress, fit
from fashion_rag.training.processes import Report, barrier, rank_and_world

PLAN = TrainingPlan(num_steps=10, batch_size=8, learning_rate=0.05, num_parts=2)


class Sometimes:
    """A stage of a network whose second half is not used by about half of the parts."""

    name = "sometimes"

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.network = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])

    def loss(self, rng: np.random.Generator, num_rows: int) -> Tensor:
        x = torch.from_numpy(rng.normal(size=(num_rows, 1))).float()
        y: Tensor = self.network[0](x)
        return (y + self.network[1](x) if rng.random() < 0.5 else y).square().mean()


def unwatched(progress: TrainingProgress, average: nn.Module) -> None:
    pass


def train(folder: Path, report: Report) -> None:
    # The networks begin with different weights; all processes take those of the first.
    fit(Sometimes(rank_and_world()[0]), PLAN, folder, seed=1, watch=unwatched)


def die_in_the_second(report: Report) -> None:
    if rank_and_world()[0] == 1:
        os._exit(1)
    barrier()


class DiesWhereItIsUnpickled:
    def __call__(self, report: Report) -> None:
        barrier()

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (1,)


die_at_the_start_of_the_second = DiesWhereItIsUnpickled()
