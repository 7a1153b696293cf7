"""The same training on one or many nodes by Ray Train, which starts again from the checkpoint where a worker dies."""

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
from fashion_rag.training.fit import Progress, Watch
from fashion_rag.training.processes import PATIENCE, silent
from fashion_rag.training.run import Settings, run

METRICS_EVERY = 50
PRINT_EVERY_S = 10.0


def train_on_ray(
    settings: Settings,
    num_workers: int,
    use_gpu: bool = False,
    max_failures: int = 3,
    watch: Watch | None = None,
) -> Bundle:
    """Return the trained bundle, now in `settings.out`, from the Ray that this process is connected to.

    settings: its folders must be ones that every node sees under the same path. num_workers: processes, of a GPU each
    where `use_gpu`. max_failures: how many deaths of a worker or node are made good. watch: also called, in every
    worker; one that can be pickled. The first worker prints how far it is, which Ray shows here.
    Raises InvalidRequest as `Plan.part_numbers`; Ray's TrainingFailedError for whatever goes wrong in a worker.
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
    device = get_device()
    if device.type == "cuda":
        # The workers of a node all see all of its GPUs.
        torch.cuda.set_device(device)
    watches = [_tell_ray, *([config["watch"]] if config["watch"] else [])]
    run(config["settings"], Printing() if dist.get_rank() == 0 else silent, watches)


class Printing:
    """A report that prints a line every PRINT_EVERY_S, and the last."""

    def __init__(self) -> None:
        self.said_s = time.monotonic()

    def __call__(self, stage: str, step: int, num_steps: int, loss: float) -> None:
        if time.monotonic() - self.said_s > PRINT_EVERY_S or step == num_steps:
            self.said_s = time.monotonic()
            print(f"{stage}  loss {loss:.4f}: {step} of {num_steps}", flush=True)


def _tell_ray(progress: Progress, average: nn.Module) -> None:
    # Ray waits for all workers here, so not at every step. Our own checkpoint is what a new attempt goes on from.
    if progress.step % METRICS_EVERY == 0 or progress.step == progress.num_steps:
        ray.train.report({"step": progress.step, "loss": progress.loss, "images_per_s": progress.images_per_s})
