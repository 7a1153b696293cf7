"""The training loop of every stage: seeded step by step, averaged over processes, checkpointed, resumable.

Called by `train`. A stage owns its networks and its loss; this module owns optimiser, schedule, average and files.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

SAVE_EVERY_S = 60.0
WARMUP_STEPS = 100
DECAY_SHARE = 0.25  # the last quarter of the steps runs down to zero


@dataclass(frozen=True)
class Plan:
    """How long and how fast a stage trains. batch_size counts over all processes."""

    num_steps: int
    batch_size: int
    learning_rate: float
    ema_decay: float = 0.999
    weight_decay: float = 0.01


class Stage(Protocol):
    """What `fit` trains: `network` holds all that learns; `loss` is one batch's."""

    name: str
    network: nn.Module

    def loss(self, rng: np.random.Generator, batch_size: int) -> Tensor:
        """The loss of one random batch, drawn from `rng` and PyTorch's generator alone."""


Report = Callable[[str, int, int, float], None]


def learning_rate(plan: Plan, step: int) -> float:
    """The rate at `step`: a short warm-up, constant, then down to zero over the last quarter."""
    decay_from = plan.num_steps * (1 - DECAY_SHARE)
    left = (plan.num_steps - step) / (plan.num_steps - decay_from)
    return plan.learning_rate * min(1.0, (step + 1) / WARMUP_STEPS, max(left, 0.0))


def fit(stage: Stage, plan: Plan, folder: Path, seed: int, report: Report) -> None:
    """Train `stage` to the end of `plan`, from its checkpoint in `folder` if there is one; leaves the average in it.

    Every step draws its batch from (seed, step, process), so that a resumed run repeats an unbroken one.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    network = stage.network
    if world > 1:
        # Processes that start apart would stay apart: only gradients are shared later.
        for tensor in network.state_dict().values():
            dist.broadcast(tensor, src=0)
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=plan.learning_rate, betas=(0.9, 0.99), weight_decay=plan.weight_decay
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stage.name}.pt"
    start = 0
    if path.exists():
        saved = torch.load(path, weights_only=True, map_location="cpu")
        network.load_state_dict(saved["network"])
        average.load_state_dict(saved["average"])
        optimiser.load_state_dict(saved["optimiser"])
        start = saved["step"]
    network.train()
    last_save = last_report = time.monotonic()
    running = float("nan")
    for step in range(start, plan.num_steps):
        torch.manual_seed(hash((seed, step, rank)) % 2**63)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(plan, step)
        loss = stage.loss(np.random.default_rng([seed, step, rank]), plan.batch_size // world)
        optimiser.zero_grad()
        loss.backward()
        _average_gradients(network, world)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        _follow(average, network, min(plan.ema_decay, (step + 1) / (step + 10)))
        running = loss.item() if running != running else 0.98 * running + 0.02 * loss.item()
        if rank == 0 and time.monotonic() - last_report > 1.0:
            last_report = time.monotonic()
            report(stage.name, step + 1, plan.num_steps, running)
        if rank == 0 and (time.monotonic() - last_save > SAVE_EVERY_S or step + 1 == plan.num_steps):
            last_save = time.monotonic()
            state = {"network": network.state_dict(), "average": average.state_dict()}
            _save(path, state | {"optimiser": optimiser.state_dict(), "step": step + 1})
    network.load_state_dict(average.state_dict())
    network.eval()


def _average_gradients(network: nn.Module, world: int) -> None:
    if world == 1:
        return
    # A batch without garments leaves the adapter without gradients, and another process may have drawn one with.
    gradients = []
    for parameter in network.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    kept = [tensor for tensor in average.state_dict().values() if tensor.is_floating_point()]
    new = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
    torch._foreach_lerp_(kept, new, 1 - decay)


def _save(path: Path, state: dict[str, object]) -> None:
    aside = path.with_suffix(".partial")
    torch.save(state, aside)
    aside.rename(path)
