"""The same training on one or many nodes, by Ray Train.

When a worker dies, Ray Train starts the workers again, and they go on from the checkpoint. Called by
`fashion-rag train`.
"""

from __future__ import annotations

import time
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from torch import nn

from fashion_rag.bundle import Bundle
from fashion_rag.training.fit import TrainingProgress, Watch
from fashion_rag.training.processes import PATIENCE, silent
from fashion_rag.training.run import TrainingSettings, run

METRICS_EVERY = 50
PRINT_EVERY_S = 10.0


def train_on_ray(
    settings: TrainingSettings,
    num_workers: int,
    use_gpu: bool = False,
    max_failures: int = 3,
    watch: Watch | None = None,
) -> Bundle:
    """Train on the Ray cluster that this process is connected to, and return the bundle that is then in `settings.out`.

    settings: every node must see its folders under the same paths. num_workers: how many processes train.
    use_gpu: whether each of them has a GPU. max_failures: how often the training starts again after a worker or node
    has died. watch: called in every worker, too; it must be possible to pickle it.

    The first worker prints how far it is, and Ray shows that here. Raises InvalidRequest as
    `TrainingPlan.part_numbers`, and Ray's TrainingFailedError for whatever goes wrong in a worker.
    """
    settings.plan.part_numbers(0, num_workers)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"settings": settings, "watch": watch},
        torch_config=TorchConfig(timeout_s=int(PATIENCE.total_seconds())),
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name="train",
            storage_path=str((settings.work / "ray").absolute()),
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )
    trainer.fit()
    return Bundle.open(settings.out)


def _work(config: dict[str, Any]) -> None:
    """Do a worker's share of the training."""
    device = get_device()
    if device.type == "cuda":
        # Each worker of a node sees all GPUs of the node.
        torch.cuda.set_device(device)
    watches: list[Watch] = [_report_to_ray]
    if config["watch"]:
        watches.append(config["watch"])
    run(config["settings"], Printing() if dist.get_rank() == 0 else silent, watches)


class Printing:
    """A report that prints a line at most every PRINT_EVERY_S seconds, and at the last step."""

    def __init__(self) -> None:
        self.printed_s = time.monotonic()

    def __call__(self, stage: str, step: int, num_steps: int, loss: float) -> None:
        if time.monotonic() - self.printed_s > PRINT_EVERY_S or step == num_steps:
            self.printed_s = time.monotonic()
            print(f"{stage}  loss {loss:.4f}: {step} of {num_steps}", flush=True)


def _report_to_ray(progress: TrainingProgress, average: nn.Module) -> None:
    """Report metrics to Ray Train, every METRICS_EVERY steps and at the last, as all workers wait for each other here.

    They come without a checkpoint: a new attempt goes on from the one that `fit` writes.
    """
    if progress.step % METRICS_EVERY == 0 or progress.step == progress.num_steps:
        ray.train.report({"step": progress.step, "loss": progress.loss, "images_per_s": progress.images_per_s})
