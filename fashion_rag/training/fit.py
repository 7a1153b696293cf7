"""The training loop: seeded part by part, averaged over processes, checkpointed, and resumed bit for bit.

A stage owns its networks and its loss. This module owns the optimiser, the learning rate, the averaged weights and the
checkpoint; it knows nothing of Fashion-RAG. `run` calls it, and so does the demo's training for each of its stages.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fashion_rag.errors import InvalidRequest
from fashion_rag.training.processes import rank_and_world

Precision = Literal["float32", "bfloat16", "float16"]

BETAS = (0.9, 0.99)
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how fast a stage trains.

    batch_size: rows of a step, over all processes.
    num_parts: how many parts a batch is worked through in; the processes share them evenly. 0 = one part a process.
        What a part draws depends on the seed, the step and the part's number, so the same number of parts gives the
        same training on any number of processes.
    warmup_steps: steps until the learning rate is full. decay_share: the share of the steps, at the end, in which the
        rate falls to zero.
    precision: what products and convolutions compute in; weights, gradients and average are float32.
    save_every_s: seconds between two checkpoints.
    """

    num_steps: int
    batch_size: int
    learning_rate: float
    num_parts: int = 0
    warmup_steps: int = 100
    decay_share: float = 0.25
    ema_decay: float = 0.999
    weight_decay: float = 0.01
    precision: Precision = "bfloat16"
    save_every_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InvalidRequest(name, getattr(self, name), "must be at least 1")

    def part_numbers(self, rank: int, world: int) -> range:
        """Return the numbers of the parts that process `rank` of `world` works through.

        Raises InvalidRequest if the batch or its parts cannot be shared evenly.
        """
        num_parts = self.num_parts or world
        if num_parts % world:
            raise InvalidRequest("num_parts", num_parts, f"must be a multiple of the {world} processes")
        if self.batch_size % num_parts:
            raise InvalidRequest("batch_size", self.batch_size, f"must be a multiple of the {num_parts} parts")
        share = num_parts // world
        return range(rank * share, (rank + 1) * share)


class TrainingStage(Protocol):
    """A set of networks and their loss, which `fit` trains. `name` names the checkpoint."""

    name: str

    @property
    def network(self) -> nn.Module:
        """Return everything that is trained, on the device where it is trained."""

    def loss(self, rng: np.random.Generator, num_rows: int) -> Tensor:
        """Return the mean loss of `num_rows` random rows, drawn from `rng` and PyTorch's own generator alone."""


@dataclass(frozen=True)
class TrainingProgress:
    """A finished step of training.

    loss: the mean over this process's parts. gradient_norm: of the whole batch, before clipping.
    """

    stage: str
    step: int
    num_steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    images_per_s: float


# Called after each step, in each process, with the step and the network of averaged weights.
Watch = Callable[[TrainingProgress, nn.Module], None]


def pick_precision() -> Precision:
    """Return "bfloat16", or "float16" where the GPU does not compute in bfloat16."""
    lacks_bfloat16 = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return "float16" if lacks_bfloat16 else "bfloat16"


def autocast(device: torch.device, precision: Precision) -> Callable[[], torch.autocast]:
    """Return what opens a block whose products and convolutions compute in `precision`."""
    dtype = getattr(torch, precision)
    return partial(torch.autocast, device.type, dtype, enabled=dtype != torch.float32)


def learning_rate(plan: TrainingPlan, step: int) -> float:
    """Return the learning rate at `step`: it rises in the warm-up, stays, and falls to zero at the end."""
    warmup = (step + 1) / max(plan.warmup_steps, 1)
    decay = (plan.num_steps - step) / max(plan.num_steps * plan.decay_share, 1.0)
    return plan.learning_rate * min(1.0, warmup, decay)


def fit(stage: TrainingStage, plan: TrainingPlan, folder: Path, seed: int, watch: Watch) -> None:
    """Train `stage` to the end of `plan`, from its checkpoint in `folder` if there is one.

    At the end the network holds the averaged weights. A step whose gradients are not all finite changes no weight.
    Raises InvalidRequest as `TrainingPlan.part_numbers`.
    """
    rank, world = rank_and_world()
    parts = plan.part_numbers(rank, world)
    num_rows = plan.batch_size // (len(parts) * world)
    if world > 1:
        # Only gradients are shared later, so processes that start with different weights would keep them.
        for tensor in stage.network.state_dict().values():
            dist.broadcast(tensor, src=0)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stage.name}.pt"
    learner = _Learner(stage.network, plan)
    if path.exists():
        learner.load(path)
    stage.network.train()
    last_save = time.monotonic()
    for step in range(learner.step, plan.num_steps):
        start = time.monotonic()
        losses = []
        for number in parts:
            part_seed = np.random.SeedSequence([seed, step, number])
            torch.manual_seed(int(part_seed.generate_state(1, np.uint64)[0]))
            loss = stage.loss(np.random.default_rng(part_seed), num_rows)
            learner.backward(loss / len(parts))
            losses.append(loss.detach())
        norm = learner.update(world)
        mean_loss = torch.stack(losses).mean().item()
        progress = TrainingProgress(
            stage=stage.name,
            step=step + 1,
            num_steps=plan.num_steps,
            loss=mean_loss,
            learning_rate=learning_rate(plan, step),
            gradient_norm=norm,
            images_per_s=plan.batch_size / (time.monotonic() - start),
        )
        watch(progress, learner.average)
        if rank == 0 and (time.monotonic() - last_save > plan.save_every_s or step + 1 == plan.num_steps):
            learner.save(path)
            last_save = time.monotonic()
    stage.network.load_state_dict(learner.average.state_dict())
    stage.network.eval()


class _Learner:
    """The state that a step changes and a checkpoint keeps.

    It is the network, the average of its weights, the optimiser, the scale of the loss, and the number of steps done.
    """

    def __init__(self, network: nn.Module, plan: TrainingPlan) -> None:
        self.network, self.plan = network, plan
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.parameters = list(network.parameters())
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=plan.learning_rate, betas=BETAS, weight_decay=plan.weight_decay
        )
        device = self.parameters[0].device.type
        # Without a scale, gradients of float16 would vanish. In any other precision the scaler does nothing.
        self.scaler = torch.amp.GradScaler(device, enabled=plan.precision == "float16")
        self.step = 0

    def load(self, path: Path) -> None:
        """Go on from the checkpoint at `path`."""
        # The file is mapped: read as a whole, it would be in memory twice, which is more than training itself takes.
        saved = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        self.network.load_state_dict(saved["network"])
        self.average.load_state_dict(saved["average"])
        self.optimiser.load_state_dict(saved["optimiser"])
        if scale := saved.get("scaler"):
            self.scaler.load_state_dict(scale)
        self.step = saved["step"]

    def save(self, path: Path) -> None:
        """Write the checkpoint at `path`; a process that is killed meanwhile leaves the last one whole."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
        }
        aside = path.with_suffix(".partial")
        torch.save(state, aside)
        aside.rename(path)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` to those of the step."""
        self.scaler.scale(loss).backward()

    def update(self, world: int) -> float:
        """Take a step along the gradients, clear them, and return their norm before clipping."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.plan, self.step)
        _average_gradients(self.parameters, world)
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
        if norm.isfinite():
            self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()
        self._follow()
        self.step += 1
        return norm.item()

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the averaged weights towards those of the network."""
        decay = min(self.plan.ema_decay, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(_floating_tensors(self.average), _floating_tensors(self.network), 1 - decay)


def _floating_tensors(network: nn.Module) -> list[Tensor]:
    return [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]


def _average_gradients(parameters: list[nn.Parameter], world: int) -> None:
    """Replace the gradients by their mean over all processes; a missing gradient counts as zero.

    Parts without garments leave the adapter without gradients, while another process may have parts with garments. A
    single process counts zeros, too, so that the weights do not depend on the number of processes.
    """
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    if world > 1:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= world
        means = flat.split([gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))
