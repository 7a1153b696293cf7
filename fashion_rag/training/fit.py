"""The training loop: seeded part by part, averaged over processes, checkpointed, and resumed bit for bit.

A stage owns its networks and its loss; this module owns optimiser, schedule, average and file. It knows nothing of
Fashion-RAG, nor of who watches. Called by `run`, and by the demo's training for each of its stages.
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
class Plan:
    """How long and how fast a stage trains.

    batch_size: rows of a step, over all processes. num_parts: a batch is worked through in so many parts, which the
    processes share evenly; 0 = one a process. What a part draws depends on the seed, the step and its number, so that
    the same number of parts is the same training on any number of processes. warmup_steps: until the rate is full;
    decay_share: the last of the steps, in which it runs down to zero. precision: what products and convolutions
    compute in; weights, gradients and average are float32. save_every_s: time between two checkpoints.
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
        """Return the parts of process `rank` of `world`.

        Raises InvalidRequest if batch or parts cannot be shared evenly.
        """
        num_parts = self.num_parts or world
        if num_parts % world:
            raise InvalidRequest("num_parts", num_parts, f"must be a multiple of the {world} processes")
        if self.batch_size % num_parts:
            raise InvalidRequest("batch_size", self.batch_size, f"must be a multiple of the {num_parts} parts")
        share = num_parts // world
        return range(rank * share, (rank + 1) * share)


class Stage(Protocol):
    """What `fit` trains; `name` is its checkpoint's."""

    name: str

    @property
    def network(self) -> nn.Module:
        """Return all that learns, on the device where it learns."""

    def loss(self, rng: np.random.Generator, num_rows: int) -> Tensor:
        """Return the mean loss of `num_rows` random rows, drawn from `rng` and PyTorch's own generator alone."""


@dataclass(frozen=True)
class Progress:
    """A step that is done. loss: of this process's parts. gradient_norm: before clipping, of the whole batch."""

    stage: str
    step: int
    num_steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    images_per_s: float


# Called after each step, in each process, with the network of averaged weights.
Watch = Callable[[Progress, nn.Module], None]


def pick_precision() -> Precision:
    """Return the bfloat16, or float16 where the GPU has none."""
    lacking = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return "float16" if lacking else "bfloat16"


def autocast(device: torch.device, precision: Precision) -> Callable[[], torch.autocast]:
    """Open a block whose products and convolutions compute in `precision`."""
    dtype = getattr(torch, precision)
    return partial(torch.autocast, device.type, dtype, enabled=dtype != torch.float32)


def learning_rate(plan: Plan, step: int) -> float:
    """Return the rate at `step`: a short warm-up, constant, then down to zero."""
    left = (plan.num_steps - step) / max(plan.num_steps * plan.decay_share, 1.0)
    return plan.learning_rate * min(1.0, (step + 1) / max(plan.warmup_steps, 1), left)


def fit(stage: Stage, plan: Plan, folder: Path, seed: int, watch: Watch) -> None:
    """Train `stage` to the end of `plan`, from its checkpoint in `folder` if there is one; leaves the average in it.

    A step whose gradients are not all finite changes no weight. Raises InvalidRequest as `Plan.part_numbers`.
    """
    rank, world = rank_and_world()
    parts = plan.part_numbers(rank, world)
    num_rows = plan.batch_size // (len(parts) * world)
    if world > 1:
        # Processes that start apart would stay apart: only gradients are shared later.
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
            torch.manual_seed(hash((seed, step, number)) % 2**63)
            loss = stage.loss(np.random.default_rng([seed, step, number]), num_rows)
            learner.backward(loss / len(parts))
            losses.append(loss.detach())
        norm = learner.update(world)
        mean_loss = torch.stack(losses).mean().item()
        rate, pace = learning_rate(plan, step), plan.batch_size / (time.monotonic() - start)
        watch(Progress(stage.name, step + 1, plan.num_steps, mean_loss, rate, norm, pace), learner.average)
        if rank == 0 and (time.monotonic() - last_save > plan.save_every_s or step + 1 == plan.num_steps):
            learner.save(path)
            last_save = time.monotonic()
    stage.network.load_state_dict(learner.average.state_dict())
    stage.network.eval()


class _Learner:
    """What a step changes, and what its file keeps: network, average, optimiser, loss scale, number of steps done."""

    def __init__(self, network: nn.Module, plan: Plan) -> None:
        self.network, self.plan = network, plan
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.parameters = list(network.parameters())
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=plan.learning_rate, betas=BETAS, weight_decay=plan.weight_decay
        )
        device = self.parameters[0].device.type
        # The gradients of float16 would vanish unscaled. In any other precision the scaler does nothing.
        self.scaler = torch.amp.GradScaler(device, enabled=plan.precision == "float16")
        self.step = 0

    def load(self, path: Path) -> None:
        # Mapped and not read, as the whole file beside all that it is copied to would be the most that training takes.
        saved = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        self.network.load_state_dict(saved["network"])
        self.average.load_state_dict(saved["average"])
        self.optimiser.load_state_dict(saved["optimiser"])
        if scale := saved.get("scaler"):
            self.scaler.load_state_dict(scale)
        self.step = saved["step"]

    def save(self, path: Path) -> None:
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
        self.scaler.scale(loss).backward()

    def update(self, world: int) -> float:
        """Take the step that the gradients say, then clear them. Returns their norm."""
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
        decay = min(self.plan.ema_decay, (self.step + 1) / (self.step + 10))
        kept, new = (
            [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
            for network in (self.average, self.network)
        )
        torch._foreach_lerp_(kept, new, 1 - decay)


def _average_gradients(parameters: list[nn.Parameter], world: int) -> None:
    # Parts without garments leave the adapter without gradients, and another process may have drawn some with. With
    # one process, too, it counts as zero: weights must not depend on how many there are.
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    if world > 1:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= world
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
